"""Proof of a prompt distillation: teacher with the prompt against student without -> eval/, summary.json, report.html.

    summary = prove(pipeline, models, test, system=rules, labels=labels, samplings=..., grader="auto")

`Pipeline.prove` asks all models the same. Here the teacher answers under its system prompt, as it samples; base student and
student are asked the bare text. Without gold answers the teacher's are the reference, and it has no score of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.errors import NoData
from distill_lab.evaluation.cost import Cost, compare_costs, render_costs, time_answers, token_cost
from distill_lab.evaluation.evaluate import cut_share, evaluate
from distill_lab.evaluation.labels import item_lines, label_report, predictions, render_label_report
from distill_lab.evaluation.statistics import paired
from distill_lab.evaluation.summary import summarize
from distill_lab.files.jsonl import write_json
from distill_lab.generation.cut_answers import cut_warning
from distill_lab.grading.graders import grading, metric_of
from distill_lab.models.names import api_engine
from distill_lab.pipeline import LABELS, Pipeline, choose_grader, model_inputs, timing_note
from distill_lab.report.publish import Speeds, published, training_losses
from distill_lab.run import Run
from distill_lab.training_data.cot_files import take_gold
from distill_lab.training_data.prompt_distillation import has_gold, write_asked, write_references
from distill_lab.types import Counts

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Way:
    """One of the models, and how it is asked."""

    model: ModelConfig
    prompts: Path
    """As the model sees them."""
    sampling: SamplingConfig


def prove(
    pipeline: Pipeline,
    models: Mapping[str, ModelConfig],
    test: Path,
    *,
    system: str,
    labels: Sequence[str],
    samplings: tuple[SamplingConfig, SamplingConfig],
    grader: str,
    measure_speed: bool,
) -> dict[str, Any]:
    """Score and time `models` ("teacher", "base", "student") on `test`, which has rows.

    samplings: of the teacher, and of base student and student. labels: those there are, () for free text. grader: a name;
    auto: label where there are labels, else exact where there are gold answers, else overlap. Test rows without a gold
    answer are left out where others have one. Raises NoData where the teacher is the reference and gave no readable answer.
    """
    run, gold = pipeline.run, has_gold(test)
    if gold:
        test = step(run, "test with gold answers", "eval/gold.jsonl", take_gold, test, gold=True)
    asked = step(run, "test with the rules", "eval/with_rules.jsonl", write_asked, test, system=system, labels=labels)
    ways = {"teacher": Way(models["teacher"], asked, samplings[0])}
    answers = {"teacher": _answers(pipeline, "teacher", ways)}
    if not gold:
        run.watch.note("no gold answers: the teacher's are the reference, and scores are agreement with them")
        test = step(run, "reference", "eval/reference.jsonl", write_references, test, answers["teacher"], labels=labels)
        if not run.counts("reference").kept:
            raise NoData(f"the teacher gave no readable answer in the test ({run.counts('reference')}); see {asked}")
    bare = step(run, "test alone", "eval/alone.jsonl", write_asked, test, system="", labels=labels)
    for name in ("base", "student"):
        ways[name] = Way(models[name], bare, samplings[1])
        answers[name] = _answers(pipeline, name, ways)
    if grader == AUTO:
        grader = "label" if labels else choose_grader(bare) if gold else "overlap"
    run.watch.note(f"graded by: {grader}")
    scored = tuple(ways) if gold else ("base", "student")
    items = {name: run.path(f"eval/{name}.jsonl") for name in scored}
    with grading(grader, pipeline.engine) as loaded:
        scores = {name: evaluate(ways[name].prompts, answers[name], items[name], loaded) for name in scored}
    for name, way in answers.items():
        pipeline.warn(cut_warning(LABELS[name], cut_share(way)))
    costs = {name: _cost(ways[name], answers[name], models["student"]) for name in ("teacher", "student")}
    gain = paired(items["base"], items["student"])
    metric = metric_of(grader, reference="gold" if gold else "teacher")
    found = _label_results(run, models, items, labels) if grader == "label" else None
    losses = training_losses(run, models["student"])

    def summarized(speeds: Speeds) -> dict[str, Any]:
        summary = summarize(
            run.recipe, scores["student"].n, scores=scores, speeds=speeds, gain=gain, metric=metric, losses=losses
        )
        timed = {
            name: replace(cost, seconds=speeds[name].seconds_per_answer_single if name in speeds else None)
            for name, cost in costs.items()
        }
        more = {
            "reference": "gold" if gold else "teacher",
            "cost": compare_costs(timed, {name: score.score for name, score in scores.items()}),
        }
        return summary | more | ({"labels": found} if found else {})

    summary = published(run, summarized, (lambda: _speeds(pipeline, ways)) if measure_speed else None)
    for text in render_costs(summary).splitlines():
        run.watch.note(text)
    return summary


def _cost(way: Way, answers: Path, student: ModelConfig) -> Cost:
    """Tokens per answer; a server's are counted with the student's tokenizer."""
    counter = student if api_engine(way.model.model) else way.model
    return token_cost(counter, way.prompts, answers, thinking=way.sampling.thinking)


def step(run: Run, name: str, output: str, work: Callable[..., Counts], *files: Path, **settings: Any) -> Path:
    """A stage that reads files and writes one: `work(*files, output, **settings)`, once."""
    inputs = {**{str(number): file for number, file in enumerate(files)}, **settings}
    return run.stage(name, output, inputs=inputs, work=lambda path: work(*files, path, **settings))


def _answers(pipeline: Pipeline, name: str, ways: Mapping[str, Way]) -> Path:
    way, output = ways[name], f"eval/{name}.completions.jsonl"
    return pipeline.answers(f"test answers of {LABELS[name]}", way.model, way.prompts, way.sampling, output=output)


def _label_results(
    run: Run, models: Mapping[str, ModelConfig], items: Mapping[str, Path], labels: Sequence[str]
) -> dict[str, Any]:
    """Tell every item of the student and its report, write evaluation_results.json; returns the summary's `labels`."""
    reports = {name: label_report(path, labels) for name, path in items.items()}
    for text in (*item_lines(items["student"]), *render_label_report(reports["student"]).splitlines()):
        run.watch.note(text)
    results = {"model": models["student"].model, "base": models["base"].model} | reports["student"].to_json()
    write_json(run.path("evaluation_results.json"), results | {"predictions": predictions(items["student"])})
    run.watch.note(f"predictions, matrix and errors of the student are in {run.path('evaluation_results.json')}")
    return {
        name: {
            "parse_rate": report.parse_rate,
            "per_label": {score.label: score.accuracy for score in report.per_label},
        }
        for name, report in reports.items()
    }


def _speeds(pipeline: Pipeline, ways: Mapping[str, Way]) -> dict[str, Any]:
    """The speed of teacher and student, each asked in its own way, one after the other."""
    from distill_lab.evaluation.speed import Speed

    models = pipeline.timed({name: way.model for name, way in ways.items()})
    timed = {name: replace(ways[name], model=pipeline.settled(model)) for name, model in models.items()}
    inputs = {
        name: {**model_inputs(way.model), "prompts": way.prompts, "sampling": way.sampling.model_dump()}
        for name, way in timed.items()
    }

    def work(path: Path) -> None:
        budget_s = pipeline.engine.measure_budget_s
        pipeline.watch.note(timing_note(len(timed), budget_s))
        speeds = {
            name: time_answers(way.model, way.prompts, way.sampling, budget_s=budget_s) for name, way in timed.items()
        }
        write_json(path, {name: speed.to_json() for name, speed in speeds.items()})

    path = pipeline.run.stage("speed", "speed.json", inputs=inputs, work=work)
    return {name: Speed.from_json(row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
