"""Commands that write an output, for tests of who may write there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_lab.files.jsonl import write_jsonl


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SHORT = ("--sampling.max-new-tokens", "4")
Distill = Callable[..., tuple[int, str]]


def asked(command: str, data: Path, out: Path, model: Any, *more: Any) -> list[Any]:
    return [command, "--model", model, "--data", data, "--out", out, *SHORT, *more]


TRAIN = ("train", "--student", "tiny:student", "--train.max-steps", "2", "--train.max-length", "64")


def rows_file(place: Path, number: int = 8) -> Path:
    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    write_jsonl(
        place, ({"prompt": turn("user", f"say {n}"), "completion": turn("assistant", str(n))} for n in range(number))
    )
    return place
