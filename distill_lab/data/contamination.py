"""Which training prompts a test set knows already: the same text, words in a row, or a near duplicate.

    tests = TestPrompts(read_jsonl(test), num_words=8)
    for row in read_jsonl(data): tests.count(row)         first pass: which phrases are boilerplate
    for row in read_jsonl(data): tests.find(row)           second pass: an Overlap, or None

Texts are compared without system prompts, case, spacing, punctuation and Unicode forms (`words`). A training prompt overlaps
with a test prompt if one of these holds:

1. It is the same text.
2. They share `num_words` words in a row (8, as open-r1's decontamination; Brown et al. 2020 used 13), of which most
   three-word phrases are rare. A phrase is rare if at most MAX_RARE training prompts have it (in large sets,
   RARE_SHARE); others are boilerplate, which prompts made from a template share without asking the same. If one text is
   shorter than `num_words`, all of it must be in the other.
3. It is a near duplicate: of the test prompt's words at most one in eight is lost, at most `num_words` others are
   added, and all digits are the same. What is lost is boilerplate, or at most one in eight of the words that are not
   (one word, if the test prompt has two numbers). Something must tie the two together besides a template: a rare
   phrase, two numbers that the template does not have, or that all added words are new to the test set.

Memory grows with the test set, not with the training prompts: the index holds the test's words and phrases, and one
count for each phrase. Words in order are compared with RapidFuzz's longest common subsequence, which is exact. MinHash
compares sets of phrases, of which one changed word in a short text breaks half, and it cannot see that two problems
differ only in their numbers; `benchmarks/near_duplicates.py` measures both.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_lab.data.words import one_text, width, words
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.types import Counts, JsonObject, Message

NUM_WORDS = 8
"""Words in a row that count as shared, unless set otherwise."""
MIN_WORDS = 3
"""Minimum for `num_words`; a shorter text overlaps only with the same text."""
MAX_RARE, RARE_SHARE = 3, 1e-4
"""A phrase that more training prompts have than MAX_RARE, and than this share of them, is boilerplate."""
MAX_FOUND = 50
"""Near duplicates are not looked up by phrases that more test prompts have."""
TEMPLATE_SHARE = 0.1
"""A number in a phrase that a larger share of the training prompts has belongs to the template, not to the question."""
CHANGED = 8
"""One word in this many may be lost in a near duplicate."""
OVERLAPS = "overlap.jsonl"
"""Where a run lists what overlaps."""
SAME, NEAR = "same as a test prompt", "near duplicate of a test prompt"

Phrase = tuple[int, ...]


def shares_words(num_words: int) -> str:
    """The reason for rule 2."""
    return f"shares {num_words} words in a row with a test prompt"


def question_text(messages: Sequence[Message]) -> str:
    """The conversation as one text, without system prompts."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def training_texts(row: Mapping[str, Any]) -> list[str]:
    """What a training row may share with a test prompt: its whole prompt, and each user's turn.

    row: a prompt with `messages`, or a training row with `prompt`; the turns of a `completion` are read, too.
    """
    prompt = row["messages"] if "messages" in row else row["prompt"]
    turns = [message["content"] for message in (*prompt, *(row.get("completion") or [])) if message["role"] == "user"]
    return list(dict.fromkeys([question_text(prompt), *turns]))


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training prompt that a test prompt excludes."""

    reason: str
    text: str
    """The training prompt, or the turn of it that overlaps."""
    test_id: str
    test_text: str

    def to_json(self) -> JsonObject:
        """The JSONL row."""
        return {"reason": self.reason, "text": self.text, "test_id": self.test_id, "test_text": self.test_text}


class Text:
    """A text as it is compared."""

    __slots__ = ("covered", "digits", "ids", "key", "known", "numbers", "phrases", "weight", "widths")

    def __init__(self, text: str, vocabulary: Mapping[str, int]) -> None:
        found = words(text)
        self.key = one_text(found) or text.strip()
        self.ids = [vocabulary.get(word, -1) for word in found]
        """A number for each word; -1 for words that no test prompt has."""
        self.known = {*self.ids} - {-1}
        self.widths = [width(word) for word in found]
        self.weight = sum(self.widths)
        """Length in words."""
        self.digits = "".join(letter for letter in self.key if letter.isdigit())
        self.numbers = [place for place, word in enumerate(found) if word[0].isdigit()]
        """Places of the numbers."""
        self.covered: dict[int, frozenset[int]] = {}
        """See `TestPrompts._covered`."""
        self.phrases: list[Phrase] = list(zip(self.ids, self.ids[1:], self.ids[2:], strict=False))


class TestPrompts:
    """An index of test prompts; see the module. num_words 0: only the same conversation overlaps, system prompt included."""

    __test__ = False  # not a test of pytest

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, num_words: int = NUM_WORDS) -> None:
        self.num_words = num_words
        self._vocabulary: dict[str, int] = {}
        self._tests: list[Text] = []
        self._shown: list[tuple[str, str]] = []
        """Id and text of each test prompt."""
        self._same: dict[str, int] = {}
        self._runs: dict[Phrase, int] = {}
        """Each `num_words` words in a row -> the first test prompt that has them."""
        self._phrases: Counter[Phrase] = Counter()
        """Three words in a row -> how many test prompts have them."""
        self._trained: Counter[Phrase] = Counter()
        """How many training prompts have them."""
        self._num_rows = 0
        self._probes: defaultdict[Phrase, list[int]] = defaultdict(list)
        """A test prompt's rarest phrases -> the prompt; a near duplicate has at least one of them."""
        for row in rows:
            self._add(str(row["id"]), row["messages"])
        for number, test in enumerate(self._tests):
            for phrase in self._rarest(test):
                self._probes[phrase].append(number)

    def _add(self, id: str, messages: Sequence[Message]) -> None:
        text = question_text(messages) if self.num_words else _conversation(messages)
        if self.num_words:
            for word in words(text):
                self._vocabulary.setdefault(word, len(self._vocabulary))
        test = Text(text, self._vocabulary)
        key = test.key if self.num_words else text
        if key in self._same:
            return
        number = self._same[key] = len(self._tests)
        self._tests.append(test)
        self._shown.append((id, question_text(messages)))
        if self.num_words:
            self._phrases.update(set(test.phrases))
            for start, end in _spans(test.widths, self.num_words):
                self._runs.setdefault(tuple(test.ids[start:end]), number)

    def __len__(self) -> int:
        """The number of different test prompts."""
        return len(self._tests)

    def count(self, row: Mapping[str, Any]) -> None:
        """Count a training row's phrases. All rows must be counted before the first is looked up."""
        self._num_rows += 1
        if not self._phrases:
            return
        found: set[Phrase] = set()
        for text in training_texts(row):
            compared = Text(text, self._vocabulary)
            if compared.key in self._same:
                return  # copies of a test prompt do not make its phrases boilerplate
            found.update(phrase for phrase in compared.phrases if phrase in self._phrases)
        self._trained.update(found)

    def find(self, row: Mapping[str, Any]) -> Overlap | None:
        """The first overlap of a training row with a test prompt; None if there is none."""
        if not self.num_words:
            prompt = row["messages"] if "messages" in row else row["prompt"]
            number = self._same.get(_conversation(prompt))
            return None if number is None else Overlap(SAME, question_text(prompt), *self._shown[number])
        for text in training_texts(row):
            compared = Text(text, self._vocabulary)
            for reason, look in ((SAME, self._find_same), (shares_words(self.num_words), self._find_run)):
                if (number := look(compared)) is not None:
                    return Overlap(reason, text, *self._shown[number])
            for number in sorted({each for phrase in compared.phrases for each in self._probes.get(phrase, ())}):
                if reason := self._compare(self._tests[number], compared):
                    return Overlap(reason, text, *self._shown[number])
        return None

    def near_pairs(self) -> Iterator[tuple[str, Overlap]]:
        """(id, earlier prompt) of each prompt of the index that is a near duplicate of an earlier one of the index.

        Instead of training prompts, the other prompts of the index say what is boilerplate.
        """
        self._num_rows = len(self._tests)
        self._trained = Counter({phrase: number - 1 for phrase, number in self._phrases.items()})
        for number, text in enumerate(self._tests):
            for other in sorted({each for phrase in text.phrases for each in self._probes.get(phrase, ())}):
                if other >= number:
                    break
                if self._compare(self._tests[other], text):
                    yield self._shown[number][0], Overlap("near duplicate", self._shown[number][1], *self._shown[other])
                    break

    def _find_same(self, text: Text) -> int | None:
        return self._same.get(text.key)

    def _find_run(self, text: Text) -> int | None:
        """The test prompt with which `text` shares `num_words` words in a row that are not boilerplate."""
        known = [phrase in self._phrases for phrase in text.phrases]
        for first, last in _true_runs(known):
            # Words in a row of the test have only known phrases; the last phrase has two words more.
            for start, end in _spans(text.widths[first : last + 2], self.num_words):
                ids = text.ids[first + start : first + end]
                number = self._runs.get(tuple(ids))
                if number is not None and self._tells(ids):
                    return number
        return None

    def _tells(self, ids: Sequence[int]) -> bool:
        """Whether most of the phrases are rare."""
        phrases = list(zip(ids, ids[1:], ids[2:], strict=False))
        return 2 * sum(map(self._is_rare, phrases)) > len(phrases)

    @property
    def _max_rare(self) -> int:
        return max(MAX_RARE, int(RARE_SHARE * self._num_rows))

    def _is_rare(self, phrase: Phrase) -> bool:
        return self._trained[phrase] <= self._max_rare

    def _compare(self, test: Text, text: Text) -> str:
        """Why `text` overlaps with `test` by rule 2 for short texts or by rule 3; empty if it does not."""
        short, long = (test, text) if len(test.ids) <= len(text.ids) else (text, test)
        if short.weight >= MIN_WORDS and _contains(long, short):
            added = long.weight - short.weight
            near = added <= 2 * self.num_words and (
                any(map(self._is_rare, short.phrases)) or (short is test and self._added_are_new(test, text))
            )
            if near or (short is test and test.weight >= self.num_words):
                return shares_words(self.num_words)
        return NEAR if self._is_near(test, text) else ""

    def _is_near(self, test: Text, text: Text) -> bool:
        from rapidfuzz.distance import LCSseq

        allowed = max(1.0, test.weight / CHANGED)
        if test.digits != text.digits or text.weight - test.weight > self.num_words + allowed:
            return False
        plain = self._covered(test, self._max_rare)
        telling = [place for place in range(len(test.ids)) if place not in plain]
        allowed_telling = sum(test.widths[place] for place in telling) / CHANGED
        fixed = self._covered(test, max(self._max_rare, int(TEMPLATE_SHARE * self._num_rows)))
        has_numbers = len(set(test.numbers) - fixed) >= 2
        if has_numbers and test.weight >= CHANGED:
            allowed_telling = max(1.0, allowed_telling)
        # Most candidates that only share a template end here, without a comparison in order.
        if sum(test.widths[place] for place in telling if test.ids[place] not in text.known) > allowed_telling:
            return False
        num_lost = int(allowed / min(test.widths))
        if LCSseq.similarity(test.ids, text.ids, score_cutoff=max(1, len(test.ids) - num_lost)) == 0:
            return False
        lost, added = set(range(len(test.ids))), set(range(len(text.ids)))
        for step in LCSseq.opcodes(test.ids, text.ids):
            if step.tag == "equal":
                lost -= set(range(step.src_start, step.src_end))
                added -= set(range(step.dest_start, step.dest_end))
        lost_weight = sum(test.widths[place] for place in lost)
        if lost_weight > allowed or sum(text.widths[place] for place in added) > lost_weight + self.num_words:
            return False
        if sum(test.widths[place] for place in lost - plain) > allowed_telling:
            return False
        return (
            has_numbers
            or all(text.ids[place] == -1 for place in added)
            or any(self._is_rare(phrase) for phrase in {*test.phrases} & {*text.phrases})
        )

    def _covered(self, test: Text, most: int) -> frozenset[int]:
        """Places of the words in a phrase that more than `most` training prompts have; kept, because counting has ended."""
        if (known := test.covered.get(most)) is None:
            starts = [place for place, phrase in enumerate(test.phrases) if self._trained[phrase] > most]
            known = test.covered[most] = frozenset(start + offset for start in starts for offset in range(3))
        return known

    def _added_are_new(self, test: Text, text: Text) -> bool:
        """Whether a text that has all of `test` adds only words that no test prompt has."""
        return sum(word == -1 for word in text.ids) == len(text.ids) - len(test.ids)

    def _rarest(self, test: Text) -> list[Phrase]:
        """The phrases to look a test prompt up by: more of its rarest ones than a near duplicate can have lost.

        A lost word breaks three phrases, and a block of added ones breaks two. Phrases of a template that many test prompts
        have would find all of them.
        """
        lost = int(max(1.0, test.weight / CHANGED) / min(test.widths, default=1.0))
        rarest = sorted(set(test.phrases), key=lambda phrase: (self._phrases[phrase], phrase))
        return [phrase for phrase in rarest[: 3 * lost + 3] if self._phrases[phrase] <= MAX_FOUND]


