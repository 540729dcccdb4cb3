"""Scores by group: every prompt in its group, intervals as everywhere, and nothing said of groups that do not differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.evaluation import groups as module
from distill_lab.evaluation.groups import group_scores
from distill_lab.evaluation.statistics import score_interval
from distill_lab.evaluation.summary_file import Grouping
from distill_lab.files.jsonl import write_jsonl
from tests.helpers import eval_row


def write(folder: Path, rows: list[tuple[dict[str, Any], float, str]]) -> tuple[Path, Path]:
    """Test prompts and eval rows of (meta, score, text)."""
    test, results = folder / "test.jsonl", folder / "student.jsonl"
    prompts = [[{"role": "user", "content": text}] for _, _, text in rows]
    write_jsonl(
        test,
        [
            {"id": f"t-{place}", "messages": prompts[place], "answer": "4", "meta": meta}
            for place, (meta, _, _) in enumerate(rows)
        ],
    )
    write_jsonl(results, [eval_row(f"t-{n}", score, prompt=prompts[n]) for n, (_, score, _) in enumerate(rows)])
    return test, results


def found_in(folder: Path, rows: list[tuple[dict[str, Any], float, str]], **more: Any) -> dict[str, Grouping]:
    test, results = write(folder, rows)
    found = group_scores(test, {"student": results}, **({"by_label": False} | more))
    return {grouping.by: grouping for grouping in found}


def test_scores_and_intervals_of_each_group(tmp_path: Path) -> None:
    rows = [({"level": level, "type": "sum"}, float(place % 2), "x" * 5) for place in range(6) for level in (2, 10)]
    found = found_in(tmp_path, rows)
    assert list(found) == ["level"], "one type and one length say nothing"
    assert [group.name for group in found["level"].groups] == ["2", "10"]
    for group in found["level"].groups:
        assert (group.n, group.scores["student"].score) == (6, 0.5)
        assert group.scores["student"].ci95 == score_interval([0.0, 1.0] * 3)


def test_lengths_are_groups_of_about_the_same_size_and_hold_all(tmp_path: Path) -> None:
    rows = [({}, 1.0, "x" * (1 + place)) for place in range(100)]
    [grouping] = found_in(tmp_path, rows).values()
    assert [group.name for group in grouping.groups] == ["1 to 25", "26 to 50", "51 to 75", "76 to 100"]
    assert [group.n for group in grouping.groups] == [25] * 4
    few = found_in(tmp_path, [({}, 1.0, "x" * length) for length in (5, 5, 5, 5, 900)])["prompt characters"]
    assert [(group.name, group.n) for group in few.groups] == [("5 to 5", 4), ("6 to 900", 1)]


def test_prompts_without_a_field_are_counted_and_odd_values_are_no_group(tmp_path: Path) -> None:
    metas: list[dict[str, Any]] = [
        {"type": "a"}, {"type": "b"}, {}, {"type": None}, {"type": 0.5}, {"type": "x" * 61}, {"type": " "}, {"type": ["a"]},
    ]  # fmt: skip
    grouping = found_in(tmp_path, [(meta, 1.0, "x") for meta in metas])["type"]
    assert [group.name for group in grouping.groups] == ["a", "b"]
    assert grouping.without == 6


def test_many_groups_are_kept_by_size_and_the_rest_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROUPS", 3)
    rows = [
        ({"type": name}, 1.0, "x") for name, number in (("a", 1), ("b", 4), ("c", 3), ("d", 1)) for _ in range(number)
    ]
    grouping = found_in(tmp_path, rows)["type"]
    assert [(group.name, group.n) for group in grouping.groups] == [("b", 4), ("c", 3), ("2 others", 2)]


def test_labels_and_unreadable_gold_answers(tmp_path: Path) -> None:
    test, results = tmp_path / "test.jsonl", tmp_path / "student.jsonl"
    names = ["de", "en", "de", "fr"]
    prompts = [[{"role": "user", "content": "x"}]] * 4
    write_jsonl(test, [{"id": f"t-{n}", "messages": prompts[n], "answer": name} for n, name in enumerate(names)])
    rows = [eval_row(f"t-{n}", answer=name, prompt=prompts[n]) for n, name in enumerate(names)]
    rows[3]["grade"] = {"score": 0.0, "answer": None, "status": "bad_gold"}
    write_jsonl(results, rows)
    [grouping] = group_scores(test, {"student": results}, by_label=True)
    assert [(group.name, group.n) for group in grouping.groups] == [("de", 2), ("en", 1)]


def test_samples_of_a_prompt_count_once(tmp_path: Path) -> None:
    test, results = write(tmp_path, [({"type": "a"}, 1.0, "x"), ({"type": "b"}, 1.0, "x")])
    rows = [eval_row("t-0", score, sample=sample) for sample, score in enumerate((1.0, 0.0, 0.0, 1.0))]
    write_jsonl(results, [*rows, eval_row("t-1")])
    [grouping] = group_scores(test, {"student": results}, by_label=False)
    assert [(group.n, group.scores["student"].score) for group in grouping.groups] == [(1, 0.5), (1, 1.0)]


def test_no_answers_have_no_groups(tmp_path: Path) -> None:
    test, _ = write(tmp_path, [({"type": "a"}, 1.0, "x")])
    assert group_scores(test, {}, by_label=False) == ()
