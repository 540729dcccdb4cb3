"""The whole of an export: check the options, merge, write, load again, compare, card, and put it in its place.

files = export_student("gguf", find_source("runs/first"), Path("runs/first/export/gguf"), Options(), num_prompts=20)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from distill_lab import activity
from distill_lab.config import EngineConfig
from distill_lab.errors import UserError
from distill_lab.export import Exported, Job, Options, load_target
from distill_lab.export._check import (
    Check,
    answers,
    check_prompts,
    check_sampling,
    compare,
    exported_json,
    same_next_tokens,
    same_tokens,
)
from distill_lab.export._source import Source, plain_folder
from distill_lab.files.claims import claim
from distill_lab.files.jsonl import write_json
from distill_lab.files.outputs import PARTIAL, remove_output, remove_work, work_folder
from distill_lab.generation.model_identity import model_inputs, shown_name
from distill_lab.models.names import resolve
from distill_lab.report.model_card import ExportRow, read_exports, write_card, write_run_card
from distill_lab.types import Completion, Prompt

NOT_IN_KEY = ("private", "dry_run", "repo")
"""Options that do not affect the files."""
ENOUGH = 0.95
"""Share of answers that have to be the same for an export to count as the student."""
Note = Callable[[str], None]


def export_student(
    target: str,
    source: Source,
    out: Path,
    options: Options,
    *,
    num_prompts: int,
    overwrite: bool = False,
    on_note: Note = lambda text: None,
) -> list[ExportRow]:
    """Write the student to `out` as `target`; returns the entries of export.json. The same call again does nothing.

    num_prompts: to compare on; 0: no check. Raises UserError for options, models and places that do not work, before
    anything is written.
    """
    module = load_target(target)
    module.check(options)
    location = Path(resolve(source.model.model))
    summary = source.run / "summary.json" if source.run else None
    settings = {name: value for name, value in asdict(options).items() if name not in NOT_IN_KEY}
    inputs = {"target": target, "options": settings, "num_prompts": num_prompts, **model_inputs(source.model)}
    holding = claim(
        out,
        "export",
        inputs={**inputs, "summary": summary if summary and summary.is_file() else None},
        files=[out],
        reads=[location] if location.exists() else [],
        shown={"model": shown_name(source.model)},
        overwrite=overwrite,
    )
    with holding as claimed:
        if claimed.done:
            on_note(f"{out} was already exported from the same student; there is nothing to do")
        else:
            _write(module, source, out, options, num_prompts, on_note)
    rows = read_exports(out)
    if source.run:
        write_run_card(source.run)
    if publish := getattr(module, "publish", None):
        for line in publish(out, options, overwrite=overwrite):
            on_note(line)
    return rows


def _write(module: ModuleType, source: Source, out: Path, options: Options, num_prompts: int, on_note: Note) -> None:
    work = work_folder(out)
    partial = work / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    folder = plain_folder(source, work)
    found: list[Exported] = module.export(Job(source, folder, partial, options))
    checks = _checks(found, source, folder, num_prompts, partial / "check", on_note)
    rows = [exported_json(each, checks.get(each.path), partial) for each in found]
    write_json(partial / "export.json", {"files": rows})
    kind = found[0].kind
    write_card(partial, source.run, model=source.model.model, kind=kind, exports=rows)
    for each in found:
        for note in each.notes:
            on_note(note)
    remove_output(out)
    partial.rename(out)
    remove_work(out)


def _checks(
    found: Sequence[Exported], source: Source, folder: Path, number: int, place: Path, on_note: Note
) -> Mapping[Path, Check]:
    """The check of every file that can be loaded again."""
    opened = [each for each in found if each.open is not None]
    if not number or not opened:
        return {}
    from distill_lab.device import memory_returned
    from distill_lab.generation.engines.transformers import load
    from distill_lab.models.loading import with_fp32_on_cpu

    prompts, sampling = check_prompts(source, number), check_sampling(source)
    with memory_returned(), activity.doing("answers of the student"):
        student = load(with_fp32_on_cpu(source.model), EngineConfig(engine="transformers"))
        tokenizer, expected = student.io.tokenizer, answers(student, prompts, sampling)
        del student
    checks: dict[Path, Check] = {}
    for each in opened:
        assert each.open is not None
        with memory_returned(), activity.doing(f"checking {each.path.name}"):
            engine = each.open(tokenizer)
            given = answers(engine, prompts, sampling)
            alike = same_tokens(engine, prompts, sampling)
            choices = same_next_tokens(engine, prompts, expected, sampling)
            del engine
        checks[each.path] = check = compare(
            source, prompts, expected, given, loaded_with=each.loaded_with, folder=place / each.path.stem,
            tokenized_alike=alike, next_tokens=choices,
        )  # fmt: skip
        _tell(each, check, given, prompts, on_note)
    return checks


def _tell(
    exported: Exported, check: Check, given: Mapping[str, Completion], prompts: Sequence[Prompt], on_note: Note
) -> None:
    name = exported.path.name
    on_note(
        f"{name}, loaded with {check.loaded_with}: {check.same} of {check.n} greedy answers are the student's; "
        f"{check.shared:.1%} of the text before the first difference"
    )
    if check.next_tokens:
        on_note(
            f"{name}: {check.next_tokens_same} of {check.next_tokens} tokens of the student's answers are its first "
            f"choice, too, after the same text ({check.next_tokens_same / check.next_tokens:.1%})"
        )
    if check.score is not None and check.student_score is not None:
        on_note(
            f"{name}: score {check.score:.1%}, the student {check.student_score:.1%} on the same prompts ({check.grader})"
        )
    if check.tokenized_alike is not None and check.tokenized_alike < check.n:
        on_note(
            f"{name}: {check.n - check.tokenized_alike} of {check.n} prompts become other tokens there than in training"
        )
    failed = [row for row in given.values() if row.finish_reason == "error"]
    if len(failed) == len(prompts):
        raise UserError(f"{name} cannot be used: {failed[0].error}")
    if check.agreement < ENOUGH:
        on_note(f"{name}: fewer than {ENOUGH:.0%} of the answers agree; a type with more bits is closer to the student")
