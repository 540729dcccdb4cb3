"""What is kept of graded completions: the correct ones once, within budgets, on the right side of the split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distill_lab.errors import DataError, NoData
from distill_lab.evaluation.token_stats import read_stats
from distill_lab.files.jsonl import write_jsonl
from distill_lab.train.rows import read_rows
from distill_lab.training_data.selection import (
    read_selection,
    select,
    shuffle_answers,
    take_side,
    write_correct,
    write_parquet,
)

GRADED = [
    ("a", 0, "2 + 2 = 4\nFinal Answer: 4", "stop", 1.0, "ok", 12),
    ("a", 1, "2 + 2 =  4\n\nFinal Answer: 4", "stop", 1.0, "ok", 13),
    ("a", 2, "Final Answer: 4", "stop", 1.0, "ok", 6),
    ("a", 3, "Final Answer: 5", "stop", 0.0, "ok", 6),
    ("b", 0, "Final Answer: 9", "length", 0.0, "unparseable", 40),
    ("b", 1, "hm", "stop", 0.0, "unparseable", 2),
    ("b", 2, "", "error", 0.0, "unparseable", 0),
    ("b", 3, "x^x^x", "stop", 0.0, "timeout", 8),
    ("c", 0, "Final Answer: 4", "stop", 1.0, "ok", 30),
    ("c", 1, "So 4.\nFinal Answer: 4", "stop", 1.0, "ok", 20),
    ("c", 2, "As 4.\nFinal Answer: 4", "stop", 0.5, "ok", 20),
]


@pytest.fixture
def graded(tmp_path: Path) -> tuple[Path, Path]:
    """Prompts a (level 1), b, c (level 2, type sum), and the completions above."""
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "graded.jsonl"
    meta = {"a": {"level": 1}, "b": {}, "c": {"level": 2, "type": "sum"}}
    write_jsonl(
        prompts,
        [
            {"id": key, "messages": [{"role": "user", "content": f"{key}?"}], "answer": "4", "meta": meta[key]}
            for key in "abc"
        ],
    )
    write_jsonl(
        path,
        [
            {
                **{"id": key, "sample": sample, "content": content, "thinking": "think" if sample == 2 else None},
                **{"finish_reason": reason, "num_tokens": tokens},
                "grade": {"score": score, "answer": "4", "status": status},
            }
            for key, sample, content, reason, score, status, tokens in GRADED
        ],
    )
    return prompts, path


@pytest.fixture
def correct(graded: tuple[Path, Path], tmp_path: Path) -> Path:
    write_correct(*graded, tmp_path / "correct.parquet")
    return tmp_path / "correct.parquet"


def names(path: Path) -> list[tuple[str, int]]:
    return [(row["id"], row["sample"]) for row in read_selection(path)]


def test_correct_ones_are_kept_once_and_every_other_is_counted_by_reason(
    graded: tuple[Path, Path], tmp_path: Path
) -> None:
    counts = write_correct(*graded, tmp_path / "correct.parquet")
    assert (counts.rows_in, counts.kept) == (11, 4)
    assert counts.dropped == {
        **{"duplicate": 1, "wrong": 2, "cut at the token limit": 1, "no readable answer": 1, "error": 1},
        "the grader timed out": 1,
    }
    assert names(tmp_path / "correct.parquet") == [("a", 0), ("a", 2), ("c", 0), ("c", 1)]
    frame: Any = pd.read_parquet(tmp_path / "correct.parquet")
    assert frame["num_tokens"].tolist() == [12, 6, 30, 20]
    assert frame.groupby("level")["num_tokens"].median().to_dict() == {"1": 9.0, "2": 25.0}
    assert frame["type"].tolist()[2:] == ["sum", "sum"]


def test_a_lower_least_score_lets_more_in(graded: tuple[Path, Path], tmp_path: Path) -> None:
    assert write_correct(*graded, tmp_path / "correct.parquet", min_score=0.5).kept == 5


def test_rows_are_training_rows_with_their_thinking(correct: Path) -> None:
    rows = list(read_selection(correct))
    assert rows[0]["prompt"] == [{"role": "user", "content": "a?"}]
    assert rows[0]["completion"] == [{"role": "assistant", "content": GRADED[0][2]}]
    assert rows[1]["completion"] == [{"role": "assistant", "content": "Final Answer: 4", "thinking": "think"}]


def test_the_trainer_reads_them(correct: Path) -> None:
    from distill_lab.config import ModelConfig
    from distill_lab.models.loading import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(model="tiny:student"))
    assert read_rows(correct, tokenizer, max_length=256, validation_fraction=0, seed=0).num_rows == 4


@pytest.mark.parametrize(
    ("settings", "kept", "over", "enough"),
    [
        ({}, [("a", 0), ("a", 2), ("c", 0), ("c", 1)], 0, 0),
        ({"keep": "shortest"}, [("a", 2), ("c", 1)], 0, 2),
        ({"keep": 1}, [("a", 0), ("c", 0)], 0, 2),
        # The median of 6, 12, 20, 30 is 16; by level those of 6, 12 and of 20, 30 are 9 and 25.
        ({"budget": 0.5}, [("a", 0), ("a", 2)], 2, 0),
        ({"budget": 0.5, "budget_by": "level"}, [("a", 2), ("c", 1)], 2, 0),
        ({"budget": 0.5, "budget_by": "type"}, [("a", 2), ("c", 1)], 2, 0),
        # Each question's own median: 9 and 25.
        ({"budget": 0.5, "budget_by": "question"}, [("a", 2), ("c", 1)], 2, 0),
        ({"budget": 0.5, "keep": "shortest"}, [("a", 2)], 2, 1),
    ],
)
def test_selection(
    correct: Path, tmp_path: Path, settings: dict[str, Any], kept: list[tuple[str, int]], over: int, enough: int
) -> None:
    counts = select(correct, tmp_path / "selected.parquet", **settings)
    assert names(tmp_path / "selected.parquet") == kept
    assert counts.dropped == {"over the token budget": over, "enough of this question": enough}
    assert counts.rows_in == 4


def test_both_sides_of_the_split_are_the_whole_and_share_no_question(correct: Path, tmp_path: Path) -> None:
    validation = tmp_path / "validation.jsonl"
    write_jsonl(validation, [{"id": "other id", "messages": [{"role": "user", "content": "c?"}]}])
    training = take_side(correct, validation, tmp_path / "train.parquet", side="training")
    held_out = take_side(correct, validation, tmp_path / "val.parquet", side="validation")
    assert (training.kept, training.dropped) == (2, {"for validation": 2})
    assert (held_out.kept, held_out.dropped) == (2, {"for training": 2})
    assert {row["question"] for row in read_selection(tmp_path / "train.parquet")} == {"a?"}
    assert {row["question"] for row in read_selection(tmp_path / "val.parquet")} == {"c?"}


def test_shuffled_answers_are_the_same_answers_none_with_its_question(tmp_path: Path) -> None:
    rows = [
        {
            **{
                "id": f"{question}",
                "sample": sample,
                "question": f"{question}?",
                "answer": "1",
                "num_tokens": question,
            },
            "prompt": [{"role": "user", "content": f"{question}?"}],
            "completion": [{"role": "assistant", "content": f"answer to {question}, {sample}"}],
        }
        for question in range(7)
        for sample in range(1 + question % 3)
    ]
    write_parquet(tmp_path / "rows.parquet", rows)
    counts = shuffle_answers(tmp_path / "rows.parquet", tmp_path / "shuffled.parquet")
    found = list(read_selection(tmp_path / "shuffled.parquet"))
    assert counts.kept == len(found) == len(rows)

    def texts(of: Sequence[Mapping[str, Any]], field: str) -> list[str]:
        return sorted(row[field][0]["content"] for row in of)

    assert texts(found, "prompt") == texts(rows, "prompt")
    assert texts(found, "completion") == texts(rows, "completion")
    for row in found:
        assert row["completion"][0]["content"].split(",")[0] != f"answer to {row['id']}"
        assert row["num_tokens"] == int(row["completion"][0]["content"].split()[2].rstrip(","))


def test_one_question_cannot_be_shuffled(correct: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "one.parquet", [row for row in read_selection(correct) if row["id"] == "a"])
    with pytest.raises(NoData, match="too few questions"):
        shuffle_answers(tmp_path / "one.parquet", tmp_path / "shuffled.parquet")


def test_completions_without_a_grade_or_of_other_prompts_are_refused(graded: tuple[Path, Path], tmp_path: Path) -> None:
    prompts, path = graded
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [rows[0], {key: value for key, value in rows[1].items() if key != "grade"}])
    with pytest.raises(DataError, match=r"graded\.jsonl:2: .*no grade"):
        write_correct(prompts, path, tmp_path / "correct.parquet")
    write_jsonl(path, [rows[0] | {"id": "foreign"}])
    with pytest.raises(DataError, match="foreign"):
        write_correct(prompts, path, tmp_path / "correct.parquet")
    assert not (tmp_path / "correct.parquet").exists()


def test_statistics_by_level_and_type(correct: Path) -> None:
    stats = read_stats(correct)
    whole = stats["all"][""]
    assert (whole.num, whole.mean, whole.median, whole.shortest, whole.longest) == (4, 17.0, 16.0, 6, 30)
    assert {level: (each.num, each.median) for level, each in stats["level"].items()} == {"1": (2, 9), "2": (2, 25)}
    assert list(stats["type"]) == ["sum"]


def test_nothing_correct_has_no_statistics(tmp_path: Path) -> None:
    write_parquet(tmp_path / "none.parquet", [])
    assert read_stats(tmp_path / "none.parquet") == {"all": {}, "level": {}, "type": {}}
    assert select(tmp_path / "none.parquet", tmp_path / "selected.parquet", budget=0.5).rows_in == 0
