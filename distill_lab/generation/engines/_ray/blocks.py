"""Which prompts to hand out next, and what becomes of those that failed: prompts -> blocks -> completions, each once.

    blocks = Blocks(prompts, num_samples=2, num_workers=8)
    while block := blocks.take(): ...
        blocks.answered(block, completion) / blocks.raised(block, reason) / blocks.died(block, reason)

A block that failed is split and its parts are asked again, until the prompt that is to blame stands alone. So one bad
prompt among a thousand costs a few tries, whatever it does to its worker, and the others lose nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from distill_lab.errors import UserError
from distill_lab.types import Completion, Prompt

LEAST, MOST = 16, 2048
"""Prompts of a block while there are many left; towards the end blocks grow smaller, so that no worker is late."""
PARTS = 8
"""What a block that failed is split into."""
MAX_KILLS = 2
"""As often as this a prompt may end a worker's process."""
MAX_IN_A_ROW = 20
"""As many prompts failing with no answer between are not the prompts' fault: the run stops."""
MAX_DEATHS = 6
"""As many workers, besides each of them once, ending with no answer between: likewise."""


@dataclass(slots=True, eq=False)
class Block:
    """Prompts that are asked together."""

    prompts: dict[str, Prompt]
    """By id, those that are not done."""
    missing: dict[str, set[int]]
    """Of each, the samples that have not come."""
    num_kills: int = 0
    """Workers that have ended over these prompts."""


@dataclass(slots=True)
class Blocks:
    """All prompts of one generation."""

    prompts: Sequence[Prompt]
    num_samples: int
    num_workers: int
    _left: Iterator[Prompt] = field(init=False)
    _num_left: int = field(init=False)
    _again: deque[Block] = field(init=False, default_factory=deque)
    _held: list[Completion] = field(init=False, default_factory=list)
    """Error completions since the last answer; whose fault they are is not known yet."""
    _deaths: int = field(init=False, default=0)
    """Of workers since the last answer."""

    def __post_init__(self) -> None:
        self._left, self._num_left = iter(self.prompts), len(self.prompts)

    @property
    def waiting(self) -> bool:
        """Whether there is a block to take."""
        return bool(self._again or self._num_left)

    def take(self) -> Block | None:
        """The next block; None where there is none now. One that is out may come back."""
        if self._again:
            return self._again.popleft()
        size = min(MOST, max(LEAST, math.ceil(self._num_left / (2 * self.num_workers))))
        # Also where there are few: every worker gets some.
        size = min(size, math.ceil(len(self.prompts) / self.num_workers))
        found = {prompt.id: prompt for prompt in islice(self._left, size)}
        self._num_left -= len(found)
        samples = range(self.num_samples)
        return Block(found, {name: set(samples) for name in found}) if found else None

    def answered(self, block: Block, completion: Completion) -> Iterator[Completion]:
        """What to pass on now that `completion` has come: it, unless it came before, and errors that were held."""
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
        """The engine raised over this block. Raises UserError where it does so over everything."""
        if len(block.prompts) > 1:
            self._split(block)
        else:
            self._blame(block, reason)

    def died(self, block: Block, reason: str) -> None:
        """The worker ended over this block. Raises UserError where that goes on and on."""
        self.worker_died(reason)
        block.num_kills += 1
        if len(block.prompts) == 1 and block.num_kills >= MAX_KILLS:
            self._blame(block, f"it ended its worker {block.num_kills} times; at last: {reason}")
        else:
            self._split(block)

    def worker_died(self, reason: str) -> None:
        """A worker ended, perhaps while it had no block. Raises UserError where that goes on and on."""
        self._deaths += 1
        if self._deaths >= MAX_DEATHS + self.num_workers:
            raise UserError(
                f"{self._deaths} workers ended, and none answered between ({reason}). Where memory is short: lower "
                "engine.batch_size or engine.num_workers. The same command goes on from here"
            )

    def release(self) -> Iterator[Completion]:
        """The error completions that were held."""
        yield from self._held
        self._held.clear()

    def _split(self, block: Block) -> None:
        """The parts go to the front: what is wrong shows early, and does not come last."""
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
            raise UserError(f"{num_prompts} prompts failed one after another, the last because: {reason}")
