"""Duplicates among the prompts of one data set: the same text, and near duplicates by the rules of `contamination`.

found = Duplicates()
for record in records: found.add(record.prompt)
found.num_same, found.near()
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from distill_lab.data.contamination import Overlap, TestPrompts, question_text
from distill_lab.data.words import one_text, words
from distill_lab.types import JsonObject, Prompt

MAX_COMPARED = 10_000
"""Near duplicates are looked for among this many different prompts, the first ones; each takes about 10 kB of memory."""
MAX_PAIRS = 20
"""Pairs of the same text that are kept."""


class Duplicates:
    """Counts prompts that occur before, as they are added. Memory holds a hash of each, and the first MAX_COMPARED texts."""

    def __init__(self) -> None:
        self.num_same = 0
        """Prompts whose text an earlier one has, without case, spacing, punctuation and system prompt."""
        self.pairs: list[tuple[str, Overlap]] = []
        """Id of the first of them, and the earlier prompt."""
        self._seen: set[bytes] = set()
        self._first: dict[bytes, tuple[str, str]] = {}
        self._rows: list[JsonObject] = []

    @property
    def num_compared(self) -> int:
        """How many different prompts are compared for near duplicates."""
        return len(self._rows)

    def add(self, prompt: Prompt) -> None:
        """Compare a prompt with those before it."""
        text = question_text(prompt.messages)
        key = hashlib.blake2b(
            (one_text(words(text)) or text.strip()).encode("utf-8", "replace"), digest_size=8
        ).digest()
        if key in self._seen:
            self.num_same += 1
            if len(self.pairs) < MAX_PAIRS and key in self._first:
                self.pairs.append((prompt.id, Overlap("same text", text, *self._first[key])))
            return
        self._seen.add(key)
        if len(self._rows) < MAX_COMPARED:
            self._first[key] = prompt.id, text
            self._rows.append({"id": prompt.id, "messages": prompt.messages})

    def near(self) -> Iterator[tuple[str, Overlap]]:
        """(id, what it is near to) of each prompt that is a near duplicate of an earlier one; each prompt once."""
        yield from TestPrompts(self._rows).near_pairs()
