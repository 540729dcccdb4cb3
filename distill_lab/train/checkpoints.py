"""Checkpoints that are whole or do not count: a seal written last, and the newest checkpoint whose seal holds.

A kill while the trainer saves leaves a directory that looks like a checkpoint. Each finished one is therefore sealed with
the size and CRC-32 of every file; one without a seal, or with files that are not as sealed, is never resumed from. The
work directory is marked as the lab's (`outputs.work_folder`); what someone else put there is neither read nor removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from distill_lab.files.jsonl import write_json
from distill_lab.files.outputs import MARK, PARTIAL, remove_work, work_folder
from distill_lab.train.rollout_file import PATTERN as ROLLOUTS
from distill_lab.train.rollout_file import SCORES

SEAL, KEY = "seal.json", "key.json"
OWN_TEXT = "own-text.json"
KEPT = (KEY, "dtype.json", OWN_TEXT, ROLLOUTS, SCORES)
"""Files of a training beside its checkpoints: names and patterns."""
CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,12}")
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What a work directory holds to go on from."""

    checkpoint: Path | None
    """The newest whole checkpoint; None: start from the beginning."""
    skipped: dict[str, str]
    """Newer checkpoints that are not whole: name -> what is wrong with it."""


def seal(checkpoint: Path) -> None:
    """Declare `checkpoint` complete, once its files are on the disk."""
    files = {}
    for path in _files(checkpoint):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(checkpoint))] = [path.stat().st_size, _crc32(path)]
    write_json(checkpoint / SEAL, files)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is exactly as it was sealed."""
    if not (checkpoint / SEAL).is_file():
        return "the process ended while it was written"
    files = read_json(checkpoint / SEAL)
    if not isinstance(files, dict) or not files or not all(map(_is_sealed, files.values())):
        return f"{SEAL} is damaged"
    if others := {str(path.relative_to(checkpoint)) for path in _files(checkpoint)} - set(files):
        return f"{min(others)} is not in {SEAL}"
    for name, (size, crc32) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _crc32(path) != crc32:
            return f"{name} is not what was written"
    return None


def newest_whole(work: Path, *, remove: bool = True) -> ResumePoint:
    """The checkpoint in `work` to resume from, and the newer ones that are damaged, which are removed."""
    skipped = {}
    for checkpoint in _newest_first(work):
        reason = damage(checkpoint)
        if reason is None:
            return ResumePoint(checkpoint, skipped)
        skipped[checkpoint.name] = reason
        if remove:
            shutil.rmtree(checkpoint)
    return ResumePoint(None, skipped)


def keep_only(out: Path, key: str) -> list[str]:
    """Make the work directory of `out`, without checkpoints unless they belong to `key`; returns what was removed, as
    sentences.

    Raises UserError if a directory of its name is not the lab's.
    """
    work = work_folder(out)
    old = read_json(work / KEY)
    removed = []
    if old != key:
        for checkpoint in _newest_first(work):
            why = "of other settings" if isinstance(old, str) else f"without a whole {KEY}"
            removed.append(f"{checkpoint} was removed: it is a checkpoint {why}")
            shutil.rmtree(checkpoint)
        _remove_kept(work)
        write_json(work / KEY, key)
    return removed


def remove_finished(out: Path) -> list[str]:
    """Remove the work directory of a training that has ended; returns the names of what others put there, which stays."""
    work = work_folder(out)
    for checkpoint in _newest_first(work):
        shutil.rmtree(checkpoint)
    shutil.rmtree(work / PARTIAL, ignore_errors=True)
    _remove_kept(work)
    left = sorted(path.name for path in work.iterdir() if path.name != MARK)
    if not left:
        remove_work(out)
    return left


def remove_all_but_newest(work: Path, number: int) -> None:
    """Free the disk; to be called when the newest checkpoint is sealed, not before."""
    for checkpoint in _newest_first(work)[number:]:
        shutil.rmtree(checkpoint)


def _remove_kept(work: Path) -> None:
    for name in KEPT:
        for path in (*work.glob(name), *work.glob(f".{name}*")):  # a kill leaves temporary files
            path.unlink()


def _newest_first(work: Path) -> list[Path]:
    """The checkpoints in a work directory; files, links and other names that look like them are no checkpoints."""
    found = [
        path for path in work.glob("checkpoint-*")
        if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]  # fmt: skip
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def read_json(path: Path) -> object:
    """What a JSON file holds, None if it is damaged or missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_sealed(state: object) -> bool:
    return isinstance(state, list) and len(state) == 2 and all(type(number) is int for number in state)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
