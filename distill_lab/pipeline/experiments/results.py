"""The result of an experiment from its graded answers: variants with figures, differences, conclusion, examples.

result = make_result(experiment, options, arms, graded, summaries, folder, prompts)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from distill_lab.config import EngineConfig
from distill_lab.data.records import Slice
from distill_lab.errors import UserError
from distill_lab.evaluation.conclusion import conclude, limits, next_steps
from distill_lab.evaluation.eval_rows import first_samples
from distill_lab.evaluation.experiment import (
    Difference,
    Example,
    ExperimentResult,
    FailureCounts,
    OnPrompts,
    VariantResult,
)
from distill_lab.evaluation.experiment_ratings import rate_all
from distill_lab.evaluation.failures import count_kinds, counted, find_failures
from distill_lab.evaluation.judged_failures import judge_failures
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.variants import (
    SCORE,
    STEPS,
    check_same_questions,
    difference,
    reached,
    telling_examples,
    values,
)
from distill_lab.files.jsonl import write_jsonl
from distill_lab.formatting import seconds_text
from distill_lab.generation.prices import money
from distill_lab.grading.graders import Metric
from distill_lab.pipeline.experiments.arms import Arm, Options, described, unused_students
from distill_lab.pipeline.experiments.definition import Experiment, PromptsConfig
from distill_lab.pipeline.experiments.work import variant_work

NAMES = ("teacher", "base", "student")
STUDENTS = "students"
FAILED, REPLIES = "failed.jsonl", "failed.judge.jsonl"
BASE = "the base student"


@dataclass(frozen=True)
class Graded:
    """A variant on one set of prompts."""

    files: Mapping[str, Path]
    """Model -> eval file, several trainings merged."""
    metric: Metric
    by_seed: tuple[float, ...]
    overlap: int
    instruction: str
    """What followed every prompt."""


Answers = Mapping[str, Mapping[str, Graded]]
"""Variant -> set of prompts -> its graded answers."""


def make_result(
    experiment: Experiment,
    options: Options,
    arms: Sequence[Arm],
    graded: Answers,
    summaries: Mapping[str, Summary],
    folder: Path,
    prompts: Sequence[PromptsConfig],
    note: Callable[[str], None],
) -> ExperimentResult:
    """Everything that experiment.json holds. summaries: by the arms' keys. folder: of all experiments. note: receives what
    a judge of failures costs.

    Raises UserError if variants cannot be compared.
    """
    check_comparable(graded)
    place = folder / experiment.name
    failures: dict[str, list[FailureCounts]] = {}
    if "failures" in experiment.shows:
        failures = find_all_failures(
            {arm.variant.name: arm.config.engine for arm in arms}, graded, place, options, note
        )
    variants = [
        _variant(list(group), graded[name], summaries, folder, experiment, failures.get(name, ()))
        for name, group in groupby(arms, key=lambda arm: arm.variant.name)
    ]
    differences = _differences(experiment, graded)
    result = ExperimentResult(
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        axis=experiment.axis,
        ordered=experiment.ordered,
        shows=experiment.shows,
        preset=options.preset,
        setup=tuple(_setup(arms, options, prompts)),
        seeds=options.seeds,
        variants=tuple(variants),
        differences=tuple(differences),
        conclusion=tuple(_conclusion(experiment, differences, variants)),
        next_steps=tuple(next_steps(differences, variants, ordered=experiment.ordered)),
        notes=(*_notes(experiment, variants, differences, options), *same_rows(arms, variants)),
        examples=tuple(_examples(graded)),
        answers=_files(arms, graded, place),
    )
    return dataclasses.replace(result, ratings=rate_all(result, place))


def _files(arms: Sequence[Arm], graded: Answers, place: Path) -> dict[str, dict[str, str]]:
    """See `ExperimentResult.answers`."""
    found: dict[str, dict[str, str]] = {}
    first = next(iter(graded.values()))
    for prompts in first:
        files = first[prompts].files
        asked = [(arm.config, graded[arm.variant.name][prompts].instruction) for arm in arms]
        teachers = [(config.teacher, config.test_sampling, instruction) for config, instruction in asked]
        bases = [(config.student, config.test_sampling, instruction) for config, instruction in asked]
        alike = [("teacher", teachers.count(teachers[0]) == len(arms)), ("base", bases.count(bases[0]) == len(arms))]
        paths = {model: files[model] for model, same in alike if same and model in files}
        paths |= {name: each[prompts].files["student"] for name, each in graded.items()}
        found[prompts] = {label: path.relative_to(place).as_posix() for label, path in paths.items()}
    return found


def _variant(
    arms: list[Arm],
    graded: Mapping[str, Graded],
    summaries: Mapping[str, Summary],
    folder: Path,
    experiment: Experiment,
    failures: Sequence[FailureCounts],
) -> VariantResult:
    first, summary = arms[0], summaries[arms[0].key]
    steps = "steps" in experiment.shows
    student = summary.models["student"]
    work = variant_work(folder / STUDENTS / first.key, summary)
    return VariantResult(
        name=first.variant.name,
        value=first.variant.value,
        about=_about(first),
        runs=tuple(dict.fromkeys(f"{STUDENTS}/{arm.key}" for arm in arms)),
        rows=work.rows,
        steps=work.steps,
        train_seconds=work.train_seconds,
        losses=work.losses,
        teacher=work.teacher,
        num_parameters=student.num_parameters,
        tokens_per_s=student.tokens_per_s,
        latency_p50_s=student.latency_p50_s,
        latency_p95_s=student.latency_p95_s,
        latency_tokens=student.latency_tokens,
        on=tuple(
            OnPrompts(
                prompts=name,
                metric=each.metric,
                models={model: reached(path, steps=steps) for model, path in each.files.items()},
                by_seed=each.by_seed,
                overlap=each.overlap,
                instruction=each.instruction,
            )
            for name, each in graded.items()
        ),
        failures=tuple(failures),
    )


def _about(arm: Arm) -> str:
    """The settings that are a variant's own."""

    def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key} {value}"

    parts = [f"recipe {arm.variant.recipe}"] if arm.variant.recipe else []
    parts += list(flat(arm.variant.settings))
    if arm.variant.instruction is not None:
        parts.append(f"instruction {arm.variant.instruction!r}")
    if arm.cut:
        parts.append(f"layers {', '.join(map(str, arm.cut.layers))} of {arm.cut.model}")
    return "; ".join(parts)


