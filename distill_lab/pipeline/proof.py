"""The proof: teacher, base student and student on the same test -> eval/, summary.json, report.html.

    setups = ask_alike({"teacher": teacher, "base": base, "student": student}, config.test_sampling)
    summary = evaluate_models(pipeline, setups, test, grader="auto", measure_speed=True)

All answers are generated first, one model in memory at a time; then all are graded; then speeds are measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import NoData
from distill_lab.evaluation.evaluate import Score, cut_share, evaluate
from distill_lab.evaluation.groups import group_scores
from distill_lab.evaluation.ratings import FILE as RATINGS
from distill_lab.evaluation.ratings import judge_name, summarize_ratings
from distill_lab.evaluation.speed import NUM_ROUNDS, measure
from distill_lab.evaluation.speedups import LATENCY_TOKENS, REASONING_TOKENS, Speed
from distill_lab.evaluation.statistics import outcomes, paired, retention_interval
from distill_lab.evaluation.steps import count_steps
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.token_stats import with_tokens
from distill_lab.files.jsonl import write_json
from distill_lab.generation.cut_answers import cut_warning
from distill_lab.generation.model_identity import model_inputs
from distill_lab.grading.choose_grader import default_grader, has_references
from distill_lab.grading.graders import Metric, grading, metric_of
from distill_lab.models.names import api_engine, base_of, is_adapter, resolve
from distill_lab.pipeline.stages import Pipeline
from distill_lab.report.overlap import overlap_note
from distill_lab.report.publish import Speeds, published, training_losses
from distill_lab.training_data.prompt_distillation import write_references
from distill_lab.types import JsonObject, Prompt

AUTO = "auto"
TITLES = {"teacher": "the teacher", "base": "the base student", "student": "the student"}
NUM_MEASURED = 64
"""Test prompts that speed is measured on."""


def as_they_are(prompts: Path) -> Path:
    """The test prompts, unchanged."""
    return prompts


@dataclass(frozen=True, slots=True)
class EvalSetup:
    """A model and how it is asked."""

    model: ModelConfig
    sampling: SamplingConfig
    view: Callable[[Path], Path] = as_they_are
    """Test prompts -> the prompts as this model sees them; a stage of the run if it changes them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the models answered, and their scores."""

    setups: Mapping[str, EvalSetup]
    prompts: Mapping[str, Path]
    """By model: the prompts as the model saw them."""
    answers: Mapping[str, Path]
    """By model: its completions."""
    results: Mapping[str, Path]
    """By scored model: its eval file."""
    scores: Mapping[str, Score]
    grader: str
    metric: Metric | None
    """What the scores are; None without scores."""


Extend = Callable[[Summary, Evaluation, Speeds], Summary]
"""What a recipe adds: (summary, evaluation, speeds) -> summary."""


def ask_alike(models: Mapping[str, ModelConfig], sampling: SamplingConfig) -> dict[str, EvalSetup]:
    """Setups that ask every model the same, in the same way."""
    return {name: EvalSetup(model, sampling) for name, model in models.items()}


def evaluate_models(
    pipeline: Pipeline,
    setups: Mapping[str, EvalSetup],
    test: Path,
    *,
    grader: str = AUTO,
    labels: Sequence[str] = (),
    teacher_is_reference: bool | None = None,
    measure_speed: bool,
    several_steps: bool = False,
    extend: Extend | None = None,
) -> Summary:
    """Score and time the models ("teacher", "base", "student") on `test`; returns what summary.json holds.

    grader: a name; auto: exact if every prompt has a gold answer, else overlap. labels: those a reference answer must be
    one of. teacher_is_reference: the teacher's answers are the gold answers, and it has no score; None: if the
    grader compares texts and no reference texts are known. several_steps: also the share of answers that reason in
    several steps before their final answer; latency is then that of answers twice as long. Raises NoData if the teacher
    was said to be the reference and gave no readable answer.
    """
    run = pipeline.run
    if not test.stat().st_size:
        run.watch.note("no test rows: no scores (give --test, or more data)")
        found = Evaluation(setups, {}, {}, {}, {}, grader, None)
    else:
        grader = default_grader(test) if grader == AUTO else grader
        alone = teacher_is_reference
        if alone is None:
            alone = metric_of(grader).similarity and not has_references(test)
        required = bool(teacher_is_reference)
        found = _evaluated(pipeline, setups, test, grader=grader, labels=labels, alone=alone, required=required)
    scores = found.scores
    results = found.results
    gain = paired(results["base"], results["student"]) if {"base", "student"} <= scores.keys() else None
    retained = {"teacher", "student"} <= scores.keys()
    # Under a system prompt that only one of them has, the rest of the prompt is still the same.
    retention_ci95 = None
    if retained:
        alike = setups["teacher"].view is setups["student"].view
        retention_ci95 = retention_interval(results["teacher"], results["student"], same_system=alike)
    likeness = found.metric is None or found.metric.similarity
    right = outcomes(results["teacher"], results["student"]) if retained and not likeness else None
    steps = count_steps(test, results) if several_steps else {}
    losses = training_losses(run, setups["student"].model if "student" in setups else None)
    groups = group_scores(test, results, by_label=found.metric is not None and found.metric.grader == "label")
    num_scored = next((score.n for score in scores.values()), 0)

    def summarized(speeds: Speeds) -> Summary:
        summary = summarize(
            run.recipe, num_scored, scores=scores, speeds=speeds, gain=gain, retention_ci95=retention_ci95, steps=steps,
            metric=found.metric, losses=losses, outcomes=right,
        )  # fmt: skip
        summary = with_tokens(summary, run.path("eval"))
        paid, generated = pipeline.spending(), pipeline.generated()
        ratings = summarize_ratings(run.path(RATINGS), results, judge=judge_name(found.grader)) if results else None
        summary = dataclasses.replace(summary, spending=paid, generated=generated, groups=groups, ratings=ratings)
        if pipeline.overlap:
            notes = (*summary.notes, *filter(None, [overlap_note(pipeline.overlap)]))
            summary = dataclasses.replace(summary, test_overlap=pipeline.overlap, notes=notes)
        return extend(summary, found, speeds) if extend else summary

    timing = None
    if scores and measure_speed:
        timing = partial(measure_speeds, pipeline, found, test, long_answers=several_steps)
    return published(run, summarized, timing)


def _evaluated(
    pipeline: Pipeline,
    setups: Mapping[str, EvalSetup],
    test: Path,
    *,
    grader: str,
    labels: Sequence[str],
    alone: bool,
    required: bool,
) -> Evaluation:
    """Answers and scores of every model. alone: the teacher's answers are the reference, and it is not scored;
    required: without one that can be read, NoData is raised."""
    run = pipeline.run
    prompts: dict[str, Path] = {}
    answers: dict[str, Path] = {}
    for name, setup in setups.items():
        prompts[name] = setup.view(test)
        title, output = f"test answers of {TITLES.get(name, name)}", f"eval/{name}.completions.jsonl"
        answers[name] = pipeline.answers(title, setup.model, prompts[name], setup.sampling, output=output)
        if alone and name == "teacher":
            test = _reference(pipeline, test, answers[name], labels, required=required)
    run.watch.note(f"graded by: {grader}" + (", against the teacher's answers" if alone else ""))
    scored = [name for name in setups if not (alone and name == "teacher")] if test.stat().st_size else []
    results = {name: run.path(f"eval/{name}.jsonl") for name in scored}
    # All answers first: a judge is never in memory together with what it judges, and is loaded once.
    scores: dict[str, Score] = {}
    with grading(grader, pipeline.engine) as loaded:
        for name in scored:
            paid = pipeline.paid_beside(f"grades of {TITLES.get(name, name)}", grader, results[name])
            scores[name] = evaluate(
                prompts[name], answers[name], results[name], loaded, paid=paid, on_note=run.watch.note
            )
    for name, path in answers.items():
        pipeline.warn(cut_warning(TITLES.get(name, name), cut_share(path)))
    metric = metric_of(grader, reference="teacher" if alone else "gold") if scores else None
    return Evaluation(setups, prompts, answers, results, scores, grader, metric)


def _reference(pipeline: Pipeline, test: Path, answers: Path, labels: Sequence[str], *, required: bool) -> Path:
    """The test with the teacher's answers as gold answers; cut, empty and unreadable ones are left out and counted."""
    found = pipeline.run.stage(
        "reference",
        "eval/reference.jsonl",
        inputs={"test": test, "answers": answers, **({"labels": labels} if labels else {})},
        work=lambda path: write_references(test, answers, path, labels=labels),
    )
    if not found.kept and required:
        raise NoData(f"the teacher gave no readable answer in the test ({found.counts}); see {answers}")
    if not found.kept:
        pipeline.watch.note(
            f"the teacher gave no readable answer in the test ({found.counts}): no scores; see {answers}"
        )
    return found.path


