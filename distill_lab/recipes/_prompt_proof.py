"""Proof of a prompt distillation: the teacher under its prompt against the student without it, and what an answer costs.

The teacher answers under its system prompt, as it samples; base student and student get the bare text. Without gold answers
the teacher's are the reference, and it has no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from distill_lab.config import ModelConfig, RecipeConfig
from distill_lab.evaluation.cost import compare_costs, render_costs, token_cost
from distill_lab.evaluation.labels import LabelSummary, item_lines, label_report, predictions, render_label_report
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.summary_parts import Cost
from distill_lab.files.jsonl import write_json
from distill_lab.grading.choose_grader import default_grader
from distill_lab.models.names import api_engine
from distill_lab.pipeline.proof import AUTO, EvalSetup, Evaluation, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.report.publish import Speeds
from distill_lab.training_data.cot_files import take_gold
from distill_lab.training_data.prompt_distillation import has_gold, write_asked


def evaluate_prompt(
    pipeline: Pipeline,
    config: RecipeConfig,
    models: Mapping[str, ModelConfig],
    test: Path,
    system: str,
    labels: Sequence[str],
) -> Summary:
    """Score and time `models` on `test`; test rows without a gold answer are left out if others have one.

    labels: () for free text. grader auto: label if there are labels, else exact if there are gold answers, else overlap.
    """
    gold, grader = has_gold(test), config.grader
    if gold:
        test = pipeline.step("test with gold answers", "eval/gold.jsonl", take_gold, test, gold=True).path
    if grader == AUTO:
        grader = "label" if labels else default_grader(test) if gold else "overlap"

    def with_rules(prompts: Path) -> Path:
        output = "eval/with_rules.jsonl"
        return pipeline.step("test with the rules", output, write_asked, prompts, system=system, labels=labels).path

    def alone(prompts: Path) -> Path:
        return pipeline.step("test alone", "eval/alone.jsonl", write_asked, prompts, system="", labels=labels).path

    setups = {
        "teacher": EvalSetup(models["teacher"], config.sampling, with_rules),
        "base": EvalSetup(models["base"], config.test_sampling, alone),
        "student": EvalSetup(models["student"], config.test_sampling, alone),
    }
    costs: dict[str, Cost] = {}
    found_labels: dict[str, LabelSummary] = {}

    def extend(summary: Summary, found: Evaluation, speeds: Speeds) -> Summary:
        if not found.scores:
            return summary
        if not costs:  # the summary is written twice, without speeds and with them
            costs.update({name: _cost(found, name) for name in ("teacher", "student")})
            if grader == "label":
                found_labels.update(_label_results(pipeline, models, found.results, labels))
        timed = {
            name: replace(cost, seconds=speeds[name].seconds_per_answer_single if name in speeds else None)
            for name, cost in costs.items()
        }
        return replace(
            summary,
            reference="gold" if gold else "teacher",
            cost=compare_costs(
                timed["teacher"], timed["student"], {name: score.score for name, score in found.scores.items()}
            ),
            labels=found_labels or None,
        )

    summary = evaluate_models(
        pipeline, setups, test, grader=grader, labels=labels, teacher_is_reference=not gold,
        measure_speed=config.measure, extend=extend,
    )  # fmt: skip
    if summary.cost:
        pipeline.tell(render_costs(summary))
    return summary


def _cost(found: Evaluation, name: str) -> Cost:
    """Tokens per answer; a server's are counted with the student's tokenizer."""
    setup = found.setups[name]
    counter = found.setups["student"].model if api_engine(setup.model.model) else setup.model
    return token_cost(counter, found.prompts[name], found.answers[name], thinking=setup.sampling.thinking)


def _label_results(
    pipeline: Pipeline, models: Mapping[str, ModelConfig], results: Mapping[str, Path], labels: Sequence[str]
) -> dict[str, LabelSummary]:
    """Print every item of the student and its report, write evaluation_results.json; returns the summary's `labels`."""
    reports = {name: label_report(path, labels) for name, path in results.items()}
    pipeline.tell("\n".join(item_lines(results["student"])))
    pipeline.tell(render_label_report(reports["student"]))
    path = pipeline.run.path("evaluation_results.json")
    head = {"model": models["student"].model, "base": models["base"].model}
    write_json(path, head | reports["student"].to_json() | {"predictions": predictions(results["student"])})
    pipeline.watch.note(f"predictions, matrix and errors of the student are in {path}")
    return {name: report.summary() for name, report in reports.items()}
