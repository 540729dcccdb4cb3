"""Checkpoints that are whole or do not count: a seal written last, and the newest checkpoint whose seal holds.

A kill while the trainer saves leaves a directory that looks like a checkpoint. Each finished one is therefore sealed with
the size and CRC-32 of every file; one without a seal, or with a file that is not as sealed, is never resumed from.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from distill_lab.run import write_json

SEAL = "seal.json"
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
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
    """What is wrong with a checkpoint, or None where it is exactly as it was sealed."""
    if not (checkpoint / SEAL).is_file():
        return "the process ended while it was written"
    files: dict[str, list[int]] = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    for name, (size, crc32) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _crc32(path) != crc32:
            return f"{name} is not what was written"
    return None


def newest_whole(work: Path, *, remove: bool = True) -> Found:
    """The checkpoint in `work` to resume from, and the newer ones that are damaged, which are removed."""
    skipped = {}
    for checkpoint in _newest_first(work):
        reason = damage(checkpoint)
        if reason is None:
            return Found(checkpoint, skipped)
        skipped[checkpoint.name] = reason
        if remove:
            shutil.rmtree(checkpoint)
    return Found(None, skipped)


def keep_only(work: Path, key: str) -> None:
    """Make the directory `work`, without checkpoints unless they belong to `key`."""
    marker = work / "key.json"
    if work.is_dir() and (not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != key):
        shutil.rmtree(work)
    if not marker.is_file():
        write_json(marker, key)


def remove_all_but_newest(work: Path, number: int) -> None:
    """Free the disk; to be called when the newest checkpoint is sealed, not before."""
    for checkpoint in _newest_first(work)[number:]:
        shutil.rmtree(checkpoint)


def _newest_first(work: Path) -> list[Path]:
    return sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
