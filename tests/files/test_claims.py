"""Outputs of commands: a key beside each, and nothing of the user's is ever replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.errors import UserError
from distill_lab.files.claims import claim, key_path
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from tests.claimed import TRAIN, Distill, asked, rows_file, snapshot
from tests.helpers import model_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_what_was_made_with_other_settings_is_refused_by_name(
    command: str, data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    first, second, out = (
        random_model(initializer_range=0.15),
        random_model(seed=1, initializer_range=0.15),
        tmp_path / "out.jsonl",
    )
    assert run(*asked(command, data, out, first))[0] == 0
    assert run(*asked(command, data, out, first))[0] == 0
    before = snapshot(tmp_path)
    changes = [
        (asked(command, data, out, second), f"model ({first}, now {second})"),
        (asked(command, data, out, first, "--sampling.max-new-tokens", "5"), "sampling.max_new_tokens (4, now 5)"),
        (asked(command, data, out, first, "--instruction", "Think."), "prompts (other content)"),
        (asked(command, data, out, "tiny:student"), f"model ({first}, now tiny:student)"),
    ]
    if command == "eval":
        changes.append((asked(command, data, out, first, "--grader", "numeric"), "grader (exact, now numeric)"))
    for arguments, difference in changes:
        code, printed = run(*arguments)
        assert (code, difference in printed, "--overwrite" in printed) == (2, True, True), printed
        assert snapshot(tmp_path) == before
    code, printed = run(*asked(command, data, out, second, "--overwrite"))
    assert code == 0, printed
    fresh = tmp_path / "fresh.jsonl"
    assert run(*asked(command, data, fresh, second))[0] == 0
    assert out.read_bytes() == fresh.read_bytes() != before["out.jsonl"]


def test_a_student_trained_again_in_its_place_is_noticed(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    student, out = tmp_path / "student", tmp_path / "e.jsonl"
    shutil.copytree(random_model(), student)
    assert run(*asked("eval", data, out, student))[0] == 0
    (student / "notes.txt").write_text("mine")
    assert run(*asked("eval", data, out, student))[0] == 0
    shutil.rmtree(student)
    shutil.copytree(random_model(seed=1), student)
    code, printed = run(*asked("eval", data, out, student))
    assert (code, "model.files (other content)" in printed) == (2, True), printed


def test_a_base_can_be_added_to_an_evaluation_and_is_another_model(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    first, second, out = (
        random_model(initializer_range=0.15),
        random_model(seed=1, initializer_range=0.15),
        tmp_path / "e.jsonl",
    )
    assert run(*asked("eval", data, out, first))[0] == 0
    answers = (tmp_path / "e.completions.jsonl").read_bytes()
    code, printed = run(*asked("eval", data, out, first, "--base", second))
    assert (code, f"gain over {second}" in printed) == (0, True), printed
    assert (tmp_path / "e.completions.jsonl").read_bytes() == answers
    code, printed = run(*asked("eval", data, out, first, "--base", first))
    assert (code, "e.base.jsonl was made with other settings: model" in printed) == (2, True), printed


def test_grades_of_other_completions_are_refused(tmp_path: Path, data: Path, run: Distill) -> None:
    prompts, completions, out = tmp_path / "p.jsonl", tmp_path / "c.jsonl", tmp_path / "g.jsonl"
    write_jsonl(prompts, [{"id": "a", "messages": [{"role": "user", "content": "1+1"}], "answer": "2", "meta": {}}])
    row = {"id": "a", "sample": 0, "thinking": None, "finish_reason": "stop", "num_tokens": 1}
    write_jsonl(completions, [{**row, "content": "2"}])
    grade = ["grade", "--prompts", prompts, "--completions", completions, "--out", out, "--grader"]
    assert run(*grade, "exact")[0] == 0
    assert run(*grade, "exact")[0] == 0
    code, printed = run(*grade, "numeric")
    assert (code, "grader (exact, now numeric)" in printed) == (2, True), printed
    write_jsonl(completions, [{**row, "content": "3"}])
    code, printed = run(*grade, "exact")
    assert (code, "completions (other content)" in printed) == (2, True), printed
    code, printed = run(*grade, "exact", "--overwrite")
    assert (code, "mean score 0.000" in printed) == (0, True), printed


def test_a_model_that_was_misspelled_leaves_no_key_behind(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(*asked("generate", data, out, "no-such/model"))[0] == 2
    code, printed = run(*asked("generate", data, out, random_model()))
    assert (code, len(list(read_jsonl(out)))) == (0, 3), printed


def test_an_output_can_be_moved_with_its_key(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    model = random_model()
    assert run(*asked("generate", data, tmp_path / "a" / "out.jsonl", model))[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    before = snapshot(tmp_path / "b")
    assert run(*asked("generate", data, tmp_path / "b" / "out.jsonl", model))[0] == 0
    assert snapshot(tmp_path / "b") == before


def commands(data: Path, out: Path) -> list[list[Any]]:
    """Every command that writes an output, each onto `out`."""
    return [
        asked("generate", data, out, "tiny:student"),
        asked("eval", data, out, "tiny:student"),
        ["grade", "--prompts", data, "--completions", data, "--out", out],
        [*TRAIN, "--data", data, "--out", out],
        ["merge", "--adapter", out.parent / "adapter", "--out", out],
    ]


@pytest.mark.parametrize("kind", ["text", "rows", "folder", "link", "empty folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_not_the_labs_is_refused_before_the_first_byte(
    kind: str, overwrite: bool, data: Path, tmp_path: Path, run: Distill
) -> None:
    mine = tmp_path / "mine"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny:student"}')
    if kind == "text":
        mine.write_text("notes of a year")
    elif kind == "rows":
        write_jsonl(mine, [{"id": "train-0", "sample": 0, "content": "mine"}])
    elif kind == "link":
        mine.symlink_to(data)
    else:
        model_folder(mine) if kind == "folder" else mine.mkdir()
    before = snapshot(tmp_path)
    for command in commands(data, mine):
        code, printed = run(*command, *(["--overwrite"] if overwrite else []))
        assert (code, str(mine) in printed) == (2, True), printed
        assert snapshot(tmp_path) == before, command
        assert mine.is_symlink() == (kind == "link")


@pytest.mark.parametrize(
    ("command", "name", "more"),
    [
        ("generate", "out.prompts.jsonl", []),
        ("generate", "cot.jsonl", ["--cot", "cot.jsonl"]),
        ("eval", "out.prompts.jsonl", []),
        ("eval", "out.completions.jsonl", []),
        ("eval", "out.base.jsonl", ["--base", "tiny:student"]),
        ("eval", "out.base.completions.jsonl", ["--base", "tiny:student"]),
        ("eval", "predictions.jsonl", ["--predictions", "predictions.jsonl"]),
        ("eval", "out.results.json", ["--grader", "label"]),
        ("eval", "out.jsonl.key.json", []),
        ("generate", "out.jsonl.key.json", []),
        ("train", "out.jsonl.rows.jsonl", []),
        ("train", "out.jsonl.key.json", []),
    ],
)
def test_files_beside_the_output_are_not_replaced_either(
    command: str, name: str, more: list[str], data: Path, tmp_path: Path, run: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / name
    mine.write_text('{"id": "mine"}\n')
    before, out = snapshot(tmp_path), tmp_path / "out.jsonl"
    arguments = (
        [*TRAIN, "--data", data, "--out", out] if command == "train" else asked(command, data, out, "tiny:student")
    )
    code, printed = run(*arguments, *more)
    assert (code, name in printed) == (2, True), printed
    assert snapshot(tmp_path) == before


def test_the_input_is_never_the_output(data: Path, tmp_path: Path, run: Distill) -> None:
    prompts = tmp_path / "q.prompts.jsonl"
    shutil.copy(data, prompts)
    os.link(data, tmp_path / "linked.jsonl")
    before = snapshot(tmp_path)
    attempts = [
        asked("generate", data, data, "tiny:student"),
        asked("generate", data, tmp_path / "." / "data.jsonl", "tiny:student"),
        asked("generate", data, tmp_path / "linked.jsonl", "tiny:student"),
        asked("generate", prompts, tmp_path / "q.jsonl", "tiny:student"),
        asked("generate", data, tmp_path / "new.jsonl", "tiny:student", "--cot", data),
        asked("generate", data, tmp_path / "new.jsonl", "tiny:student", "--cot", tmp_path / "new.prompts.jsonl"),
        asked("eval", data, data, "tiny:student"),
        asked("eval", data, tmp_path / "new.jsonl", "tiny:student", "--predictions", tmp_path / "new.jsonl"),
        [*TRAIN, "--rows", data, "--out", data],
    ]
    for arguments in attempts:
        code, printed = run(*arguments)
        assert code == 2, printed
        assert "another output name" in printed or "two files of this name" in printed, printed
        assert snapshot(tmp_path) == before


def test_what_the_user_changed_in_an_output_is_not_written_over(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    model, out = random_model(), tmp_path / "e.jsonl"
    assert run(*asked("eval", data, out, model))[0] == 0
    out.write_text(out.read_text() + '{"my": "remark"}\n')
    before = snapshot(tmp_path)
    code, printed = run(*asked("eval", data, out, model))
    assert (code, "e.jsonl was changed after this lab wrote it" in printed) == (2, True), printed
    assert snapshot(tmp_path) == before


def test_a_torn_line_of_the_labs_own_is_mended_and_another_end_is_not_cut(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    arguments, out = asked("generate", data, tmp_path / "out.jsonl", random_model()), tmp_path / "out.jsonl"
    assert run(*arguments)[0] == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    assert run(*arguments)[0] == 0
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    for mine in (b"notes of a year", whole + b"notes", b"[1]\n" + whole[:-5]):
        out.write_bytes(mine)
        code, printed = run(*arguments)
        assert (code, f"{out}:" in printed) == (2, True), printed
        assert out.read_bytes() == mine


def test_an_output_without_a_key_names_the_remedy_unless_it_is_empty(
    data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    arguments, out = asked("generate", data, tmp_path / "out.jsonl", random_model()), tmp_path / "out.jsonl"
    assert run(*arguments)[0] == 0
    key_path(out).unlink()
    code, printed = run(*arguments)
    assert (code, "choose another output name" in printed, str(key_path(out)) in printed) == (2, True, True), printed
    (tmp_path / "out.prompts.jsonl").unlink()
    out.write_bytes(b"")
    assert run(*arguments)[0] == 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"made_by": "me"}', b"\xff\xfe", b'{"made_by": 1, "inputs": 2}']
)
def test_a_key_that_is_damaged_is_named(
    content: bytes, data: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    arguments, out = asked("generate", data, tmp_path / "out.jsonl", random_model()), tmp_path / "out.jsonl"
    assert run(*arguments)[0] == 0
    key_path(out).write_bytes(content)
    before = snapshot(tmp_path)
    for more in ([], ["--overwrite"]):
        code, printed = run(*arguments, *more)
        assert (code, str(key_path(out)) in printed) == (2, True), printed
        assert snapshot(tmp_path) == before


def test_a_foreign_work_folder_is_not_removed(data: Path, tmp_path: Path, run: Distill) -> None:
    rows = rows_file(tmp_path / "rows.jsonl")
    for name in ("out.work", ".out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    attempts = [
        [*TRAIN, "--rows", rows, "--out", tmp_path / "out"],
        asked("eval", data, tmp_path / "out", "tiny:student"),
    ]
    before = snapshot(tmp_path)
    for arguments in attempts:
        code, printed = run(*arguments)
        assert (code, "out.work" in printed) == (2, True), printed
        assert snapshot(tmp_path) == before


def test_a_command_that_fails_leaves_what_it_had(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    class Stopped(Exception):
        pass

    def stop() -> None:
        with claim(out, "c", inputs={"a": 1}, files=[out], appended=[out]):
            write_jsonl(out, [{"id": "a"}])
            raise Stopped

    with pytest.raises(Stopped):
        stop()
    assert json.loads(key_path(out).read_text())["status"] == "running"
    with claim(out, "c", inputs={"a": 1}, files=[out], appended=[out]) as claimed:
        assert not claimed.done
    with claim(out, "c", inputs={"a": 1}, files=[out], appended=[out]) as claimed:
        assert claimed.done
    with pytest.raises(UserError, match=r"a \(1, now 2\)"), claim(out, "c", inputs={"a": 2}, files=[out]):
        pass
