"""The grade stage: the file, the tally, going on after a stop, and the command."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill_lab.cli import main
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError, UserError
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.files.parquet import read_parquet
from distill_lab.grading.grade import NUM_AT_ONCE, Tally, grade, read_tally
from distill_lab.grading.graders import OneByOne, Pair
from distill_lab.types import Completion, Grade, Prompt


def completion(index: int, content: str, sample: int = 0, **more: Any) -> dict[str, Any]:
    row = {"id": f"p-{index}", "sample": sample, "content": content, "thinking": None}
    return row | {"finish_reason": "stop", "num_tokens": 4} | more


def write(folder: Path, num_prompts: int, completions: Iterable[dict[str, Any]]) -> tuple[Path, Path]:
    prompts = [
        {"id": f"p-{n}", "messages": [{"role": "user", "content": "?"}], "answer": str(n)} for n in range(num_prompts)
    ]
    write_jsonl(folder / "prompts.jsonl", prompts)
    write_jsonl(folder / "completions.jsonl", completions)
    return folder / "prompts.jsonl", folder / "completions.jsonl"


def test_rows_and_tally(tmp_path: Path) -> None:
    rows = [
        completion(2, "none"),
        completion(0, "So 0."),
        completion(1, "2", sample=1, more_fields=True),
        completion(1, "1"),
        completion(0, "0", sample=1, finish_reason="length"),
    ]
    inputs = write(tmp_path, 4, rows)
    tally = grade(*inputs, tmp_path / "graded.jsonl", "numeric")
    assert tally == Tally(num_rows=5, ok=3, unparseable=2, timeout=0, score=2 / 5)
    assert read_tally(tmp_path / "graded.jsonl") == tally
    graded = list(read_jsonl(tmp_path / "graded.jsonl"))
    assert [(row["id"], row["sample"]) for row in graded] == [
        ("p-0", 0),
        ("p-0", 1),
        ("p-1", 0),
        ("p-1", 1),
        ("p-2", 0),
    ]
    assert graded[0] == completion(0, "So 0.") | {"grade": {"score": 1.0, "answer": "0", "status": "ok"}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completions.jsonl", "graded.jsonl", "prompts.jsonl"]


def test_no_completions_make_an_empty_file(tmp_path: Path) -> None:
    assert grade(*write(tmp_path, 2, []), tmp_path / "graded.jsonl", "exact") == Tally(0, 0, 0, 0, 0.0)
    assert (tmp_path / "graded.jsonl").read_bytes() == b""


class StopsOnce:
    """A grader that is interrupted at its third batch, once, and counts what it was given."""

    name = "stops once"

    def __init__(self) -> None:
        self.given, self.stopped = 0, False

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        return Grade(float(completion.content == prompt.answer), completion.content)

    def grade_all(self, pairs: Sequence[Pair]) -> list[Grade]:
        if self.given == 2 * NUM_AT_ONCE and not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt
        self.given += len(pairs)
        return [self(*pair) for pair in pairs]


@pytest.mark.parametrize("stage", [grade, evaluate])
def test_a_stop_in_the_middle_loses_nothing(stage: Any, tmp_path: Path) -> None:
    number = 3 * NUM_AT_ONCE + 7
    inputs = write(tmp_path, number, [completion(n, str(n - n % 2)) for n in reversed(range(number))])
    path, grader, seen = tmp_path / "out.jsonl", StopsOnce(), []
    with pytest.raises(KeyboardInterrupt):
        stage(*inputs, path, grader)
    assert not path.exists()
    (partial,) = (tmp_path / "out.jsonl.work").glob("*.jsonl")
    partial.write_bytes(partial.read_bytes() + b'{"torn": ')
    result = stage(*inputs, path, grader, on_progress=lambda done, total: seen.append((done, total)))
    assert grader.given == number
    assert result.score == pytest.approx((number + 1) // 2 / number)
    assert [row["id"] for row in read_jsonl(path)] == [f"p-{n}" for n in range(number)]
    assert seen == [(3 * NUM_AT_ONCE, number), (number, number)]
    assert not (tmp_path / "out.jsonl.work").exists()


def test_other_inputs_or_another_grader_begin_anew(tmp_path: Path) -> None:
    number = 3 * NUM_AT_ONCE
    inputs = write(tmp_path, number, [completion(n, str(n)) for n in range(number)])
    with pytest.raises(KeyboardInterrupt):
        grade(*inputs, tmp_path / "out.jsonl", StopsOnce())
    wrong = OneByOne("always wrong", lambda prompt, completion: Grade(0.0, "x"))
    assert grade(*inputs, tmp_path / "out.jsonl", wrong).score == 0.0
    assert grade(*inputs, tmp_path / "out.jsonl", "exact").score == 1.0
    assert not (tmp_path / "out.jsonl.work").exists()


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([completion(9, "x")], UserError, r"1 completions .*first: p-9"),
        ([completion(0, "x"), completion(0, "x")], DataError, r"completions.jsonl:2.*second completion of p-0"),
        ([{"id": "p-0"}], DataError, r"completions.jsonl:1.*the field 'sample' is missing"),
        ([completion(0, "x", sample=-1)], DataError, "must be a non-negative integer, got -1"),
        ([completion(0, "x") | {"content": None}], DataError, "content must be text"),
        ([completion(0, "x") | {"id": ["p"]}], DataError, "id and content must be text"),
    ],
)
def test_faults_are_named(tmp_path: Path, rows: list[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        grade(*write(tmp_path, 1, rows), tmp_path / "out.jsonl", "exact")
    assert not (tmp_path / "out.jsonl").exists()


def test_prompts_are_read_with_their_reference(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "the cat"}
    rows = [
        {"id": "a", "messages": [], "completion": [turn]},
        {"id": "b", "messages": [], "answer": "x", "completion": [turn]},
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    assert [prompt.answer for prompt in read_prompts(tmp_path / "p.jsonl")] == [None, "x"]
    assert [prompt.answer for prompt in read_prompts(tmp_path / "p.jsonl", references=True)] == ["the cat", "x"]
    write_jsonl(tmp_path / "p.jsonl", [{"id": 3, "messages": []}])
    with pytest.raises(DataError, match=r"p.jsonl:1: the id is int, expected text"):
        list(read_prompts(tmp_path / "p.jsonl"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, completions = write(tmp_path, 3, [completion(0, "0"), completion(1, "none")])
    arguments = ["grade", "--prompts", str(prompts), "--completions", str(completions), "--grader", "numeric", "--out"]
    assert main([*arguments, str(tmp_path / "graded.jsonl")]) == 0
    assert "2 graded: 1 ok, 1 unparseable, 0 timed out; mean score 0.500" in capsys.readouterr().out
    correct = tmp_path / "correct.parquet"
    for _ in range(2):  # the same command again writes it again
        assert main([*arguments, str(tmp_path / "graded.jsonl"), "--save-correct", str(correct)]) == 0
    assert "correct: 2 in, 1 kept, 1 dropped: no readable answer, 50.00%, in" in capsys.readouterr().out
    assert [row["completion"][0]["content"] for row in read_parquet(correct)] == ["0"]
    assert main([*arguments, str(tmp_path / "graded.jsonl"), "--save-correct", str(tmp_path / "x.jsonl")]) == 2
    assert "use a name that ends in .parquet" in capsys.readouterr().err
    assert main([*arguments, str(prompts)]) == 2
    assert "this file is also an input" in capsys.readouterr().err
    assert len(list(read_prompts(prompts))) == 3
    assert main(["grade", "--prompts", "none.jsonl", "--completions", str(completions), "--out", "x.jsonl"]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    number = 1500
    inputs = write(tmp_path, number, (completion(n, "word " * 4000 + f"is {n}") for n in range(number)))
    assert inputs[1].stat().st_size > 30 * 10**6
    tracemalloc.start()
    try:
        assert evaluate(*inputs, tmp_path / "out.jsonl", "numeric").score == 1.0
        assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    finally:
        tracemalloc.stop()