def find_all_failures(
    engines: Mapping[str, EngineConfig], graded: Answers, place: Path, options: Options, note: Callable[[str], None]
) -> dict[str, list[FailureCounts]]:
    """Variant -> kinds of failures on each set of prompts; the failed answers of all variants go to failed.jsonl."""
    counts: dict[str, list[FailureCounts]] = {}
    lines: list[dict[str, object]] = []
    for variant, on in graded.items():
        for name, each in on.items():
            student, teacher = each.files["student"], each.files.get("teacher")
            found = find_failures(student, teacher, graded=not each.metric.similarity)
            rows = {row.id: row for row in counted(student)}
            taught = {row.id: row for row in first_samples(teacher)} if teacher else {}
            judged: dict[str, tuple[str, ...]] = {}
            if options.judge:
                failed = {key: (rows[key], taught.get(key)) for key in found}
                judged = judge_failures(options.judge, failed, engines[variant], replies=place / REPLIES, on_note=note)
            found |= judged
            for key, kinds in found.items():
                answer = taught.get(key)
                lines.append(
                    {
                        "variant": variant, "prompts": name, "id": key, "kinds": list(kinds),
                        "by": "judge" if key in judged else "rules", "prompt": rows[key].text, "gold": rows[key].answer,
                        "teacher": answer.output if answer else None, "student": rows[key].output,
                    }
                )  # fmt: skip
            counts.setdefault(variant, []).append(
                FailureCounts(
                    prompts=name,
                    answers=len(rows),
                    failed=len(found),
                    kinds=count_kinds(found),
                    judged_by=options.judge or "rules",
                )
            )
    write_jsonl(place / FAILED, lines)
    return counts


def _differences(experiment: Experiment, graded: Answers) -> list[Difference]:
    """Between the variants, and with `baseline` between each student and its base, on every set of prompts."""
    wanted = list(_wanted(experiment, graded))
    return [
        difference(
            first, second, prompts=prompts, measure=measure, similarity=similarity and measure == SCORE,
            comparisons=len(wanted),
        )
        for prompts, measure, similarity, first, second in wanted
    ]  # fmt: skip


Column = tuple[str, Mapping[str, float]]


def check_comparable(graded: Answers) -> None:
    """Raise UserError unless all variants were asked and graded alike on each set of prompts."""
    for prompts in next(iter(graded.values())):
        grades = {name: each[prompts].metric.name for name, each in graded.items()}
        if len(set(grades.values())) > 1:
            told = ", ".join(f"{name} by {metric}" for name, metric in grades.items())
            raise UserError(
                f"the variants are graded differently on the prompts {prompts} ({told}), so they cannot be compared; name "
                "one `grader` for all"
            )
        check_same_questions(
            prompts,
            {name: (each[prompts].files["student"], each[prompts].instruction) for name, each in graded.items()},
        )


def _wanted(experiment: Experiment, graded: Answers) -> Iterator[tuple[str, str, bool, Column, Column]]:
    names = list(graded)
    measures = [SCORE, *([STEPS] if "steps" in experiment.shows else [])]
    for prompts in graded[names[0]]:
        similarity = graded[names[0]][prompts].metric.similarity
        for measure in measures:
            columns: list[Column] = [(name, values(graded[name][prompts].files["student"], measure)) for name in names]
            for first, second in _pairs(columns, ordered=experiment.ordered):
                yield prompts, measure, similarity, first, second
    if not experiment.baseline:
        return
    for prompts in graded[names[0]]:
        for name in names:
            files = graded[name][prompts].files
            base = (f"{BASE} ({name})", values(files["base"]))
            yield prompts, SCORE, graded[name][prompts].metric.similarity, base, (name, values(files["student"]))


