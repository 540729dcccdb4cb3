"""The rollouts of one round on disk, sealed: a file that is whole and belongs to its round, or does not count.

    write_rollouts(work, stats, rollouts)          rollouts-<round>.jsonl, at once or not at all
    stats, rollouts = read_rollouts(work, 3)       raises Damaged, with the reason

The first line has the figures of the round and a digest of all other lines, each of which is one rollout. A training that is
interrupted learns from exactly the texts that it had, on whatever machine it goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill_lab.files.jsonl import atomic_path, json_line
from distill_lab.train.rollout_stats import RoundStats
from distill_lab.types import FinishReason

PATTERN, SCORES = "rollouts-*.jsonl", "scores-*.jsonl"
"""Names of the files of rounds: what the student wrote, and what a server said of it (`server_teacher.py`)."""


class Damaged(Exception):
    """A file that is not what was written; the text says why."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the student wrote for one prompt."""

    prompt: int
    """The prompt's place in the list of all prompts."""
    id: str
    """Of the request: epoch and prompt id, from which its random numbers follow."""
    sample: int
    tokens: list[int]
    """With the end token, if the student wrote one."""
    finish_reason: FinishReason
    """`length`: it was cut at the token limit."""


def rollouts_path(work: Path, number: int) -> Path:
    """Where the rollouts of a round are."""
    return work / PATTERN.replace("*", str(number))


def write_rollouts(work: Path, stats: RoundStats, rollouts: Sequence[Rollout]) -> None:
    """Write a round, atomically."""
    body = b"".join(json_line(asdict(rollout)) for rollout in rollouts)
    with atomic_path(rollouts_path(work, stats.round)) as temporary:
        temporary.write_bytes(json_line(asdict(stats) | {"digest": _digest(body)}) + body)


def read_rollouts(work: Path, number: int) -> tuple[RoundStats, list[Rollout]]:
    """A round as it was written. Raises Damaged for anything else, FileNotFoundError if there is no file."""
    head, _, body = rollouts_path(work, number).read_bytes().partition(b"\n")
    try:
        found = json.loads(head)
        if found.pop("digest") != _digest(body):
            raise Damaged("its content is not what was written")
        stats = RoundStats(**found)
        rollouts = [Rollout(**json.loads(line)) for line in body.splitlines()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"its first line is not the head of a round ({error})") from None
    if stats.round != number:
        raise Damaged(f"it is round {stats.round}")
    return stats, rollouts


def remove_later(work: Path, number: int) -> None:
    """Remove the rounds after this one: another student wrote them."""
    for path in work.glob(PATTERN):
        digits = path.stem.partition("-")[2]
        if digits.isdecimal() and int(digits) > number:
            path.unlink()


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
