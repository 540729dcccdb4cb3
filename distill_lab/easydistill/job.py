"""Run EasyDistill 1.0's jobs that train: a JSON config -> answers in `labeled_path`, the student in `output_dir`.

    student = run("configs/kd_black_box_qwen_0_5b.json")

The lab's stages do the work, in the run directory `<output_dir>.run`; the same call resumes there. Answers in `labeled_path`
are kept and not generated again, except with `relabel`; missing answers are generated, and the file is written once,
completely. Only the answers are trained, not the prompts. `white_box.py` adds the teacher's probabilities to the loss of the
white-box jobs; `speckd.py` runs the job that trains a draft.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from distill_lab.activity import ProgressReporter
from distill_lab.chat import answer_text
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, TrainConfig
from distill_lab.data.records import Records
from distill_lab.data.sources import open_source
from distill_lab.easydistill.config import DRAFT_JOB, Job, read_job, read_json
from distill_lab.easydistill.server import first_model
from distill_lab.easydistill.speckd import (
    DraftJob,
    check_draft,
    read_draft_job,
    tell_rates,
    test_prompts,
    trained_draft,
    with_system_prompt,
)
from distill_lab.easydistill.training import longest_batches, max_length, train_config
from distill_lab.easydistill.white_box import (
    WhiteBoxJob,
    begin,
    check_white_box,
    is_white_box,
    read_white_box,
    with_probabilities,
)
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.jsonl import read_jsonl, write_json, write_jsonl
from distill_lab.generation.model_identity import model_inputs
from distill_lab.pipeline.draft_stages import draft_base
from distill_lab.pipeline.fitting import fit
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_model
from distill_lab.run import Run, fingerprint
from distill_lab.types import Completion, Counts, JsonObject, Message, Prompt

EXAMPLE = "Qwen/Qwen2.5-0.5B-Instruct"
API_KEY = "OPENAI_API_KEY"
RELABEL = "asked again"


def run(config: str | Path, *, relabel: bool = False, watch: ProgressReporter | None = None) -> Path:
    """Run the job in `config`, or resume it; return the student's directory.

    relabel: the teacher answers every instruction, and its answers replace those in `labeled_path`. Raises UserError
    (DataError, ModelError, NoData) for problems with the config, a file or a model, if possible before anything is
    written.
    """
    raw, path = read_json(Path(config)), Path(config)
    if raw.get("job_type") == DRAFT_JOB:
        job = read_draft_job(path, raw)
    else:
        job = read_white_box(path, raw) if is_white_box(raw) else read_job(path)
    _check(job, relabel)
    with (
        in_environment(job.api_key.get_secret_value()),
        Run.open(run_directory(job.out), recipe="easydistill", config=job.to_json(), watch=watch) as run,
    ):
        pipeline = Pipeline(run, engine=job.engine)
        run.watch.note(f"run directory {run.directory}")
        for note in job.notes:
            run.watch.note(note)
        if isinstance(job, DraftJob):
            return _draft(pipeline, job, relabel)
        if isinstance(job, WhiteBoxJob):
            begin(pipeline, job)
        teacher = None if job.teacher is None else _named(job.teacher, job.engine)
        student, fitted = fit(
            run,
            job.student,
            longest_batches(job.training, seed=job.seed),
            job.engine,
            teacher=teacher,
            new_tokens=job.sampling.max_new_tokens,
        )
        answers = None
        prompts = pipeline.prompts("prompts", DataConfig(path=job.instructions or str(job.labeled))).path
        if teacher is not None:
            answers = _teacher_answers(pipeline, job, teacher, prompts, relabel)
        rows = pipeline.training_set(prompts, answers)
        train, thinking = _settings(run, job, rows, fitted)
        if isinstance(job, WhiteBoxJob):
            train = with_probabilities(pipeline, job, student, teacher, prompts, rows, train, thinking)
        return pipeline.student(student, rows, train, output=str(job.out.absolute()), thinking=thinking)


def _draft(pipeline: Pipeline, job: DraftJob, relabel: bool) -> Path:
    """The draft of a draft job, trained and measured."""
    assert job.teacher is not None, "a draft job has a target"
    config = job.recipe(job.teacher, job.student)
    config = config.model_copy(update={"student": draft_base(pipeline, config)})
    longest, new_tokens = longest_batches(job.training, seed=job.seed), job.sampling.max_new_tokens
    student, fitted = fit(pipeline.run, config.student, longest, job.engine, teacher=job.teacher, new_tokens=new_tokens)
    prompts = pipeline.prompts("prompts", DataConfig(path=job.instructions or "")).path
    test = test_prompts(pipeline, job, prompts)
    answers = _teacher_answers(pipeline, job, job.teacher, prompts, relabel)
    rows = pipeline.training_set(with_system_prompt(pipeline, job, "prompts with the system prompt", prompts), answers)
    train, thinking = _settings(pipeline.run, job, rows, fitted)
    out, train = trained_draft(pipeline, job, job.teacher, student, rows, train, thinking)
    tell_rates(pipeline, config, student, train, out, test)
    return out


def run_directory(out: str | Path) -> Path:
    """The run directory of a job with this `output_dir`: `<output_dir>.run`."""
    path = Path(out).expanduser().absolute()
    return path.with_name(f"{path.name}.run")


def training_summary(out: str | Path) -> str:
    """The training data and validation losses of the job with this `output_dir`; "" if no job has finished."""
    figures = run_directory(out) / "training.json"
    if not figures.is_file():
        return ""
    try:
        return _training_text(figures)
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return ""  # only for people; the student does not depend on it


def _training_text(figures: Path) -> str:
    made = read_record(figures)
    dropped = "".join(f", {number} dropped: {reason}" for reason, number in made["dropped"].items())
    text = f"{made['num_rows']} rows{dropped}, {made['steps']} steps, {made['seconds']:.0f} s of training"
    if made["validation_loss_after"] is not None:
        before, after = made["validation_loss_before"], made["validation_loss_after"]
        text += f"\nValidation loss: {before:.3f} before training, {after:.3f} after"
    return text


def _check(job: Job, relabel: bool) -> None:
    """Check everything that can be checked before the first hour of work. Raises UserError."""
    if relabel and job.teacher is None:
        raise UserError(f"{job.path}: this job has no teacher; remove --relabel")
    if job.labeled.suffix not in (".json", ".jsonl"):
        raise UserError(f"{job.path}: dataset.labeled_path: {job.labeled} must end in .json or .jsonl")
    if Path.cwd().is_relative_to(job.out.absolute()):
        raise UserError(f"{job.path}: training.output_dir: give the student a separate directory")
    source = job.instructions or str(job.labeled)
    if next(iter(Records(DataConfig(path=source))), None) is None:
        raise NoData(f"{source}: no rows to distill; prepare the data first")
    check_model(job.student, role="student", example=EXAMPLE)
    if isinstance(job, WhiteBoxJob):
        check_white_box(job)
    if isinstance(job, DraftJob):
        check_draft(job)
    from distill_lab.models.loading import load_tokenizer

    if not load_tokenizer(job.student).chat_template:
        raise UserError(
            f"{job.student.model} has no chat template, and EasyDistill's templates do not replace it; use an instruct "
            f"model ({EXAMPLE}) or set its chat_template"
        )
    manifest = _read_record(run_directory(job.out) / "run.json")
    if job.out.exists() and "student" not in manifest.get("stages", {}):
        raise UserError(
            f"{job.out} already exists and was not created by this run; remove it or choose another training.output_dir"
        )


def _named(teacher: ModelConfig, engine: EngineConfig) -> ModelConfig:
    """The teacher; if the config does not name it, with the name from its server."""
    if teacher.model != "openai:":
        return teacher
    return ModelConfig(model=f"openai:{first_model(engine.base_url)}")


def _teacher_answers(pipeline: Pipeline, job: Job, teacher: ModelConfig, prompts: Path, relabel: bool) -> Path:
    """Answers to `prompts`: those in `labeled_path`, and the teacher's for the rest; adds the new ones to the file."""
    run, labeled = pipeline.run, job.labeled
    # Answers written by this run do not count as prepared the next time; otherwise finished stages would run again.
    key = fingerprint({"prompts": prompts, "teacher": teacher.model_dump(), "sampling": job.sampling.model_dump()})
    record, now = _read_record(run.path("labelled.json")), fingerprint(labeled)
    ours = record.get("key") == key and record.get("after") == now
    before = RELABEL if relabel else record["before"] if ours else now
    source = labeled if labeled.exists() and not relabel else None
    prepared = run.stage(
        "prepared answers",
        "prepared.jsonl",
        inputs={"prompts": prompts, "before": before},
        work=lambda path: _prepared(prompts, source, path),
    ).path
    missing = run.stage(
        "prompts without an answer",
        "missing.jsonl",
        inputs={"prompts": prompts, "prepared": prepared, "system": job.system_prompt},
        work=lambda path: _missing(prompts, prepared, job.system_prompt, path),
    )
    completions = None
    if missing.kept:
        completions = pipeline.answers("teacher answers", teacher, missing.path, job.sampling)
    elif not ours:
        run.watch.note(f"{labeled} already has every answer; the teacher is not used (--relabel generates new answers)")
    answers = run.stage(
        "answers",
        "answers.jsonl",
        inputs={"prepared": prepared, "completions": completions},
        work=lambda path: _join([prepared, completions] if completions else [prepared], path),
    ).path
    if completions and not (ours and record["before"] == before):
        if fingerprint(labeled) != now:
            raise UserError(f"{labeled} was changed while the teacher answered; run this again, no answer is lost")
        errors = _write_labeled(prompts, answers, labeled, relabel, job.labeled_row)
        after = fingerprint(labeled) if not errors else None  # failed answers are generated again the next time
        write_json(run.path("labelled.json"), {"key": key, "before": before, "after": after})
        run.watch.note(f"the answers are in {labeled}")
    return answers


