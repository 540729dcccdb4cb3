"""A suite's results as the lab keeps them: lm_eval's samples -> eval rows, and the figures of each task with an interval.

    rows, tasks = read_results(suite, results, chats, answers, metric="")
    tasks["gsm8k"].score, tasks["gsm8k"].ci95, tasks["gsm8k"].harness["exact_match,strict-match"]

One metric of a task becomes its score: the first that is a number from 0 to 1 for each item, or the one that the user names.
A task without one, such as perplexity, has lm_eval's figures only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import MISSING, EvalRow
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.statistics import score_interval
from distill_lab.evaluation.suite._lm_eval import Results, Sample, Task
from distill_lab.evaluation.suite.answers import SuiteAnswers
from distill_lab.evaluation.suite.harness import WRITTEN, Suite
from distill_lab.models.plain_text import as_prompt
from distill_lab.types import Completion, Fields, Grade, JsonObject, Message

UNREAD = "[invalid]"
"""What lm_eval's filters leave of an answer in which they find nothing."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's figures."""

    n: int
    """Items."""
    metric: str
    """Metric and filter of the score, as exact_match,strict-match; empty: none is a number from 0 to 1 for each item."""
    score: float | None
    """Mean over the items, in [0, 1]."""
    ci95: Interval | None
    """95% interval of the score over items: Clopper and Pearson's for 0/1, Gaffke's otherwise."""
    harness: dict[str, float]
    """All figures of lm_eval by metric and filter; METRIC_stderr,FILTER is its standard error."""
    num_fewshot: int
    version: str
    """Of the task in lm_eval."""

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return dataclasses.asdict(self)


def read_results(
    suite: Suite, results: Results, chats: Mapping[str, list[Message]], answers: SuiteAnswers, *, metric: str
) -> tuple[list[EvalRow], dict[str, TaskResult]]:
    """The rows of all tasks, and each task's figures.

    metric: the one to take, with or without its filter. Raises UserError if a task does not have it.
    """
    rows: list[EvalRow] = []
    tasks: dict[str, TaskResult] = {}
    for name, samples in results["samples"].items():
        task = suite.tasks[name]
        chosen = choose_metric(samples, metric, lower_is_better=_lower_is_better(results, name), task=name)
        made = []
        if chosen is not None:
            kept = [sample for sample in samples if sample["filter"] == chosen[1]]
            made = [_row(task, name, sample, chosen[0], chats, answers) for sample in kept]
        scores = [row.score for row in made]
        rows += made
        tasks[name] = TaskResult(
            n=len({sample["doc_id"] for sample in samples}),
            metric=",".join(chosen) if chosen else "",
            score=sum(scores) / len(scores) if scores else None,
            ci95=score_interval(scores) if scores else None,
            harness=_figures(results["results"][name]),
            num_fewshot=int(results["n-shot"].get(name) or 0),
            version=str(results["versions"].get(name, "")),
        )
    return rows, tasks


def group_figures(results: Results) -> dict[str, dict[str, float]]:
    """lm_eval's figures of groups of tasks, such as mmlu."""
    return {name: _figures(found) for name, found in (results.get("groups") or {}).items()}


def choose_metric(
    samples: Sequence[Sample], wanted: str, *, lower_is_better: frozenset[str], task: str
) -> tuple[str, str] | None:
    """(metric, filter) of the score; None if no metric is a number from 0 to 1 for each item.

    wanted: a metric, with or without a filter. Raises UserError if the task does not have it as such a number.
    """
    found = [
        (metric, filter_)
        for filter_ in dict.fromkeys(sample["filter"] for sample in samples)
        for metric in dict.fromkeys(name for sample in samples for name in sample["metrics"])
        if metric not in lower_is_better
        and all(_is_score(sample.get(metric)) for sample in samples if sample["filter"] == filter_)
    ]
    if not wanted:
        return found[0] if found else None
    name, _, filter_ = wanted.partition(",")
    for each in found:
        if each[0] == name and filter_ in ("", each[1]):
            return each
    there = ", ".join(",".join(each) for each in found) or "none"
    raise UserError(f"--suite.metric {wanted}: not a score of {task}; its metrics from 0 to 1 are: {there}")


def _is_score(value: object) -> bool:
    number = getattr(value, "item", lambda: value)()  # numpy's
    return isinstance(number, (bool, int, float)) and 0 <= number <= 1