def measure_speeds(
    pipeline: Pipeline, found: Evaluation, test: Path, before: Callable[[], None] = lambda: None, *, long_answers: bool
) -> Speeds:
    """Speeds of teacher and student, in turns on the same prompts, each as it is asked; `before` is called first."""
    watch, budget_s = pipeline.watch, pipeline.engine.measure_budget_s
    timed: dict[str, ModelConfig] = {}
    for name, setup in found.setups.items():
        if api_engine(setup.model.model):
            watch.note(f"no speed of {TITLES.get(name, name)}: {setup.model.model} runs on a server, not here")
        elif name != "base":
            timed[name] = pipeline.resolve(setup.model)
    if not timed:
        return {}
    num_tokens = REASONING_TOKENS if long_answers else LATENCY_TOKENS
    samplings = {name: found.setups[name].sampling for name in timed}
    # Models that see the test unchanged see the same prompts, though their files may differ in the reference.
    files = {name: test if found.setups[name].view is as_they_are else found.prompts[name] for name in timed}
    inputs = {
        name: model_inputs(model) | {"prompts": files[name], "sampling": samplings[name].model_dump()}
        for name, model in timed.items()
    }
    settings: JsonObject = {"latency_tokens": num_tokens, "budget_s": budget_s, "rounds": NUM_ROUNDS}

    def work(path: Path) -> None:
        before()
        watch.note(timing_note(len(timed), budget_s))
        asked = _same_prompts(files)
        timing = partial(measure, timed, asked, sampling=samplings, latency_tokens=num_tokens, budget_s=budget_s)
        together = not _same_weights(timed)
        try:
            speeds = timing(together=together)
        except (RuntimeError, MemoryError) as error:
            if not (together and is_out_of_memory(error)):
                raise
            speeds = None
        if speeds is None:  # outside of the except block, whose error holds the memory
            watch.note("the models do not fit in memory together: each is loaded for its turn in every round")
            free_memory()
            speeds = timing(together=False)
        write_json(path, {name: speed.to_json() for name, speed in speeds.items()})

    path = pipeline.run.stage("speed", "speed.json", inputs=inputs | settings, work=work).path
    return {name: Speed.from_json(row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}


def _same_weights(models: Mapping[str, ModelConfig]) -> bool:
    """Whether a model is the base of another one's adapters: then one set of weights is held at a time."""
    names = {model.model for model in models.values()}
    adapted = [model for model in models.values() if is_adapter(resolve(model.model))]
    return any(base_of(model).model in names for model in adapted)


def _same_prompts(files: Mapping[str, Path]) -> dict[str, list[Prompt]]:
    """The first prompts that all files hold, by model, in the order of the first file."""
    read = {path: {prompt.id: prompt for prompt in read_prompts(path)} for path in dict.fromkeys(files.values())}
    first = next(iter(read.values()))
    names = [name for name in first if all(name in prompts for prompts in read.values())][:NUM_MEASURED]
    return {model: [read[path][name] for name in names] for model, path in files.items()}


def timing_note(num_models: int, budget_s: float) -> str:
    """How long timing takes, for the user to read before it begins."""
    minutes = num_models * budget_s / 60
    return (
        f"timing takes about {minutes:.1f} min at most, besides loading {'the model' if num_models == 1 else 'the models'} "
        f"twice ({budget_s:g} s a model: engine.measure-budget-s)"
    )
