"""Traces: the forms they come in, thresholds as shares and as levels, which one is best, and counts that add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import write_prompts
from distill_lab.data.traces import Trace, best, minimum_level, read_traces, reason_against, select_traces
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl


def nested(rv: int, cd: int, *, verified: bool = True, text: str = "answer") -> dict[str, Any]:
    return {
        "thought": f"thinking of {text}",
        "solution": text,
        "full_response": f"<think>\nthinking of {text}\n</think>\n\n{text}",
        "teacher": "DeepSeek-R1",
        "thought_correctness_verify": verified,
        "Reasoning_Verbosity": {"level": rv, "judge": "QwQ-32B"},
        "Cognitive_Difficulty": {"level": cd, "judge": "QwQ-32B"},
    }


ROW = {"question": "q", "reasoning": [nested(9, 3, text="a"), nested(6, 6, text="b"), nested(6, 6, verified=False)]}


def test_nested_row() -> None:
    question, traces = read_traces(ROW)
    assert question == "q"
    assert traces[0] == Trace("thinking of a", "a", 9, 3, True, "DeepSeek-R1")
    assert [trace.verified for trace in traces] == [True, True, False]


@pytest.mark.parametrize(
    "response",
    [
        "<think>\nhm\n</think>\n\nright",
        "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nright\n\n<|end_of_solution|>",
    ],
)
def test_a_full_response_is_split_at_its_tags(response: str) -> None:
    (trace,) = read_traces({"question": "q", "reasoning": [{"full_response": response}]})[1]
    assert trace == Trace("hm", "right")
    (tagged,) = read_traces({"question": "q", "reasoning": [{"thought": "<think>hm</think>", "solution": "right"}]})[1]
    assert tagged == Trace("hm", "right")


@pytest.mark.parametrize(
    ("row", "trace"),
    [
        ({"instruction": "q", "output": "<think>a</think>b", "rv_score": 0.6, "cd_score": 1}, Trace("a", "b", 5.4, 9)),
        ({"question": "q", "cot": "b", "rv_score": 7, "cd_score": 0}, Trace(None, "b", 7, 0)),
        ({"input": "q", "answer": "b", "rv_score": None}, Trace(None, "b")),
        (
            {"instruction": "q", "response": "b", "reasoning_verbosity": "3", "cognitive_difficulty": 4,
             "logical_correctness": "False"},
            Trace(None, "b", 3, 4, False),
        ),
    ],
)  # fmt: skip
def test_flat_rows(row: dict[str, Any], trace: Trace) -> None:
    question, (found,) = read_traces(row)
    assert question == "q"
    assert (found.thinking, found.solution, found.verified) == (trace.thinking, trace.solution, trace.verified)
    assert (found.rv, found.cd) == pytest.approx((trace.rv, trace.cd))


def test_real_rows_with_thought_tags(shared_data: Path) -> None:
    path = shared_data / "instructions/easydistill_cot_eval_samples.jsonl"
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        _, (trace,) = read_traces(row)
        assert trace.thinking
        assert "<|" not in trace.thinking + trace.solution
        assert (trace.rv, trace.cd, trace.verified) == (None, None, None)


def test_thresholds_are_shares_up_to_1_and_levels_above() -> None:
    levels = {0: 0, 0.1: 1, 1 / 9: 1, 0.4: 4, 0.6: 6, 2 / 3: 6, 0.7: 7, 1: 9, 2: 2, 5.5: 6, 9: 9}
    assert {threshold: minimum_level(threshold) for threshold in levels} == levels
    for threshold in (-0.1, 9.5, float("nan")):
        with pytest.raises(UserError, match="fraction from 0 to 1 or a level up to 9"):
            minimum_level(threshold)


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (Trace("t", "s", 6, 6, True), None),
        (Trace("t", "s", 5, 6, True), "RV below 6"),
        (Trace("t", "s", 6, 5, True), "CD below 6"),
        (Trace("t", "s", 0.6 * 9, 0.6 * 9), None),
        (Trace("t", "s", 0.59 * 9, 9), "RV below 6"),
        (Trace("t", "s", 9, 9, False), "not verified"),
        (Trace("t", " ", 9, 9, True), "empty"),
        (Trace("t", "s"), None),
    ],
)
def test_reason_against(trace: Trace, reason: str | None) -> None:
    assert reason_against(trace, rv_min=0.6, cd_min=0.6) == reason


def test_the_best_trace_by_each_step_of_its_rule() -> None:
    def winner(*traces: Trace) -> str:
        found = best(traces)
        assert found is not None
        return found.solution

    assert winner(Trace("t", "no", 5, 5, False), Trace("t", "unknown", 5, 5), Trace("t", "yes", 9, 0, True)) == "yes"
    assert winner(Trace("t", "far", 9, 3, True), Trace("t", "near", 4, 5, True)) == "near"
    assert winner(Trace("longer", "x", 4, 4, True), Trace("t", "y", 4, 4, True)) == "y"
    assert winner(Trace("t", "1", 4, 4, True), Trace("t", "2", 4, 4, True)) == "1"
    assert best([Trace("t", "")]) is None
    assert best([]) is None


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts as the adapter writes them: five traces of three questions, and a row without traces."""
    rows = [ROW, {"question": "r", "reasoning": [nested(2, 8)]}, {"question": "s", "reasoning": []}]
    source = tmp_path / "omni.jsonl"
    write_jsonl(source, rows)
    assert write_prompts(DataConfig(path=str(source)), tmp_path / "prompts.jsonl").kept == 3
    return tmp_path / "prompts.jsonl"


def test_selection_counts_every_trace(prompts: Path, tmp_path: Path) -> None:
    counts = select_traces(prompts, tmp_path / "best.jsonl", rv_min=0.6)
    assert (counts.rows_in, counts.kept) == (4, 1)
    assert counts.dropped == {"not verified": 1, "another trace of the question is better": 1, "RV below 6": 1}
    (row,) = read_jsonl(tmp_path / "best.jsonl")
    assert row["id"] == "train-0"
    assert row["completion"] == [{"role": "assistant", "content": "b", "thinking": "thinking of b"}]
    assert row["meta"] == {"rv": 6, "cd": 6, "verified": True, "teacher": "DeepSeek-R1"}


def test_all_traces_of_a_question_have_ids_of_their_own(prompts: Path, tmp_path: Path) -> None:
    counts = select_traces(prompts, tmp_path / "all.jsonl", verified_only=False, per_question=0)
    assert (counts.rows_in, counts.kept, counts.dropped) == (4, 4, {})
    rows = list(read_jsonl(tmp_path / "all.jsonl"))
    assert [row["id"] for row in rows] == ["train-0", "train-0.2", "train-0.3", "train-1"]
    assert [row["completion"][0]["content"] for row in rows] == ["b", "a", "answer", "answer"]


def test_rows_without_traces_keep_every_turn(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"id": "1", "messages": [], "completion": turns}, {"id": "2", "messages": []}]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    counts = select_traces(tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", rv_min=9)
    assert (counts.rows_in, counts.kept, counts.dropped) == (2, 1, {"empty": 1})
    assert list(read_jsonl(tmp_path / "out.jsonl")) == rows[:1]


def test_faults_are_named(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="invalid threshold 12"):
        select_traces(prompts, tmp_path / "out.jsonl", cd_min=12)
    write_jsonl(tmp_path / "bad.jsonl", [{"id": "1", "messages": [], "meta": {"traces": [{"x": 1}]}}])
    with pytest.raises(DataError, match=r"bad.jsonl:1: its meta contains invalid traces"):
        select_traces(tmp_path / "bad.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