def _lower_is_better(results: Results, task: str) -> frozenset[str]:
    known = (results.get("higher_is_better") or {}).get(task) or {}
    return frozenset(name for name, higher in known.items() if higher is False)


def _figures(found: Fields) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in found.items()
        if "," in name and isinstance(value, (int, float)) and math.isfinite(value)
    }


def _row(
    task: Task,
    name: str,
    sample: Sample,
    metric: str,
    chats: Mapping[str, list[Message]],
    answers: SuiteAnswers,
) -> EvalRow:
    id = f"{name}/{sample['doc_id']}"
    context = str(sample["arguments"][0][0])
    score = float(sample[metric])
    if task.OUTPUT_TYPE == WRITTEN:
        written = answers.completions.get(id, [])
        first = written[0] if written else None
        read = sample["filtered_resps"][0]
        extracted = read if isinstance(read, str) else None
        unread = extracted == UNREAD
        grade = Grade(score, None if unread else extracted, "unparseable" if unread and score == 0 else "ok")
        return _eval_row(id, chats.get(context) or as_prompt(context), first, _gold(task, sample), grade)
    choice, gold = _choice(task, sample)
    return EvalRow(
        id=id, sample=0, prompt=chats.get(context) or as_prompt(context), output=choice, thinking=None, answer=gold,
        finish_reason="stop", num_tokens=0, grade=Grade(score, choice),
    )  # fmt: skip


def _eval_row(id: str, prompt: list[Message], completion: Completion | None, gold: str | None, grade: Grade) -> EvalRow:
    return EvalRow(
        id=id,
        sample=0,
        prompt=prompt,
        output=completion.content if completion else "",
        thinking=completion.thinking if completion else None,
        answer=gold,
        finish_reason=completion.finish_reason if completion else MISSING,
        num_tokens=completion.num_tokens if completion else 0,
        grade=grade,
    )


def _gold(task: Task, sample: Sample) -> str | None:
    """The gold answer as text; None if the task's target is a number that means nothing, as in ifeval."""
    target = sample["target"]
    choices = _choices(task, sample)
    if isinstance(target, int) and not isinstance(target, bool):
        return choices[target] if target < len(choices) else None
    if isinstance(target, list):
        return " | ".join(choices[each] if isinstance(each, int) and choices else str(each) for each in target)
    return str(target)


def _choices(task: Task, sample: Sample) -> list[str]:
    if task.config.doc_to_choice is None:
        return []
    return [str(choice) for choice in task.doc_to_choice(sample["doc"])]


def _choice(task: Task, sample: Sample) -> tuple[str, str | None]:
    """What the model finds most likely, and the gold answer.

    Without choices: the continuation if greedy decoding writes it, else nothing.
    """
    found = [each[0] if isinstance(each[0], (tuple, list)) else each for each in sample["resps"]]
    choices = _choices(task, sample)
    if not choices:
        continuation = str(sample["arguments"][0][1])
        return (continuation.strip() if found[0][1] else ""), continuation.strip()
    likely = max(range(len(choices)), key=lambda index: found[index][0])
    if task.multiple_input:  # each choice is a context of its own
        return choices[likely], choices[int(task.doc_to_text(sample["doc"]))]
    return choices[likely], _gold(task, sample)


def table_lines(tasks: Mapping[str, TaskResult], groups: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A line per task for a terminal: the score with its interval, and lm_eval's figure beside it; then its groups."""
    for name, task in tasks.items():
        shots = f"{task.num_fewshot}-shot" if task.num_fewshot else "0-shot"
        if task.score is None or task.ci95 is None:
            figures = ", ".join(f"{key} {value:.4g}" for key, value in task.harness.items() if "_stderr" not in key)
            yield f"{name}: no score from 0 to 1; lm_eval: {figures} ({task.n} items, {shots})"
            continue
        low, high = task.ci95
        yield (
            f"{name}: {task.metric} {task.score:.1%} [{low:.1%}, {high:.1%}] on {task.n} items, {shots}; "
            f"lm_eval: {_with_error(task.harness, task.metric)}"
        )
    for name, figures in groups.items():
        shown = ", ".join(
            f"{key} {_with_error(figures, key)}" for key in figures if "_stderr" not in key.partition(",")[0]
        )
        yield f"{name} (lm_eval, all its tasks): {shown}"


def _with_error(figures: Mapping[str, float], metric: str) -> str:
    name, _, filter_ = metric.partition(",")
    value, error = figures.get(metric), figures.get(f"{name}_stderr,{filter_}")
    if value is None:
        return "no figure"
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
