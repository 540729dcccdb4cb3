"""Rows and prompts that are trained on: the largest gaps but for the extremes, a band of pass rates, their controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.errors import DataError, NoData
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.training_data.choosing import (
    FAILED,
    FAR,
    LITTLE,
    NOT_DRAWN,
    SURPRISED,
    TOO_EASY,
    TOO_HARD,
    choose_rows,
    draw_rows,
    pass_rates,
    write_drawn,
    write_in_band,
)
from distill_lab.training_data.selection import NO_GOLD


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path]:
    """100 rows whose gaps grow; rows 10 to 19 surprise the teacher, the last two are too long."""
    rows, scores = tmp_path / "train.jsonl", tmp_path / "learnability.jsonl"
    write_jsonl(rows, ({"row": place} for place in range(100)))

    def line(place: int) -> dict[str, Any]:
        if place >= 98:
            return {"dropped": "too long"}
        teacher = 5.0 if 10 <= place < 20 else 0.1
        return {"tokens": 9, "student": teacher + place / 100, "teacher": teacher, "gap": place / 100}

    write_jsonl(scores, map(line, range(100)))
    return rows, scores


def places(path: Path) -> list[int]:
    return [row["row"] for row in read_jsonl(path)]


def test_the_largest_gaps_are_kept_but_for_the_extremes(scored: tuple[Path, Path], tmp_path: Path) -> None:
    counts = choose_rows(*scored, tmp_path / "chosen.jsonl", share=0.5)
    kept = places(tmp_path / "chosen.jsonl")
    assert len(kept) == counts.kept == 49
    assert counts.dropped == {"too long": 2, SURPRISED: 4, FAR: 4, LITTLE: 41}
    assert kept == list(range(45, 94))
    # Nearly everything: the extremes shrink with what is left out, and the size is the share.
    counts = choose_rows(*scored, tmp_path / "chosen.jsonl", share=0.9)
    assert (counts.kept, counts.dropped[SURPRISED], counts.dropped[FAR]) == (88, 2, 2)
    assert choose_rows(*scored, tmp_path / "chosen.jsonl", share=1.0).dropped == {"too long": 2}
    assert choose_rows(*scored, tmp_path / "chosen.jsonl", share=0.001).kept == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_the_control_is_as_large_and_drawn_from_all(scored: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    chosen = choose_rows(*scored, tmp_path / "chosen.jsonl", share=share)
    drawn = [draw_rows(*scored, tmp_path / f"{seed}.jsonl", share=share, seed=seed) for seed in (0, 0, 1)]
    assert {counts.kept for counts in drawn} == {chosen.kept}
    assert drawn[0].dropped == {"too long": 2, NOT_DRAWN: 98 - chosen.kept}
    first, second = places(tmp_path / "0.jsonl"), places(tmp_path / "1.jsonl")
    assert first != second
    assert first == sorted(first)
    assert max(first) < 98
    draw_rows(*scored, tmp_path / "again.jsonl", share=share, seed=0)
    assert places(tmp_path / "again.jsonl") == first


def test_scores_of_other_rows_are_refused(scored: tuple[Path, Path], tmp_path: Path) -> None:
    rows, scores = scored
    write_jsonl(rows, [{"row": 0}])
    with pytest.raises(DataError, match="100 lines for the 1 rows"):
        choose_rows(rows, scores, tmp_path / "chosen.jsonl", share=0.5)
    write_jsonl(scores, [{"dropped": "too long"}])
    with pytest.raises(NoData, match="no row that can be trained"):
        draw_rows(rows, scores, tmp_path / "chosen.jsonl", share=0.5, seed=0)


def graded(path: Path, **rates: str) -> Path:
    """A sign for each sample: 1 right, 0 wrong, g a bad gold answer, e an error."""
    status = {"g": "bad_gold"}
    write_jsonl(
        path,
        (
            {
                "id": id,
                "sample": number,
                "finish_reason": "error" if sign == "e" else "stop",
                "grade": {"score": float(sign == "1"), "answer": None, "status": status.get(sign, "ok")},
            }
            for id, signs in rates.items()
            for number, sign in enumerate(signs)
        ),
    )
    return path


def test_prompts_that_the_student_solves_sometimes(tmp_path: Path) -> None:
    ids = ["never", "once", "half", "mostly", "always", "bad", "failed", "partly"]
    prompts, band = tmp_path / "prompts.jsonl", tmp_path / "band.jsonl"
    write_jsonl(prompts, ({"id": id} for id in ids))
    found = graded(
        tmp_path / "graded.jsonl",
        never="00000", once="10000", half="1100", mostly="11110", always="1111", bad="gg", failed="ee", partly="e1e0",
    )  # fmt: skip
    assert pass_rates(found) == {
        "never": 0.0, "once": 0.2, "half": 0.5, "mostly": 0.8, "always": 1.0, "bad": None, "partly": 0.5
    }  # fmt: skip
    counts = write_in_band(prompts, found, band, low=0.2, high=0.8)
    assert [row["id"] for row in read_jsonl(band)] == ["once", "half", "mostly", "partly"]
    assert counts.dropped == {TOO_HARD: 1, TOO_EASY: 1, NO_GOLD: 1, FAILED: 1}
    assert counts.rows_in == 8
    counts = write_drawn(prompts, found, band, tmp_path / "drawn.jsonl", seed=0)
    drawn = [row["id"] for row in read_jsonl(tmp_path / "drawn.jsonl")]
    assert len(drawn) == counts.kept == 4
    assert counts.dropped == {NOT_DRAWN: 2, NO_GOLD: 1, FAILED: 1}
    assert not {"bad", "failed"} & set(drawn)
    others = {
        tuple(row["id"] for row in read_jsonl(tmp_path / "drawn.jsonl"))
        for seed in range(9)
        if write_drawn(prompts, found, band, tmp_path / "drawn.jsonl", seed=seed)
    }
    assert {"never", "always"} <= {id for each in others for id in each}
    # A sample passes from another grade on.
    assert write_in_band(prompts, found, band, low=0, high=0, threshold=2.0).kept == 6
    write_jsonl(found, [{"id": "half", "sample": 0}])
    with pytest.raises(DataError, match=r"graded\.jsonl:1: this completion has no grade"):
        write_in_band(prompts, found, band, low=0.2, high=0.8)