def find_overlaps(rows: Path, test: Path, path: Path, *, num_words: int = NUM_WORDS) -> int:
    """Write each row of `rows` that overlaps with a prompt of `test` to `path`: `{"id", "reason", "text", "test_id", ...}`.

    rows: prompts, or training rows, which get their 0-based number as id. Returns how many overlap.
    """
    tests = TestPrompts(read_jsonl(test), num_words=num_words)
    if num_words and len(tests):
        for row in read_jsonl(rows):
            tests.count(row)

    def found() -> Iterator[JsonObject]:
        for number, row in enumerate(read_jsonl(rows)):
            if len(tests) and (overlap := tests.find(row)):
                yield {"id": row.get("id", number), **overlap.to_json()}

    return write_jsonl(path, found())


def remove_overlaps(rows: Path, overlaps: Path, path: Path) -> Counts:
    """Write the rows of `rows` that `find_overlaps` did not find to `path`; the others are counted by reason."""
    reasons = {row["id"]: row["reason"] for row in read_jsonl(overlaps)}
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[JsonObject]:
        for number, row in enumerate(read_jsonl(rows)):
            if reason := reasons.get(row.get("id", number)):
                dropped[reason] += 1
            else:
                yield row

    num_kept = write_jsonl(path, kept())
    return Counts(num_kept + dropped.total(), num_kept, dict(dropped))


def _conversation(messages: Sequence[Message]) -> str:
    return json.dumps(messages, sort_keys=True)


def _spans(widths: Sequence[float], num_words: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each shortest run of words that are at least `num_words` wide, one for each start."""
    end, total = 0, 0.0
    for start, first in enumerate(widths):
        while total < num_words and end < len(widths):
            total += widths[end]
            end += 1
        if total < num_words:
            return
        yield start, end
        total -= first


def _true_runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of true values."""
    start = None
    for place, flag in enumerate((*flags, False)):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            yield start, place
            start = None


def _contains(long: Text, short: Text) -> bool:
    """Whether all words of `short` are in `long` in one piece. Unknown words are not equal to each other."""
    if -1 in short.ids or not short.known <= long.known:
        return False
    size, ids = len(short.ids), long.ids
    return any(
        ids[start] == short.ids[0] and ids[start : start + size] == short.ids for start in range(len(ids) - size + 1)
    )
