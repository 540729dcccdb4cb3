"""Prompt distillation: a teacher has a long prompt and thinks, a student with neither learns to answer as it does.

In: texts (.txt with one per line, any adapter), a file with the system prompt, a teacher, a student. Out: a run directory
with messages.jsonl (`{"messages": [user, assistant]}`, the prompt and the thinking gone), the adapters in student/, for
labels evaluation_results.json (confusion matrix, accuracy per label, every prediction), summary.json and report.html with
what an answer of teacher and student costs: tokens processed and seconds. Student and teacher may be one model
(self-distillation): then the adapters alone make the difference. Never more than one set of weights is in memory.

    distill prompt --preset tiny --run runs/labels
    distill prompt --preset qwen3 --prompt-file rules.txt --data multilingual.txt --max-retries 3
    distill prompt --prompt-file style.txt --data questions.jsonl --grader judge:openai:MODEL      free text

Sources: Askell et al. 2021 (context distillation), Snell et al. 2022 (learning by distilling context).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import (
    QWEN3_THINKING,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from distill_lab.errors import NoData, UserError
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.pipeline import Pipeline, student_path, trained, untrained
from distill_lab.planning.method import with_batches
from distill_lab.planning.preflight import check_before
from distill_lab.progress import ProgressReporter
from distill_lab.recipes._prompt_proof import prove, step
from distill_lab.run import Run
from distill_lab.training_data.prompt_distillation import (
    read_labels,
    read_system_prompt,
    tokens_per_batch,
    write_answered,
    write_asked,
    write_gold,
    write_messages,
    write_unread,
)

TRAIN = TrainConfig(
    learning_rate=2e-4, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.1, warmup_ratio=0.03, weight_decay=0.0,
    max_length=2048, gradient_accumulation_steps=4, gradient_checkpointing=True, lora=LoraConfig(r=32, alpha=32),
)  # fmt: skip
"""The document's settings; one epoch. Alpha equals the rank: at half of it adapters learn at half their rate."""
AT_ONCE = SamplingConfig(max_new_tokens=512, thinking=False)
TEACHER, STUDENT = "Qwen/Qwen3-4B-Thinking-2507", "Qwen/Qwen3-4B-Instruct-2507"


class Config(settings.RecipeConfig):
    """Settings of a prompt distillation."""

    prompt_file: str = ""
    """The system prompt to distil, a text file; tiny:labels: the rules prompt of the embedded family's task."""
    teacher: ModelConfig = ModelConfig(model=TEACHER, quantization="auto")
    """The model that is asked under the prompt, and thinks where its chat template lets it."""
    student: ModelConfig = ModelConfig(model=STUDENT, quantization="auto")
    """The model that is to answer without either; the teacher's own name for self-distillation."""
    data: DataConfig = DataConfig(path="")
    """The texts the teacher answers."""
    gold: str = ""
    """File with one gold answer per line, for the rows of the test data, or of the data where no test is given."""
    labels: str = ""
    """The labels there are, as a,b,c or as a file with one per line; empty: those the prompt lists after "Labels:"."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often a text is asked again, with another seed, whose answer cannot be read; then it is dropped and counted."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096, temperature=0.15)
    """How the teacher answers, for the training set and in the test."""
    test: DataConfig = DataConfig(path="")
    """Texts the scores are taken on; without a path, num_test rows of the data are held out."""
    num_test: Annotated[int, Field(ge=0)] = 200
    """Held-out rows where no test data is given (at most a tenth of the rows); 0: no scores."""
    test_sampling: SamplingConfig = AT_ONCE
    """How base student and student answer the test; they are trained to be asked so."""
    grader: str = "auto"
    """label, exact, judge:MODEL or another file name in distill_lab/grading/graders; auto: label where there are labels,
    else exact where every test row has a gold answer, else overlap. Without gold answers the teacher's are the reference."""
    engine: EngineConfig = EngineConfig()
    """What generates."""
    rows_per_batch: Annotated[int, Field(ge=0)] = 4
    """About how many rows a micro-batch packs: sets train.tokens_per_batch by their mean length; 0 leaves that as it is."""
    train: TrainConfig = TRAIN
    """How the student is trained; train.lora.r 0: all weights."""
    measure: bool = True
    """Time teacher and student on the test, each asked in its own way, one model in memory at a time."""
    out: str = ""
    """Where the student goes; empty: student/ in the run directory."""