def _pairs(columns: list[Column], *, ordered: bool) -> Iterator[tuple[Column, Column]]:
    """Neighbors and the whole range, or each with each."""
    if ordered:
        yield from pairwise(columns)
        if len(columns) > 2:
            yield columns[0], columns[-1]
        return
    for place, first in enumerate(columns):
        for second in columns[place + 1 :]:
            yield first, second


def _conclusion(experiment: Experiment, differences: list[Difference], variants: list[VariantResult]) -> Iterator[str]:
    own = [each for each in differences if not each.first.startswith(BASE)]
    yield from conclude(own, ordered=experiment.ordered)
    yield from conclude([each for each in differences if each not in own], ordered=False)
    if "teacher's work" in experiment.shows:
        yield from map(_teacher_text, (variant for variant in variants if variant.teacher))
    timed = [variant for variant in variants if variant.latency_p50_s is not None]
    if "speed" in experiment.shows and timed:
        latencies = ", ".join(f"{each.name} {seconds_text(each.latency_p50_s or 0.0)}" for each in timed)
        yield f"Median latency of one answer of {timed[0].latency_tokens} tokens: {latencies}."
    for variant in variants:
        whose = f" of {variant.name}" if len(variants) > 1 else ""
        for each in variant.failures:
            if each.failed:
                kind, number = max(each.kinds.items(), key=lambda item: item[1])
                yield (
                    f"On the prompts `{each.prompts}` {each.failed:,} of {each.answers:,} answers{whose} failed; the most "
                    f"frequent kind is {kind} ({number:,})."
                )
            else:
                yield f"On the prompts `{each.prompts}` none of {each.answers:,} answers{whose} failed."


def _teacher_text(variant: VariantResult) -> str:
    """What the teacher's answers cost."""
    work = variant.teacher
    assert work is not None, "a variant without the teacher's answers"
    alone = (
        "" if work.seconds_alone is None else f", {seconds_text(work.seconds_alone)} at its measured speed in batches"
    )
    paid = "" if work.cost is None else f"; {money(work.cost)} were paid"
    return f"With {variant.name} the teacher wrote {work.answers:,} answers of {work.tokens:,} tokens{alone}{paid}."


def _setup(arms: Sequence[Arm], options: Options, prompts: Sequence[PromptsConfig]) -> Iterator[str]:
    for recipe in dict.fromkeys(arm.recipe for arm in arms):
        yield f"Recipe {recipe}. " + described([arm for arm in arms if arm.recipe == recipe])
    asked = [f"{each.name} ({each.data.path}, {each.data.split})" for each in prompts if each.data]
    if asked:
        yield f"Further prompts: {'; '.join(asked)}."
    if options.judge:
        yield f"Judge of open answers: {options.judge}."
    if options.scale < 1:
        yield f"A trial on {options.scale:.0%} of the rows and prompts: nothing follows from its figures."


def _notes(
    experiment: Experiment, variants: list[VariantResult], differences: list[Difference], options: Options
) -> Iterator[str]:
    yield from limits(differences, seeds=options.seeds)
    if left := unused_students(experiment.presets[options.preset], options.students):
        yield unused_text(left)
    for variant in variants:
        for each in variant.on:
            if each.overlap:
                number = each.models["student"].n
                yield (
                    f"{each.overlap} of {number} prompts of `{each.prompts}` overlap with the training prompts of "
                    f"{variant.name}."
                )
    if options.preset == "tiny":
        yield "The tiny family shows that the machinery works; its figures say nothing about Qwen."


def unused_text(students: Sequence[str]) -> str:
    """That some of the user's students are not trained."""
    return f"The variants do not differ in the student, so these of the given ones are not used: {', '.join(students)}."


def same_rows(arms: Sequence[Arm], variants: Sequence[VariantResult]) -> Iterator[str]:
    """Variants with a shorter and a longer slice of the same data that trained on as many rows: the data have no more."""
    data = {arm.variant.name: arm.config.data for arm in arms}
    for first, second in pairwise(variants):
        one, other = data[first.name], data[second.name]
        short, long = Slice.parse(one.split), Slice.parse(other.split)
        same_start = (one.path, short.name, short.start) == (other.path, long.name, long.start)
        if same_start and short.stop != long.stop and first.rows == second.rows:
            yield (
                f"{first.name} and {second.name} both trained on {first.rows:,} rows, though they ask for {one.split} and "
                f"{other.split} of {one.path}: it has no more rows, and a difference between them does not come from rows."
            )


def _examples(graded: Answers) -> Iterator[Example]:
    names = list(graded)
    for prompts in graded[names[0]]:
        if len(names) > 1:
            answers = {name: graded[name][prompts].files["student"] for name in names}
        else:
            files = graded[names[0]][prompts].files
            answers = {model: files[model] for model in NAMES if model in files}
        yield from telling_examples(prompts, answers)
