"""report.md, report.tex and report.csv: the figures of summary.json in other forms, with their figures beside them."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import read_summary, write_summary
from distill_lab.report.markdown import WRITERS, write_csv, write_latex, write_markdown
from tests.made_runs import HOSTILE, made_run


def test_markdown_shows_the_figures_and_every_picture_is_there(tmp_path: Path) -> None:
    run = made_run(tmp_path, advice=("Give more rows.",))
    text = write_markdown(run).read_text(encoding="utf-8")
    summary = read_summary(run / "summary.json")
    student = summary.models["student"]
    assert student.score is not None
    assert text.startswith(f"# {summary.result} and answers 4.2× as fast.\n")
    assert f"| Student | {student.score:.1%} |" in text
    assert "- Give more rows." in text
    assert "| Teacher | tiny:teacher |" in text
    pictures = re.findall(r"!\[[^\]]+\]\(figures/(\w+\.svg)\)", text)
    assert {"score.svg", "speed.svg", "loss.svg", "tokens.svg", "latency.svg", "by_level.svg"} <= set(pictures)
    for name in pictures:
        ElementTree.parse(run / "figures" / name)
    assert len(re.findall(r"^\| (count|reverse|sort) \|", text, re.MULTILINE)) == 3


def test_what_data_and_models_say_is_no_markup(tmp_path: Path) -> None:
    run = made_run(tmp_path, num=8, output=HOSTILE)
    summary = read_summary(run / "summary.json")
    by_name = dataclasses.replace(summary.groups[0], by="../../x", groups=summary.groups[0].groups[:2])
    summary = dataclasses.replace(summary, notes=(HOSTILE,), advice=(HOSTILE,), groups=(by_name,))
    write_summary(run / "summary.json", summary)
    text = write_markdown(run).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert not set("\x1b\u202e\u2028") & set(text)
    assert sorted(path.name for path in (run / "figures").iterdir() if path.name.startswith("by")) == ["by_______x.svg"]
    latex = write_latex(run).read_text(encoding="utf-8")
    assert "\\input{/etc}" not in latex


def test_latex_holds_balanced_tables(tmp_path: Path) -> None:
    text = write_latex(made_run(tmp_path)).read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(block[0]) - 1}
    assert re.search(r"Student & 8\d\.\d\\% & ", text)


def test_csv_holds_every_number_of_the_summary(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    summary = read_summary(run / "summary.json")
    rows = list(csv.DictReader(write_csv(run).read_text(encoding="utf-8").splitlines()))
    found = {(row["model"], row["figure"]): row for row in rows}
    student = summary.models["student"]
    assert student.ci95 is not None
    assert float(found["student", "score"]["value"]) == student.score
    assert [float(found["student", "score"][end]) for end in ("low", "high")] == list(student.ci95)
    assert float(found["", "gain"]["value"]) == summary.gain
    assert summary.speedup_ci95 is not None
    assert float(found["", "speedup"]["low"]) == summary.speedup_ci95[0]
    assert float(found["student", "score, level 1"]["value"]) == summary.groups[0].groups[0].scores["student"].score


@pytest.mark.parametrize("name", WRITERS)
def test_a_run_without_a_summary_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        WRITERS[name](tmp_path)
