"""Several runs side by side: compared by content, prompt by prompt; what cannot be compared is named with the reason."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import read_eval_rows
from distill_lab.report.comparison_page import write_comparison
from distill_lab.report.run_comparison import compare_runs, comparison_lines, comparison_table, short_comparison
from tests.made_runs import HOSTILE, made_run, write_log

WORSE = {"teacher": 0.95, "base": 0.4, "student": 0.5}


def scores(run: Path) -> dict[str, float]:
    return {row.text: row.score for row in read_eval_rows(run / "eval" / "student.jsonl")}


def test_runs_are_compared_by_content_whatever_their_ids_are(tmp_path: Path) -> None:
    first = made_run(tmp_path / "a", num=40)
    second = made_run(tmp_path / "b", num=50, first=10, right=WORSE, seed=5, ids="other")
    found = compare_runs([first, second, first])
    [each] = found.compared
    one, two = scores(first), scores(second)
    common = [text for text in one if text in two]
    assert (each.pair.n, each.pair.only_first, each.pair.only_second) == (30, 10, 20) == (len(common), 10, 20)
    assert each.pair.paired is not None
    assert each.pair.paired.gain == pytest.approx(sum(two[text] - one[text] for text in common) / 30)
    assert each.pair.paired.ci95[0] <= each.pair.paired.gain <= each.pair.paired.ci95[1]
    assert found.left_out == {}
    assert re.search(
        r"on 30 common prompts; 10 only in the first, 20 only in this one", "\n".join(comparison_lines(found))
    )


def test_another_gold_answer_is_another_prompt(tmp_path: Path) -> None:
    first, second = made_run(tmp_path / "a", num=20), made_run(tmp_path / "b", num=20)
    path = second / "eval" / "student.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows[:5]:
        row["answer"] = "another"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [each] = compare_runs([first, second]).compared
    assert (each.pair.n, each.pair.only_first, each.pair.only_second) == (15, 5, 5)


def test_what_cannot_be_compared_is_named_with_the_reason(tmp_path: Path) -> None:
    first = made_run(tmp_path / "a", num=20)
    made_run(tmp_path / "overlap", num=20, grader="overlap")
    made_run(tmp_path / "elsewhere", num=20, first=500)
    for name in ("early", "damaged", "unscored", "no answers"):
        made_run(tmp_path / name, num=4)
    (tmp_path / "early" / "summary.json").unlink()
    (tmp_path / "damaged" / "summary.json").write_text('{"version": 1}')
    summary = json.loads((tmp_path / "unscored" / "summary.json").read_text())
    del summary["models"]["student"]
    (tmp_path / "unscored" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "no answers" / "eval" / "student.jsonl").unlink()
    names = ["overlap", "elsewhere", "early", "damaged", "unscored", "no answers", "nowhere"]
    found = compare_runs([first, *(tmp_path / name for name in names)])
    reasons = {Path(name).name: reason for name, reason in found.left_out.items()}
    assert list(reasons) == names
    assert reasons["overlap"] == "its scores are ROUGE-L overlap with the reference text, not exact match"
    assert reasons["elsewhere"].startswith("no prompt of its test")
    assert reasons["early"] == "it has no summary yet (not finished)"
    assert "of an earlier version" in reasons["damaged"]
    assert reasons["unscored"] == "its student was not scored"
    assert reasons["no answers"].endswith("is missing")
    assert "not a run directory" in reasons["nowhere"]
    rows = list(csv.DictReader(comparison_table(found).csv().splitlines()))
    assert [row["not_compared"] for row in rows] == ["", *reasons.values()]


def test_too_few_runs_or_a_first_one_without_scores(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", num=4)
    for runs in ([], [run], [run, run]):
        with pytest.raises(UserError, match="at least two different"):
            compare_runs(runs)
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(UserError, match="put another run first"):
        compare_runs([run, made_run(tmp_path / "b", num=4)])


def test_the_page_draws_all_runs_over_each_other(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, num=30, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    write_log(runs[2] / "training_log.jsonl", steps=200)
    found = compare_runs(runs)
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    loss = page.split("Validation loss, nats per token")[1].split("</svg>")[0]
    assert [loss.count(f'class="line {kind}"') for kind in ("one", "two", "three", "four")] == [2, 2, 2, 0]
    assert "<script" not in page
    assert page.count("<article") == 3
    for row in short_comparison(found).rows:
        assert str(row[0]) in page


def test_names_of_runs_and_advice_are_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>".replace("/", "|") + " [x] =cmd()"
    runs = [made_run(tmp_path / name, num=6, advice=(HOSTILE,)), made_run(tmp_path / "b", num=6)]
    found = compare_runs(runs)
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "<script" not in short_comparison(found).markdown()
