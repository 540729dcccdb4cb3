"""Distribute prompts to workers in blocks, and retry failed ones: prompts -> blocks -> completions, each exactly once.

    blocks = Blocks(prompts, num_samples=2, num_workers=8)
    while block := blocks.take(): ...
        blocks.answered(block, completion) / blocks.raised(block, reason) / blocks.died(block, reason)

A failed block is split and its parts are retried, until the prompt at fault is alone in a block. So one bad prompt among a
thousand costs a few retries, whatever it does to its worker, and the others lose nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from distill_lab.errors import UserError
from distill_lab.types import Completion, Prompt

MIN_BLOCK, MAX_BLOCK = 16, 2048
"""Prompts per block; blocks become smaller toward the end, so that all workers finish together."""
PARTS = 8
"""Number of parts that a failed block is split into."""
MAX_KILLS = 2
"""How many times a prompt may kill a worker's process before it counts as failed."""
MAX_IN_A_ROW = 20
"""If this many prompts fail with no answer in between, the prompts are not the cause: the run stops."""
MAX_DEATHS = 6
"""If this many workers, plus once the number of workers, die with no answer in between, the run stops too."""


@dataclass(slots=True, eq=False)
class Block:
    """Prompts that one worker answers together."""

    prompts: dict[str, Prompt]
    """Unfinished prompts by id."""
    missing: dict[str, set[int]]
    """Missing samples of each prompt."""
    num_kills: int = 0
    """Number of workers that died on these prompts."""


@dataclass(slots=True)
class Blocks:
    """All prompts of one `generate` call."""

    prompts: Sequence[Prompt]
    num_samples: int
    num_workers: int
    _left: Iterator[Prompt] = field(init=False)
    _num_left: int = field(init=False)
    _again: deque[Block] = field(init=False, default_factory=deque)
    _held: list[Completion] = field(init=False, default_factory=list)
    """Error completions since the last answer; the cause is not known yet."""
    _deaths: int = field(init=False, default=0)
    """Workers that died since the last answer."""

    def __post_init__(self) -> None:
        self._left, self._num_left = iter(self.prompts), len(self.prompts)

    @property
    def waiting(self) -> bool:
        """Whether `take` would return a block."""
        return bool(self._again or self._num_left)

    def take(self) -> Block | None:
        """The next block; None if there is none now. A block in progress may fail and come back."""
        if self._again:
            return self._again.popleft()
        size = min(MAX_BLOCK, max(MIN_BLOCK, math.ceil(self._num_left / (2 * self.num_workers))))
        # With few prompts, give every worker some.
        size = min(size, math.ceil(len(self.prompts) / self.num_workers))
        found = {prompt.id: prompt for prompt in islice(self._left, size)}
        self._num_left -= len(found)
        samples = range(self.num_samples)
        return Block(found, {name: set(samples) for name in found}) if found else None

    def answered(self, block: Block, completion: Completion) -> Iterator[Completion]:
        """Completions to pass on now that `completion` arrived: itself, unless it is a duplicate, and held-back errors."""
        missing = block.missing.get(completion.id, set())
        if completion.sample not in missing:
            return
        missing.remove(completion.sample)
        if not missing:
            del block.missing[completion.id], block.prompts[completion.id]
        self._deaths = 0
        yield from self.release()
        yield completion

    def raised(self, block: Block, reason: str) -> None:
        """The engine raised an error on this block. Raises UserError if it fails on everything."""
        if len(block.prompts) > 1:
            self._split(block)
        else:
            self._blame(block, reason)

    def died(self, block: Block, reason: str) -> None:
        """The worker died on this block. Raises UserError if workers keep dying."""
        self.worker_died(reason)
        block.num_kills += 1
        if len(block.prompts) == 1 and block.num_kills >= MAX_KILLS:
            self._blame(block, f"it killed its worker {block.num_kills} times; the last time: {reason}")
        else:
            self._split(block)

    def worker_died(self, reason: str) -> None:
        """A worker died, perhaps without a block. Raises UserError if workers keep dying."""
        self._deaths += 1
        if self._deaths >= MAX_DEATHS + self.num_workers:
            raise UserError(
                f"{self._deaths} workers died with no answer in between ({reason}). If memory is short, lower "
                "engine.batch_size or engine.num_workers. Run the same command again to resume"
            )

    def release(self) -> Iterator[Completion]:
        """Yield and clear the held-back error completions."""
        yield from self._held
        self._held.clear()

    def _split(self, block: Block) -> None:
        """Split a block and put the parts first in the queue, so that failures show early."""
        size = math.ceil(len(block.prompts) / PARTS)
        names = list(block.prompts)
        for start in reversed(range(0, len(names), size)):
            part = names[start : start + size]
            prompts = {name: block.prompts[name] for name in part}
            self._again.appendleft(Block(prompts, {name: block.missing[name] for name in part}, block.num_kills))

    def _blame(self, block: Block, reason: str) -> None:
        ((name, samples),) = block.missing.items()
        self._held += [Completion(name, sample, "", None, "error", 0, reason) for sample in sorted(samples)]
        num_prompts = len({row.id for row in self._held})
        if num_prompts >= MAX_IN_A_ROW:
            raise UserError(f"{num_prompts} prompts in a row failed, the last one with: {reason}")
