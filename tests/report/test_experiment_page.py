"""The pages of experiments: right figures, well-formed, and nothing a model says gets out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.experiment import (
    Answer,
    Difference,
    Example,
    ExperimentResult,
    FailureCounts,
    OnPrompts,
    Reached,
    TeacherWork,
    VariantResult,
    read_result,
    write_result,
)
from distill_lab.grading.graders import metric_of
from distill_lab.report.experiment_page import write_experiment, write_index
from distill_lab.report.variant_plot import Point, dot_plot, line_plot
from tests.helpers import well_formed

HOSTILE = '</p><script>alert(1)</script><img src="x"> \x1b[2J\u202e&amp; {0} {title} [/foo] \ud800'


def variant(name: str, value: float | None, score: float, *, grader: str = "exact", text: str = "") -> VariantResult:
    models = {
        "student": Reached(
            n=100, score=score, ci95=(score - 0.1, score + 0.1), mean_tokens=12.0, cut_share=0.02, several_steps=0.8,
            several_steps_ci95=(0.7, 0.9), num_steps=2.5, num_steps_ci95=(2.0, 3.1),
        ),
        "base": Reached(n=100, score=0.2, ci95=(0.1, 0.3), mean_tokens=9.0, cut_share=0.0),
    }  # fmt: skip
    on = OnPrompts(
        prompts="test", metric=metric_of(grader), models=models, by_seed=(score - 0.01, score + 0.01), overlap=3
    )
    return VariantResult(
        name=name + text, value=value, about=f"data.split train[:{value}]{text}", runs=(f"students/{name}",), rows=500,
        steps=70,
        train_seconds=12.5, losses=(1.5, 0.7), num_parameters=420_000, tokens_per_s=18_000.0, latency_p50_s=0.25,
        latency_p95_s=0.3, latency_tokens=128, on=(on,),
        teacher=TeacherWork(answers=500, tokens=9000, seconds=3.5, seconds_alone=7.0, cost=None),
        failures=(FailureCounts(prompts="test", answers=100, failed=9, kinds={"missing details": 9}, judged_by="rules"),),
    )  # fmt: skip


def result(*, ordered: bool = True, text: str = "", grader: str = "exact") -> ExperimentResult:
    difference = Difference(
        first="500", second="2000", prompts="test", measure="score", value=0.2, ci95=(0.1, 0.3), p_value=0.00001, n=100,
        test="exact McNemar", found=True, similarity=grader == "overlap",
    )  # fmt: skip
    example = Example(
        prompts="test", id="t-1", why="graded higher", question="What is it?" + text, gold="It." + text,
        answers=(Answer("500", "No." + text, 0.0), Answer("2000", "It.", 1.0, "cut at the limit")),
    )  # fmt: skip
    return ExperimentResult(
        name="a", title="Data size" + text, question="How much?" + text, axis="training rows", ordered=ordered,
        preset="tiny",
        shows=("steps", "speed", "failures", "teacher's work"), setup=("Teacher x." + text,), seeds=2, answers={},
        variants=(variant("500", 500, 0.6, grader=grader, text=text), variant("2000", 2000, 0.8, grader=grader)),
        differences=(difference,), conclusion=("On the prompts `test` the score grows up to 2000." + text,),
        next_steps=("Try more.",), notes=("One training.",), examples=(example,),
    )  # fmt: skip


def written(folder: Path, found: ExperimentResult) -> str:
    write_result(folder / "a" / "experiment.json", found)
    return write_experiment(folder / "a").read_text(encoding="utf-8")


@pytest.mark.parametrize("ordered", [True, False])
def test_the_page_has_every_figure_with_its_interval(tmp_path: Path, ordered: bool) -> None:
    text = written(tmp_path, result(ordered=ordered))
    well_formed(text)
    for expected in (
        "60.0% [50.0% to 70.0%]", "80.0% [70.0% to 90.0%]", "20.0% [10.0% to 30.0%]", "2.50 [2.00 to 3.10]",
        "0.25 s / 0.30 s", "18,000", "420,000", "1.500 → 0.700", "9,000", "7.00 s",
        "+20.0 points [+10.0, +30.0]", "&lt; 0.0001", "found", "the score grows up to 2000", "Try more.",
        "9 of 100 answers failed",
        "missing details", "graded higher", "cut at the limit", 'href="../students/500/report.html"', "One training.",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("<svg") == 2, "score and steps"


def test_likeness_is_never_called_quality(tmp_path: Path) -> None:
    text = written(tmp_path, result(grader="overlap"))
    assert "It is likeness to a reference, not quality." in text
    assert "It is likeness" not in written(tmp_path, result())


def test_what_models_say_stays_text(tmp_path: Path) -> None:
    well_formed(written(tmp_path, result(text=HOSTILE)))
    well_formed(write_index(tmp_path).read_text(encoding="utf-8"))


def test_the_index_lists_all_experiments_and_names_damaged_ones(tmp_path: Path) -> None:
    write_result(tmp_path / "a" / "experiment.json", result())
    write_result(tmp_path / "b" / "experiment.json", dataclasses.replace(result(), name="b", title="Other"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "experiment.json").write_text('{"version": 1}')
    text = write_index(tmp_path).read_text()
    well_formed(text)
    assert 'href="a/report.html"' in text
    assert "B. Other" in text
    assert "c/experiment.json is not the result of an experiment" in text


def test_results_are_read_as_they_were_written_and_others_refused(tmp_path: Path) -> None:
    write_result(tmp_path / "experiment.json", result())
    assert read_result(tmp_path / "experiment.json") == result()
    (tmp_path / "experiment.json").write_text('{"version": 7}')
    with pytest.raises(UserError, match="another version"):
        read_result(tmp_path / "experiment.json")
    with pytest.raises(UserError, match="is missing"):
        read_result(tmp_path / "none.json")


def test_plots_place_values_on_a_logarithmic_axis_if_they_span_much() -> None:
    import re

    def places(*values: float) -> list[float]:
        points = [Point(str(value), value, 0.5, (0.4, 0.6)) for value in values]
        found = re.findall(r'circle class="student" cx="([\d.]+)"', line_plot("t", points, axis="rows", lines={}))
        return [float(each) for each in found]

    first, second, third = places(500, 2000, 8000)
    assert second - first == pytest.approx(third - second, abs=0.2)
    first, second, third = places(0, 0.4, 0.7)
    assert (second - first) / (third - first) == pytest.approx(0.4 / 0.7, abs=0.01)
    text = dot_plot("t", [Point("a", None, 0.5, (0.4, 0.6), (0.45, 0.55))], lines={"Teacher": 0.9, "Base student": 0.1})
    assert text.count('class="dot faint student"') == 2
    assert "Teacher 90.0%" in text
