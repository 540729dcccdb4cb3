"""Token figures by hand: medians and ratios in the summary, the workflow's table, and the distributions on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.token_stats import NUM_BINS, histograms, render_models, token_stats, with_tokens
from distill_lab.files.jsonl import write_jsonl
from distill_lab.report.tokens import BARS, distribution_panel, tokens_section
from tests.helpers import eval_row

TOKENS = {"teacher": [10, 20, 30, 40], "base": [5, 5, 50, 60], "student": [8, 8, 8, 12]}


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    """What a run of four questions leaves, with tokens."""
    scores, parameters = {"teacher": 1.0, "base": 0.25, "student": 0.75}, {"teacher": 7_000, "student": 1_500}
    models = {}
    for name, tokens in TOKENS.items():
        rows = [eval_row(str(number), num_tokens=number) for number in tokens]
        write_jsonl(tmp_path / f"{name}.jsonl", [*rows, eval_row("none", num_tokens=0, finish_reason="missing")])
        score = scores[name]
        mean = sum(tokens) / 4
        models[name] = ModelSummary(
            score=score, correct=round(4 * score), mean_tokens=mean, num_parameters=parameters.get(name)
        )
    return with_tokens(replace(summarize("verified", 4, scores={}), models=models, gain=0.5, speedup=3.0), tmp_path)


def test_medians_and_ratios(summary: Summary) -> None:
    assert {name: model.median_tokens for name, model in summary.models.items()} == {
        **{"teacher": 25, "base": 27.5, "student": 8}
    }
    assert summary.token_ratio == 9 / 30
    assert summary.size_ratio == pytest.approx(4.667, abs=1e-3)


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    summary = replace(summarize("verified", 4, scores={}), models={"student": ModelSummary(num_parameters=5)})
    found = with_tokens(summary, tmp_path)
    assert (found.token_ratio, found.size_ratio) == (None, None)
    assert found.models["student"].median_tokens is None


def test_the_workflows_table(summary: Summary) -> None:
    assert [line.split() for line in render_models(summary).splitlines()[1:4]] == [
        ["Teacher", "100.0%", "4", "4", "25.0", "25"],
        ["Student", "base", "25.0%", "1", "4", "30.0", "27.5"],
        ["Student", "75.0%", "3", "4", "9.0", "8"],
    ]
    assert render_models(summary).splitlines()[4:] == [
        "accuracy gain over the base student: +50.0 points",
        "tokens of the student against the base student's: 0.30x",
        "speed of the student against the teacher's: 3.0x",
        "size: 4.6x smaller",
    ]


def test_figures_of_some_solutions() -> None:
    assert str(token_stats([1, 2, 9])) == "3 solutions, tokens: mean 4.0, median 2, 1 to 9"


def test_a_histogram_holds_every_answer() -> None:
    found = histograms({"a": [0, 9, 10, 29], "b": [2 * NUM_BINS - 1]})
    assert found is not None
    assert found.width == 2
    shares = found.shares
    assert [place for place, share in enumerate(shares["a"]) if share] == [0, 4, 5, 14]
    assert sum(shares["a"]) == sum(shares["b"]) == 1
    assert len(shares["b"]) == NUM_BINS
    assert histograms({}) is None


def test_the_figure_is_one_scale_for_all_models(summary: Summary) -> None:
    panel = distribution_panel(summary)
    assert panel is not None
    drawing = ElementTree.fromstring(f"<svg>{panel[0]}</svg>")
    heights = {
        kind: sum(float(bar.get("height", 0)) for bar in drawing.findall("rect") if bar.get("class") == kind)
        for kind in TOKENS
    }
    # Three of the student's four answers share a bin, the fullest of all; every model's bars add up to 1.
    assert heights == {kind: pytest.approx(BARS / 0.75, abs=0.2) for kind in TOKENS}
    assert [text.text for text in drawing.findall("text") if (text.text or "").startswith("median")] == [
        *("median 25", "median 27.5", "median 8")
    ]
    assert distribution_panel(summarize("verified", 4, scores={})) is None


def test_the_section_escapes_what_data_say() -> None:
    each = token_stats([2, 4])
    summary = summarize("verified", 4, scores={})
    page = tokens_section(replace(summary, tokens={"all": {"": each}, "level": {}, "type": {"<b>\x1b": each}}))
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert tokens_section(summary) == ""
