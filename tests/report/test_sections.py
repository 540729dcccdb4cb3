"""The page's sections show the figures of summary.json: groups, tokens, latency, cost, facts, advice."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from distill_lab.evaluation.labels import LabelMatrix, LabelSummary
from distill_lab.evaluation.summary_file import Summary, read_summary, write_summary
from distill_lab.evaluation.summary_parts import Paid
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import seconds_text
from distill_lab.generation.prices import Spending
from distill_lab.report.agreement import agreement_section
from distill_lab.report.labels import labels_section
from distill_lab.report.page import write_report
from distill_lab.train.agreement import Agreement
from tests.made_runs import HOSTILE, made_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = made_run(tmp_path_factory.mktemp("run"), num=80, advice=("Give more rows.", HOSTILE))
    write_report(made)
    return made


def section(run: Path, name: str) -> str:
    page = (run / "report.html").read_text(encoding="utf-8")
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def summary_of(run: Path) -> Summary:
    return read_summary(run / "summary.json")


def test_every_group_is_shown_with_its_scores(run: Path) -> None:
    html = section(run, "groups")
    summary = summary_of(run)
    assert [grouping.by for grouping in summary.groups] == ["level", "type", "prompt characters"]
    for grouping in summary.groups:
        assert f"By {grouping.by}" in html
        for group in grouping.groups:
            row = html.split(f"<bdi>{group.name}</bdi>")[1].split("</tr>")[0]
            assert f"<td>{group.n:,}</td>" in row
            assert [tenths(found.score) in row for found in group.scores.values()] == [True] * 3
    assert html.count("<svg") == 3


def test_every_latency_answer_is_a_dot(run: Path) -> None:
    html = section(run, "latency")
    student = summary_of(run).models["student"]
    assert html.count('class="dot faint student"') == len(student.latencies_s) == 20
    assert student.latency_p50_s is not None
    assert f"Student: median {seconds_text(student.latency_p50_s)}" in html


def test_time_tokens_and_money_of_every_stage(run: Path) -> None:
    text = words(section(run, "cost"))
    assert "teacher answers 75.0 s 9,600 –" in text
    assert "All 1.9 min 9,600 –" in text
    paid = Spending(800, input_tokens=1, output_tokens=9600, cost=1.5)
    spending = Paid({"teacher answers": paid}, paid)
    before = summary_of(run)
    write_summary(run / "summary.json", dataclasses.replace(before, spending=spending))
    write_report(run)
    assert re.search(r"teacher answers 75.0 s 9,600 1\.50*\b", words(section(run, "cost")))
    write_summary(run / "summary.json", before)
    write_report(run)


def test_tokens_of_every_recipe_are_drawn(run: Path) -> None:
    html = section(run, "tokens")
    assert html.count("<svg") == 1
    assert "Tokens per answer, medians: Teacher" in html


def test_advice_is_in_one_place_and_text(run: Path) -> None:
    html = section(run, "next")
    assert html.count("<li>") == len(summary_of(run).advice)
    assert "<li>Give more rows.</li>" in html
    assert "<script" not in html


def test_the_head_says_what_was_trained_on_what(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    text = words(page.split("<header>")[1].split("</header>")[0])
    for fact in (
        "Teacher tiny:teacher", "Student tiny:student", "Data tiny:instructions distill[:800]", "Training rows 790",
        "Machine a CPU", "Began 2026-11-30", "Score is exact match",
    ):  # fmt: skip
        assert fact in text


def test_contents_lead_to_every_section(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="#([^"]+)"', page) == re.findall(r'<section id="([^"]+)"', page)
    assert len(re.findall(r' id="', page)) == len(set(re.findall(r' id="([^"]+)"', page)))


def test_the_configuration_can_be_given_again(run: Path) -> None:
    html = section(run, "again")
    assert "distill system1 --config again.yaml --run runs/again" in html
    assert '"learning_rate": 0.004' in html.replace("&quot;", '"')


def test_a_matrix_has_no_style_of_its_own(run: Path) -> None:
    matrix = LabelMatrix(("a", "b"), ("a", "b"), ((1, 1), (0, 2)))
    labels = LabelSummary(parse_rate=1.0, per_label={"a": 0.5}, totals={"a": 2, "b": 2}, matrix=matrix, worst=())
    html = labels_section(dataclasses.replace(summary_of(run), labels={"student": labels}))
    assert "style=" not in html
    assert [html.count(f'class="{kind}"') for kind in ("good-4", "bad-4", "good-9", "bad-0")] == [1, 1, 1, 1]


def test_what_two_tokenizers_agree_on_is_a_table(run: Path) -> None:
    before = summary_of(run)
    assert agreement_section(before) == ""
    found = Agreement(
        teacher=HOSTILE, student="tiny:student", teacher_vocabulary=500, student_vocabulary=1280, shared_tokens=200,
        texts=790, text_bytes=40_000, compared_bytes=39_000, student_tokens=9_000, teacher_tokens=12_000, same=6_000,
        chunks=1_000, parts=2_700, teacher_parts=5_600, dropped={"in a chunk of more than 64 tokens": 300},
    )  # fmt: skip
    write_summary(run / "summary.json", dataclasses.replace(before, agreement=found))
    assert summary_of(run).agreement == found
    write_report(run)
    html = section(run, "tokenizers")
    text = words(html)
    for part in (
        "tokens in both vocabularies 200 16% of the student", "the same token for both 6,000 67% of the trained tokens",
        "chunks of several tokens 1,000 30% of the trained tokens, on average 2.7 of the student and 5.6 of the teacher",
        "bytes compared 39,000 98% of", "not compared 300 3.3% of the trained tokens: in a chunk of more than 64 tokens",
    ):  # fmt: skip
        assert part in text, part
    assert HOSTILE not in html
    write_summary(run / "summary.json", before)
    write_report(run)


def test_the_summary_with_all_new_parts_reads_back(run: Path) -> None:
    summary = summary_of(run)
    assert json.loads(json.dumps(summary.to_json()))["groups"][0]["by"] == "level"
    assert dataclasses.replace(summary) == read_summary(run / "summary.json")
