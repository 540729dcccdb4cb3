"""Test the student of an EasyDistill job beside its teacher and the base student: scores, speeds and page, in the job's run.

    test = Test(data=DataConfig(path="tiny:instructions", split="test[:100]"))
    summary = prove("configs/kd_black_box_qwen_0_5b.json", test)

EasyDistill's configs have no test, so its rows are given here. The job itself is run first, or resumed; summary.json,
report.html and report.md are then in `<output_dir>.run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.activity import ProgressReporter
from distill_lab.config import Config, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data.contamination import question_text
from distill_lab.data.traces import META, select_traces
from distill_lab.easydistill.config import Job, read_job
from distill_lab.easydistill.job import EXAMPLE, run, run_directory
from distill_lab.easydistill.training import longest_batches
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.summary_file import Summary
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.choose_grader import final_answer_grader
from distill_lab.pipeline.fitting import base_model_config, fit, trained_model_config
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_grader, check_model
from distill_lab.report.run_student import fitted as plan_of
from distill_lab.run import Run, read_manifest
from distill_lab.training_data.reasoning import reasoning_data
from distill_lab.types import Counts, JsonObject

AUTO = "auto"
ALSO_TRAINED = "also in the training data"


class Test(Config):
    """What the student of a job is tested on, and how."""

    __test__ = False  # for pytest: not a test

    data: DataConfig = DataConfig(path="")
    """Test rows; without a path the student is not tested. Rows that the training data has as well are left out."""
    teacher: str = ""
    """The model to compare with; empty: the config's teacher."""
    instruction: str = ""
    """Text after every question, as in the training data; with one, answers are also counted that reason in steps."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum tokens per answer, including thinking."""
    grader: str = AUTO
    """A file name in distill_lab/grading/graders, or judge:MODEL; auto: exact if every row has a gold answer, else overlap;
    with an instruction, numeric or math if the final answers are known."""
    measure: bool = True
    """Measure the speed of teacher and student."""


def prove(
    config: str | Path, test: Test, *, relabel: bool = False, typed: str = "", watch: ProgressReporter | None = None
) -> Summary:
    """Run or resume the job in `config`, test its student, and return the summary.

    typed: the command that does this, for the page. Raises UserError, before the job begins, for a test that cannot be.
    """
    job = read_job(Path(config))
    teacher = _teacher(job, test)
    check_grader(test.grader, job.engine)
    student = run(config, relabel=relabel, watch=watch)
    directory = run_directory(job.out)
    train, thinking = _trained(directory)
    made = _record(job, test, teacher, train, thinking, typed)
    with Run.open(directory, recipe="easydistill", config=made, watch=watch) as opened:
        pipeline = Pipeline(opened, engine=job.engine)
        fitted, _ = fit(
            opened, job.student, longest_batches(job.training, seed=job.seed), job.engine,
            teacher=teacher, new_tokens=test.max_new_tokens,
        )  # fmt: skip
        _record_training(opened, train)
        prompts = _unseen(pipeline, test, opened.path("prompts.jsonl"))
        grader = test.grader
        if grader == AUTO and test.instruction:
            grader = final_answer_grader(prompts)
        models = {
            "teacher": teacher,
            "base": base_model_config(job.student, fitted, train),
            "student": trained_model_config(student, fitted, train),
        }
        sampling = SamplingConfig(max_new_tokens=test.max_new_tokens, thinking=thinking)
        return evaluate_models(
            pipeline, ask_alike(models, sampling), prompts, grader=grader, measure_speed=test.measure,
            several_steps=bool(test.instruction),
        )  # fmt: skip


def _teacher(job: Job, test: Test) -> ModelConfig:
    if test.teacher:
        teacher = ModelConfig(model=test.teacher, quantization="auto")
        check_model(teacher, role="teacher", example="Qwen/Qwen2.5-7B-Instruct")
        return teacher
    if job.teacher is None or job.teacher.model == "openai:":
        raise UserError(f"{job.path} names no teacher to compare with; give --teacher, for example {EXAMPLE}")
    return job.teacher


def _trained(directory: Path) -> tuple[TrainConfig, bool | None]:
    """How the job trained its student, and whether that thinks."""
    settings = json.loads((directory / "training_settings.json").read_text(encoding="utf-8"))
    return TrainConfig.model_validate(settings["train"]), settings["thinking"]


def _record(
    job: Job, test: Test, teacher: ModelConfig, train: TrainConfig, thinking: bool | None, typed: str
) -> JsonObject:
    """The config in run.json: the job's, with what a page or a chat wants to know of any run."""
    source = job.labeled.with_suffix(".source.json"), Path(job.instructions or job.labeled).with_suffix(".source.json")
    made = next((json.loads(path.read_text(encoding="utf-8")) for path in source if path.is_file()), {})
    return {
        **job.to_json(),
        "teacher": teacher.model_dump(),
        "data": {"path": made.get("dataset", str(job.labeled)), "split": made.get("slice", "")},
        "train": train.model_dump(),
        "test": test.data.model_dump(),
        "test_sampling": {"max_new_tokens": test.max_new_tokens, "thinking": thinking},
        "instruction": test.instruction,
        "grader": test.grader,
        "measure": test.measure,
        **({"typed": typed} if typed else {}),
    }


def _record_training(opened: Run, train: TrainConfig) -> None:
    """Record how the student was trained where reports look for it; `fit` only records what the machine can hold."""
    settings = train.model_dump()
    plan = plan_of(read_manifest(opened.path("run.json")))
    if plan.get("train") != settings:
        opened.record(f"training {json.dumps(settings, sort_keys=True)}", {**plan, "train": settings})


def _unseen(pipeline: Pipeline, test: Test, trained: Path) -> Path:
    """The test prompts, with the instruction, that are not among those trained on. Raises NoData if none is left."""
    data = reasoning_data(test.data, answered=False) if test.instruction else test.data
    found = pipeline.prompts("test", data).path
    if test.instruction:
        first = next(read_jsonl(found), {})
        if META in (first.get("meta") or {}):  # of a question's traces the best one is the reference
            found = pipeline.step("test solutions", "test_solutions.jsonl", select_traces, found).path
        found = pipeline.with_instruction("test questions", found, test.instruction)
    kept = pipeline.step("unseen test", "unseen.jsonl", leave_out, found, trained)
    if not kept.kept:
        raise NoData(f"no test row is left ({kept.counts}); give rows that are not in the training data")
    return kept.path


def leave_out(test: Path, trained: Path, path: Path) -> Counts:
    """Write the test prompts whose conversation no prompt of `trained` has."""
    known = {question_text(row["messages"]) for row in read_jsonl(trained)}
    number = [0, 0]

    def kept() -> Iterator[JsonObject]:
        for row in read_jsonl(test):
            number[0] += 1
            if question_text(row["messages"]) not in known:
                number[1] += 1
                yield row

    write_jsonl(path, kept())
    dropped = number[0] - number[1]
    return Counts(number[0], number[1], {ALSO_TRAINED: dropped} if dropped else {})