PRESETS = {
    "tiny": Config(
        prompt_file="tiny:labels",
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:labels", split="distill[:2000]"),
        sampling=SamplingConfig(max_new_tokens=64, temperature=0.15),
        test=DataConfig(path="tiny:labels", split="test[:300]"),
        test_sampling=SamplingConfig(max_new_tokens=16, thinking=False),
        rows_per_batch=16,
        train=TRAIN.model_copy(
            update={"learning_rate": 1e-2, "num_epochs": 3.0, "gradient_accumulation_steps": 1,
                    "gradient_checkpointing": False, "lora": LoraConfig(r=32, alpha=16)}
        ),
    ),
    "qwen3": Config(sampling=QWEN3_THINKING.model_copy(update={"max_new_tokens": 8192})),
    "qwen2.5": Config(
        teacher=ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto"),
    ),
}  # fmt: skip


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> dict[str, Any]:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Beside what every summary has: `reference` ("gold" or "teacher"), `cost`, what an answer of teacher and student takes,
    and for labels `labels`, per model accuracy per label, worst first, and the parse rate. Raises UserError for a prompt
    file, labels or models that are not there, NoData where nothing is asked or answered readably.
    """
    system = read_system_prompt(config.prompt_file)
    labels = read_labels(config.labels, system) if config.grader in ("auto", "label") else ()
    check_settings(config)
    with Run.open(directory, recipe="prompt", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        check_before(config, run=run, out={"student": student_path(config.out)}, example=STUDENT)
        run.watch.note(f"labels: {', '.join(labels)}" if labels else "no labels: answers are free text")
        data = with_gold(run, "data", pipeline.prompts("data", config.data), "" if config.test.path else config.gold)
        if not run.counts("data").kept:
            raise NoData("No data for prompt distillation")
        student, train = pipeline.fitted(
            config.student, config.train, teacher=config.teacher, new_tokens=config.sampling.max_new_tokens
        )
        test = pipeline.test_prompts(data, config.test, config.num_test)
        test = with_gold(run, "test", test, config.gold if config.test.path else "")
        prompts = pipeline.training_prompts(data, test)
        answers = asked_until_read(pipeline, config, prompts, system, labels)
        answered = step(run, "readable answers", "answered.jsonl", write_answered, prompts, *answers, labels=labels)
        pipeline.warn(dropped_warning(run.counts("readable answers")))
        step(run, "messages", "messages.jsonl", write_messages, answered)
        rows = pipeline.training_set(answered, None)
        thinking = config.test_sampling.thinking
        if config.rows_per_batch:
            tokens = tokens_per_batch(config.student, rows, num_rows=config.rows_per_batch, thinking=thinking)
            train = with_batches(train, tokens, config.train.gradient_accumulation_steps)
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        if not next(iter(test.open("rb")), b""):
            return pipeline.prove({}, test, config.test_sampling, grader=config.grader, measure_speed=False)
        return prove(
            pipeline,
            {
                "teacher": config.teacher,
                "base": untrained(config.student, student, train),
                "student": trained(out, student, train),
            },
            test,
            system=system,
            labels=labels,
            samplings=(config.sampling, config.test_sampling),
            grader=config.grader,
            measure_speed=config.measure,
        )


def check_settings(config: Config) -> None:
    """Raise UserError for what cannot be, before anything is written."""
    if not config.data.path:
        raise UserError("what is the teacher to be asked? give --data texts.txt (one per line) or any data set")
    if config.sampling.num_samples != 1 or config.test_sampling.num_samples != 1:
        raise UserError("prompt distillation learns one answer per text; leave num_samples at 1")


def asked_until_read(
    pipeline: Pipeline, config: Config, prompts: Path, system: str, labels: Sequence[str]
) -> list[Path]:
    """The teacher's answers to `prompts` under the system prompt, a file for each round of asking."""
    run, answers = pipeline.run, list[Path]()
    asked = step(
        run, "prompts with the rules", "rounds/0.prompts.jsonl", write_asked, prompts, system=system, labels=labels
    )
    # Greedy answers would come out the same again.
    retries = config.max_retries if config.sampling.temperature else 0
    for number in range(retries + 1):
        sampling = config.sampling.model_copy(update={"seed": config.sampling.seed + number})
        name = f"teacher answers, retry {number}" if number else "teacher answers"
        output = f"rounds/{number}.completions.jsonl"
        answers.append(pipeline.answers(name, config.teacher, asked, sampling, output=output))
        if number == retries:
            break
        name, output = f"to be asked again, {number + 1}", f"rounds/{number + 1}.prompts.jsonl"
        asked = step(run, name, output, write_unread, asked, answers[-1], labels=labels)
        if not run.counts(name).kept:
            break
    return answers


def with_gold(run: Run, name: str, prompts: Path, gold: str) -> Path:
    """The prompts with the gold answers of a file, where one is given."""
    return step(run, f"gold of {name}", f"{name}_gold.jsonl", write_gold, prompts, gold=gold) if gold else prompts
