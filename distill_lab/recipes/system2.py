"""System 2: a student learns to reason from reasoning traces, or from a teacher's worked solutions.

In: a data set of questions with traces (OmniThought, `{"question", "cot"}`, any adapter), filtered by verbosity (RV) and
difficulty (CD), of each question the best that a judge found right; or, with --relabel, questions that the teacher
solves. Out: a run directory as System 1's, with the share of answers that reason in several steps.

    distill system2 --preset tiny --run runs/reasons
    distill system2 --student Qwen/Qwen2.5-1.5B-Instruct --rv-min 0.6 --cd-min 0.6 --export data/omnithought_cot.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from distill_lab import config as settings
from distill_lab.chat import answer_text
from distill_lab.config import (
    QWEN3_THINKING,
    STEP_BY_STEP,
    DataConfig,
    EngineConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from distill_lab.data.traces import select_traces
from distill_lab.errors import NoData
from distill_lab.files.jsonl import read_jsonl, write_json
from distill_lab.pipeline import Pipeline, student_path, trained, untrained
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.progress import ProgressReporter
from distill_lab.run import Run
from distill_lab.training_data.reasoning import (
    add_instruction,
    final_answer_grader,
    has_thinking,
    reasoning_data,
    summary_prompts,
    threshold_note,
    with_summaries,
)
from distill_lab.training_data.training_set import instruction_row


class Config(settings.RecipeConfig):
    """Settings of a System 2 run."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """Solves the questions where relabel is on, writes the summaries, and is what the student is measured against."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct")
    """The model to train; before training it is the base student."""
    data: DataConfig = DataConfig(path="alibaba-pai/OmniThought", split="train[:2000]")
    """The questions, and their traces where relabel is off."""
    rv_min: Annotated[float, Field(ge=0, le=9)] = 0.6
    """Least reasoning verbosity of a trace: a share of the highest level, 9, or from above 1 on a level."""
    cd_min: Annotated[float, Field(ge=0, le=9)] = 0.6
    """Least cognitive difficulty of a trace, in the same way."""
    verified_only: bool = True
    """Leave out traces that a judge found wrong."""
    per_question: Annotated[int, Field(ge=0)] = 1
    """Most traces of one question, the best first (verified, verbosity nearest to difficulty, short); 0: all."""
    relabel: bool = False
    """The teacher writes the solutions; off: the data set's own traces are used."""
    instruction: str = STEP_BY_STEP
    """Stands after every question, for teacher and student alike, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096, temperature=0.8, top_p=0.9)
    """How the teacher samples solutions and summaries."""
    thinking: Literal["keep", "summarise", "drop"] = "keep"
    """keep: the student learns the thinking, in its think block, and the solution; summarise: the teacher writes each
    thinking again as a few short steps; drop: the solution alone, with whatever steps it has."""
    test: DataConfig = DataConfig(path="")
    """Questions the scores are taken on; without a path, num_test rows of the data are held out."""
    num_test: Annotated[int, Field(ge=0)] = 100
    """Held-out rows where no test data is given (at most a tenth of the rows); 0: no scores."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096)
    """How the models answer the test, greedy unless said otherwise; thinking: as the student learned it."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric, else math, where the final answers are
    known, else overlap."""
    engine: EngineConfig = EngineConfig()
    """What generates."""
    train: TrainConfig = TrainConfig(learning_rate=1e-5, max_length=4096)
    """How the student is trained."""
    measure: bool = True
    """Time teacher and student on the test questions."""
    export: str = ""
    """Also write the training rows as {instruction, input, output} to this .json file, the instruction to think included."""
    out: str = ""
    """Where the student goes; empty: student/ in the run directory."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:problems", split="distill[:8000]"),
        relabel=True,
        sampling=SamplingConfig(max_new_tokens=160, thinking=False),
        thinking="drop",
        test=DataConfig(path="tiny:problems", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=160),
        train=TrainConfig(
            num_epochs=6, learning_rate=4e-3, tokens_per_batch=2048, max_length=512, weight_decay=0.01, save_steps=0.2
        ),
    ),
    "qwen2.5": Config(out="distilled-qwen2.5-1.5b-cot"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-1.7B"),
        sampling=QWEN3_THINKING,
        test_sampling=QWEN3_THINKING,
        out="distilled-qwen3-1.7b-cot",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> dict[str, Any]:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Raises UserError `Unexpected OmniThought schema, please inspect omni[0]` and that row for data without questions and
    reasoning, NoData where no row is left, ModelError for a student that does not exist, all before anything is trained.
    """
    source = reasoning_data(config.data, answered=not config.relabel)
    with Run.open(directory, recipe="system2", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        out = {"student": student_path(config.out)} | ({"export": export_path(config.export)} if config.export else {})
        check_before(config, run=run, out=out, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.prompts("data", source)
        if not run.counts("data").kept:
            raise NoData("No data for System 2 distillation")
        student, train = pipeline.fitted(
            config.student, config.train, teacher=config.teacher, new_tokens=config.sampling.max_new_tokens
        )
        if not config.relabel:
            data = chosen_traces(run, config, data)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = asked(run, "questions", pipeline.training_prompts(data, test), config.instruction)
        test = asked(run, "test questions", test, config.instruction)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher solutions", config.teacher, prompts, config.sampling)
        rows = pipeline.training_set(prompts, completions, thinking="drop" if config.thinking == "drop" else "keep")
        if config.thinking == "summarise":
            rows = summarised(pipeline, config, rows)
        if config.export:
            run.stage("export", export_path(config.export), inputs={"rows": rows}, work=lambda path: export(rows, path))
        thinking = None if has_thinking(rows) else False
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        base = untrained(config.student, student, train)
        models = {"teacher": config.teacher, "base": base, "student": trained(out, student, train)}
        sampling = config.test_sampling
        if sampling.thinking is None:
            sampling = sampling.model_copy(update={"thinking": thinking})
        grader = final_answer_grader(test) if config.grader == "auto" else config.grader
        return pipeline.prove(models, test, sampling, grader=grader, measure_speed=config.measure, several_steps=True)


def chosen_traces(run: Run, config: Config, data: Path) -> Path:
    """The questions with the traces that pass the thresholds. Raises NoData where none does."""
    limits = {name: getattr(config, name) for name in ("rv_min", "cd_min", "verified_only", "per_question")}
    run.watch.note(threshold_note(config.rv_min, config.cd_min))
    traces = run.stage(
        "traces", "traces.jsonl", inputs={"data": data, **limits}, work=lambda path: select_traces(data, path, **limits)
    )
    if not run.counts("traces").kept:
        raise NoData(
            f"No data for System 2 distillation after filtering ({run.counts('traces')}); lower the thresholds"
        )
    return traces


def asked(run: Run, name: str, prompts: Path, instruction: str) -> Path:
    """The prompts with the instruction to think after each question."""
    return run.stage(
        name,
        f"{name.replace(' ', '_')}.jsonl",
        inputs={"prompts": prompts, "instruction": instruction},
        work=lambda path: add_instruction(prompts, path, instruction),
    )


def summarised(pipeline: Pipeline, config: Config, rows: Path) -> Path:
    """The training rows with the teacher's summary in place of each thinking."""
    prompts = pipeline.run.stage(
        "thinking to summarise", "thinking.jsonl", inputs={"rows": rows}, work=lambda path: summary_prompts(rows, path)
    )
    short = config.sampling.model_copy(update={"thinking": False, "num_samples": 1})
    summaries = pipeline.answers("summaries", config.teacher, prompts, short, output="summaries.jsonl")
    return pipeline.run.stage(
        "summarised rows",
        "train_summarised.jsonl",
        inputs={"rows": rows, "summaries": summaries},
        work=lambda path: with_summaries(rows, summaries, path),
    )


def export_path(export: str) -> str:
    """Where the exported rows go, seen from where the user stands."""
    return str(Path(export).expanduser().absolute())


def export(rows: Path, path: Path) -> None:
    """Write training rows as a JSON array of {instruction, input, output}, thinking in think tags."""
    pairs = ((row["prompt"], row["completion"][0]) for row in read_jsonl(rows))
    write_json(path, [instruction_row(asked, answer_text(a["content"], a.get("thinking"))) for asked, a in pairs])
