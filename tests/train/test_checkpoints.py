"""Checkpoints that are damaged, foreign or of other settings: named and passed over, nothing of the user's removed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.files.outputs import MARK
from distill_lab.train import checkpoints

KEY = "a" * 64


def make(out: Path, *steps: int, key: str = KEY) -> Path:
    """The work directory of `out` with a sealed checkpoint for each of `steps`."""
    assert checkpoints.keep_only(out, key) == []
    work = out.with_name(out.name + ".work")
    for step in steps:
        checkpoint = work / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"w" * step)
        (checkpoint / "trainer_state.json").write_text("{}")
        checkpoints.seal(checkpoint)
    return work


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"{}", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b'{"model.safetensors": 1}',
        b'{"model.safetensors": [8]}', b'{"model.safetensors": [8, "x"]}', b'{"model.safetensors": {}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_seal_is_passed_over_by_name(content: bytes, tmp_path: Path) -> None:
    work = make(tmp_path / "student", 4, 8)
    (work / "checkpoint-8" / checkpoints.SEAL).write_bytes(content)
    found = checkpoints.newest_whole(work)
    assert found.checkpoint == work / "checkpoint-4"
    assert list(found.skipped) == ["checkpoint-8"]
    assert found.skipped["checkpoint-8"]


def test_every_flipped_byte_of_a_seal_is_noticed(tmp_path: Path) -> None:
    work = make(tmp_path / "student", 8)
    seal = work / "checkpoint-8" / checkpoints.SEAL
    whole = seal.read_bytes()
    assert checkpoints.damage(seal.parent) is None
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        seal.write_bytes(flipped)
        same = False
        with suppress(ValueError):
            same = json.loads(flipped) == json.loads(whole)  # white space
        assert same or checkpoints.damage(seal.parent), bytes(flipped)


def test_a_file_that_was_never_sealed_is_damage(tmp_path: Path) -> None:
    work = make(tmp_path / "student", 8)
    (work / "checkpoint-8" / "optimizer.pt").write_text("x")
    assert checkpoints.damage(work / "checkpoint-8") == "optimizer.pt is not in seal.json"


def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "student"
    work = make(out, 4)
    kept = ["checkpoint-abc", "checkpoint-12.bak", "checkpoint-", "checkpoint--3", "checkpoint-٣"]
    for name in kept:
        (work / name).mkdir()
        (work / name / "mine").write_text("1")
    (work / "checkpoint-99").write_text("a file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("1")
    (work / "checkpoint-98").symlink_to(elsewhere, target_is_directory=True)
    assert checkpoints.newest_whole(work) == checkpoints.ResumePoint(work / "checkpoint-4", {})
    assert [path.name for path in checkpoints._newest_first(work)] == ["checkpoint-4"]
    assert checkpoints.remove_finished(out) == sorted([*kept, "checkpoint-98", "checkpoint-99"])
    assert {path.name for path in work.iterdir()} == {*kept, "checkpoint-98", "checkpoint-99", MARK}
    assert (elsewhere / "mine").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\xff", None])
def test_a_damaged_key_is_told_and_its_checkpoints_are_not_used(content: bytes | None, tmp_path: Path) -> None:
    out = tmp_path / "student"
    work = make(out, 4)
    if content is None:
        (work / "key.json").unlink()
    else:
        (work / "key.json").write_bytes(content)
    [told] = checkpoints.keep_only(out, KEY)
    assert "checkpoint-4 was removed" in told
    assert "key.json" in told
    assert checkpoints.newest_whole(work) == checkpoints.ResumePoint(None, {})
    assert json.loads((work / "key.json").read_text()) == KEY


def test_checkpoints_of_other_settings_do_not_go_without_a_word(tmp_path: Path) -> None:
    out = tmp_path / "student"
    work = make(out, 4, 8)
    (work / "notes.txt").write_text("mine")
    told = checkpoints.keep_only(out, "b" * 64)
    assert [text.split(" was removed")[0] for text in told] == [str(work / "checkpoint-8"), str(work / "checkpoint-4")]
    assert all("other settings" in text for text in told)
    assert (work / "notes.txt").read_text() == "mine"
    assert checkpoints.keep_only(out, "b" * 64) == []


def test_a_folder_of_someone_else_is_refused_and_stays(tmp_path: Path) -> None:
    out, work = tmp_path / "student", tmp_path / "student.work"
    work.mkdir()
    (work / "thesis.txt").write_text("years")
    for attempt in (lambda: checkpoints.keep_only(out, KEY), lambda: checkpoints.remove_finished(out)):
        with pytest.raises(UserError, match=r"student\.work .* was not created by this lab"):
            attempt()
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]