def _read_record(path: Path) -> dict[str, Any]:
    """A JSON object that this run wrote; empty if it has not written any."""
    try:
        return read_record(path) if path.exists() else {}
    except DataError as error:
        raise UserError(f"{error}; remove it") from None


def _labeled_rows(labeled: Path) -> Iterator[tuple[str, JsonObject, Message | None]]:
    """Yield (question, original row, answer) for each row."""
    raw = open_source(str(labeled)).rows("train", 0, None)
    for record, row in zip(Records(DataConfig(path=str(labeled))), raw, strict=True):
        completion = record.completion or []
        if len(completion) > 1:
            reason = f"row {row.index}: the answer has several turns; train on such rows with kd_black_box_train_only"
            raise DataError(str(labeled), row.line, reason)
        answered = completion and completion[0]["content"].strip()
        yield _question(record.prompt), dict(row.fields or {}), completion[0] if answered else None


def _question(prompt: Prompt) -> str:
    return json.dumps(prompt.messages)


def _prompts(path: Path) -> Iterator[Prompt]:
    return map(Prompt.from_json, read_jsonl(path))


def _prepared(prompts: Path, labeled: Path | None, path: Path) -> None:
    """Completions from the answers in `labeled`; repeated instructions take their answers in order."""
    found: dict[str, deque[JsonObject]] = {}
    for index, (question, _, answer) in enumerate(_labeled_rows(labeled) if labeled else ()):
        if answer is not None:
            completion = Completion("", 0, answer["content"], answer.get("thinking"), "stop", 0)
            found.setdefault(question, deque()).append({**completion.to_json(), "row": index})
    waiting = ((prompt, found.get(_question(prompt))) for prompt in _prompts(prompts))
    write_jsonl(path, (answers.popleft() | {"id": prompt.id} for prompt, answers in waiting if answers))


