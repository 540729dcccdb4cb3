"""How many tokens solutions take: selections and eval files -> figures, overall and by level and type.

read_stats(Path("correct.parquet"))["level"]["3"].median
print(render_models(summary))                        the workflow's table: accuracy and tokens of each model
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from distill_lab.evaluation.eval_rows import read_eval_rows
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.summary_parts import TokenHistogram, TokenStats
from distill_lab.formatting import times

BY = ("level", "type")
NUM_BINS = 30
"""Of a histogram of tokens, at most."""


def token_stats(tokens: Sequence[int]) -> TokenStats:
    """The figures of some solutions; at least one."""
    assert tokens, "no solutions"
    return TokenStats(len(tokens), float(mean(tokens)), float(median(tokens)), min(tokens), max(tokens))


def read_stats(selection: Path) -> dict[str, dict[str, TokenStats]]:
    """The figures of a selection (training_data/selection.py): `{"all": {"": ...}, "level": {...}, "type": {...}}`.

    Rows without a level or type are left out of that grouping; a selection without rows has no figures.
    """
    from pyarrow import parquet

    groups: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in ("all", *BY)}
    for row in parquet.read_table(selection, columns=["num_tokens", *BY]).to_pylist():
        groups["all"][""].append(row["num_tokens"])
        for by in BY:
            if row[by] is not None:
                groups[by][row[by]].append(row["num_tokens"])
    return {by: {name: token_stats(tokens) for name, tokens in sorted(found.items())} for by, found in groups.items()}


def read_tokens(items: Path) -> list[int]:
    """Tokens of every whole or cut answer of an eval file (`distill_lab.evaluation.evaluate`)."""
    return [row.num_tokens for row in read_eval_rows(items) if row.finish_reason in ("stop", "length")]


def with_tokens(summary: Summary, folder: Path) -> Summary:
    """The summary with `median_tokens` of each model whose eval file is in `folder`, and the ratios of tokens and size.

    token_ratio: mean tokens of student over base student; size_ratio: parameters of teacher over student; None if one of the
    two was not measured.
    """
    models, tokens = {}, {}
    for name, model in summary.models.items():
        found = read_tokens(folder / f"{name}.jsonl") if model.score is not None else []
        models[name] = dataclasses.replace(model, median_tokens=float(median(found)) if found else None)
        if found:
            tokens[name] = found
    none = ModelSummary()
    teacher, base, student = (models.get(name, none) for name in ("teacher", "base", "student"))
    return dataclasses.replace(
        summary,
        models=models,
        token_histogram=histograms(tokens),
        token_ratio=_ratio(student.mean_tokens, base.mean_tokens),
        size_ratio=_ratio(teacher.num_parameters, student.num_parameters),
    )


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def histograms(tokens: Mapping[str, Sequence[int]]) -> TokenHistogram | None:
    """Tokens per answer of each model, in at most NUM_BINS bins; None without answers."""
    if not tokens:
        return None
    width = max(1, math.ceil((max(map(max, tokens.values())) + 1) / NUM_BINS))
    shares = {}
    for name, found in tokens.items():
        counts = Counter(number // width for number in found)
        shares[name] = tuple(counts[place] / len(found) for place in range(max(counts) + 1))
    return TokenHistogram(width, shares)


def render_models(summary: Summary) -> str:
    """The summary as the workflow's comparison: accuracy, counts and tokens per model, then what changed."""
    likeness = summary.metric is not None and summary.metric.similarity
    title, counted = ("Overlap", False) if likeness else ("Accuracy", True)
    heads = f"{'Correct':>9}{'Total':>7}" if counted else f"{'Prompts':>9}"
    lines = [f"{'Model':<14}{title:>9}{heads}{'Avg tokens':>12}{'Median tokens':>15}"]
    for key, name in {"teacher": "Teacher", "base": "Student base", "student": "Student"}.items():
        model = summary.models.get(key)
        if model and model.score is not None:
            correct = "-" if model.correct is None else f"{model.correct:,}"
            counts = f"{correct:>9}{summary.n:>7,}" if counted else f"{summary.n:>9,}"
            tokens = f"{model.mean_tokens:>12.1f}" if model.mean_tokens is not None else f"{'-':>12}"
            middle = f"{model.median_tokens:>15g}" if model.median_tokens is not None else f"{'-':>15}"
            lines.append(f"{name:<14}{model.score:>9.1%}{counts}{tokens}{middle}")
    if summary.gain is not None:
        name = summary.metric.name if summary.metric else "accuracy"
        lines.append(f"{name} gain over the base student: {100 * summary.gain:+.1f} points")
    if summary.token_ratio is not None:
        lines.append(f"tokens of the student against the base student's: {summary.token_ratio:.2f}x")
    if summary.speedup is not None:
        lines.append(f"speed of the student against the teacher's: {times(summary.speedup, 'x')}")
    if summary.size_ratio is not None:
        lines.append(f"size: {times(summary.size_ratio, 'x')} smaller")
    return "\n".join(lines)