def _missing(prompts: Path, prepared: Path, system_prompt: str, path: Path) -> Counts:
    answered = {row["id"] for row in read_jsonl(prepared)}
    system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    rows = []
    for prompt in _prompts(prompts):
        if prompt.id not in answered:
            own = prompt.messages[0]["role"] == "system"
            rows.append(Prompt(prompt.id, prompt.messages if own else [*system, *prompt.messages]).to_json())
    write_jsonl(path, rows)
    return Counts(len(rows) + len(answered), len(rows), {"answered already": len(answered)})


def _join(parts: Sequence[Path], path: Path) -> None:
    write_jsonl(path, chain.from_iterable(map(read_jsonl, parts)))


def _write_labeled(
    prompts: Path,
    answers: Path,
    labeled: Path,
    relabel: bool,
    row_of: Callable[[Sequence[Message], str], JsonObject],
) -> int:
    """Write every answer to `labeled` in the order of the prompts; return how many prompts failed with an error.

    Existing rows stay unchanged: those that were used, and, at the end, those for other instructions.
    """
    old = list(_labeled_rows(labeled)) if labeled.exists() else []
    found = {row["id"]: row for row in read_jsonl(answers)}
    rows, used, questions, errors = [], set[int](), set[str](), 0
    for prompt in _prompts(prompts):
        questions.add(_question(prompt))
        answer = Completion.from_json(found[prompt.id])
        errors += answer.finish_reason == "error"
        if "row" in found[prompt.id]:
            used.add(found[prompt.id]["row"])
            rows.append(old[found[prompt.id]["row"]][1])
        elif answer.finish_reason == "stop" and answer.content.strip():
            rows.append(row_of(prompt.messages, answer_text(answer.content, answer.thinking)))
    for index, (question, row, answer) in enumerate(old):
        if question not in questions or (index not in used and answer is not None and not relabel):
            rows.append(row)
    write_jsonl(labeled, rows) if labeled.suffix == ".jsonl" else write_json(labeled, rows)
    return errors


def _settings(run: Run, job: Job, rows: Path, fitted: TrainConfig) -> tuple[TrainConfig, bool | None]:
    """The student's training settings, computed once from the measured row lengths and the config's `training`."""
    inputs = {"rows": rows, "training": job.training.model_dump(), "seed": job.seed, **model_inputs(job.student)}

    def work(path: Path) -> None:
        from distill_lab.models.loading import load_tokenizer
        from distill_lab.train.rows import read_rows

        # If no answer has thinking, the student is trained and used with a closed think block.
        thinks = any("thinking" in message for row in read_jsonl(rows) for message in row["completion"])
        thinking = None if thinks else False
        read = read_rows(
            rows,
            load_tokenizer(job.student),
            max_length=max_length(job.training),
            validation_fraction=0,
            seed=job.seed,
            thinking=thinking,
        )
        train, note = train_config(job.training, [len(row) for row in read.training], seed=job.seed, fitted=fitted)
        run.watch.note(note)
        write_json(path, {"train": train.model_dump(), "thinking": thinking})

    path = run.stage("training settings", "training_settings.json", inputs=inputs, work=work).path
    settings = json.loads(path.read_text(encoding="utf-8"))
    return TrainConfig.model_validate(settings["train"]), settings["thinking"]


@contextmanager
def in_environment(key: str) -> Iterator[None]:
    """Set the config's API key in the environment during the run, where the engine reads it; it is never written."""
    old = os.environ.get(API_KEY)
    if key:
        os.environ[API_KEY] = key
    try:
        yield
    finally:
        if key:
            os.environ.pop(API_KEY)
            if old is not None:
                os.environ[API_KEY] = old
