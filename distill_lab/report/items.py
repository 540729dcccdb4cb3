"""All test items for the page: eval files -> an index and chunks of texts as JSON, and the controls that search them.

    found = Items.read(run_dir, read_answers(run_dir), similarity=False, by_label=False)
    found.section()         HTML: search and filters, empty until the page's script (viewer.js) fills it
    found.data()            {"items-index": ..., "items-0": ..., ...} for `document`

The index is small and is read when the page opens; a chunk of texts is read when one of its items is shown or searched.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import MISSING, EvalRow
from distill_lab.evaluation.groups import fields_of, in_order
from distill_lab.evaluation.statistics import RIGHT
from distill_lab.files.jsonl import read_jsonl
from distill_lab.report.document import fast_clean
from distill_lab.report.figure import LABELS
from distill_lab.types import JsonObject

CHUNK = 200
"""Items of a chunk."""
MAX_PAGE_CHARS = 40_000_000
"""Of all texts on the page. If there are more, long texts are cut shorter."""
LIMITS = (20_000, 8_000, 4_000, 2_000, 1_000, 500, 250)
"""Characters of one text: the first with which all fit."""
MAX_VALUES = 60
"""Of a field that items can be filtered by."""
Row = tuple[str, str | None, list[list[object] | None]]
"""Prompt, gold answer, and for each model: output, thinking, score, tokens, finish reason."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way in which items are filtered."""

    bit: int
    title: str
    alike: str
    """The title if scores are likeness to a reference."""


KINDS = (
    Kind(1, "Lost: the teacher does better", "Further from the reference than the teacher"),
    Kind(2, "Won: the student does better than the teacher", "Closer to the reference than the teacher"),
    Kind(4, "Learned: better than before training", "Closer to the reference than before training"),
    Kind(8, "Forgotten: worse than before training", "Further from the reference than before training"),
    Kind(16, "Wrong: the student's answer", ""),
    Kind(32, "Right: the student's answer", ""),
    Kind(64, "Cut at the token limit", "Cut at the token limit"),
    Kind(128, "Missing, failed or not readable", "Missing, failed or not readable"),
)


def kinds_of(rows: Mapping[str, EvalRow]) -> int:
    """The bits of an item's KINDS, from its rows by model; the student's is one of them."""
    student = rows["student"]
    teacher, base = rows.get("teacher"), rows.get("base")
    found = {
        1: teacher is not None and student.score < teacher.score,
        2: teacher is not None and student.score > teacher.score,
        4: base is not None and student.score > base.score,
        8: base is not None and student.score < base.score,
        16: student.score < RIGHT,
        32: student.score >= RIGHT,
        64: student.finish_reason == "length",
        128: student.finish_reason in (MISSING, "error") or student.grade.status != "ok",
    }
    return sum(bit for bit, holds in found.items() if holds)


@dataclass(frozen=True, slots=True)
class Items:
    """The test items of a run as the page holds them."""

    models: tuple[str, ...]
    ids: list[str]
    kinds: list[int]
    fields: dict[str, list[str | None]]
    """Field that items can be filtered by -> the value of each item."""
    rows: list[Row]
    limit: int
    """Characters of a text; longer ones are cut."""
    num_cut: int
    """Texts that are cut."""
    similarity: bool

    @classmethod
    def read(
        cls, directory: Path, items: Mapping[str, Mapping[str, EvalRow]], *, similarity: bool, by_label: bool
    ) -> Items | None:
        """The eval rows of a run's models, by model and id; None if the student has none.

        by_label: gold answers are labels, which items can be filtered by.
        """
        if "student" not in items:
            return None
        models = tuple(kind for kind in LABELS if kind in items)
        found = [{model: items[model][name] for model in models if name in items[model]} for name in items["student"]]
        limit = _limit(found)
        num_cut = sum(len(text) > limit for rows in found for text in _texts(rows))
        return cls(
            models=models,
            ids=[fast_clean(name) for name in items["student"]],
            kinds=[kinds_of(rows) for rows in found],
            fields=_fields(directory, found, by_label=by_label),
            rows=[_row(rows, models, limit) for rows in found],
            limit=limit,
            num_cut=num_cut,
            similarity=similarity,
        )

    def data(self) -> JsonObject:
        """The page's JSON blocks."""
        kinds = [[kind.bit, kind.alike if self.similarity else kind.title] for kind in KINDS]
        counts = Counter(kind.bit for kinds in self.kinds for kind in KINDS if kinds & kind.bit)
        fields = []
        for name, of in self.fields.items():
            values = in_order({value for value in of if value is not None})
            places = {value: place for place, value in enumerate(values)}
            fields.append([name, values, [-1 if value is None else places[value] for value in of]])
        index = {
            "ids": self.ids,
            "kinds": self.kinds,
            "models": [[model, LABELS[model]] for model in self.models],
            "titles": [[bit, title, counts[bit]] for bit, title in kinds if title and counts[bit]],
            "fields": fields,
            "chunk": CHUNK,
            "similarity": self.similarity,
        }
        starts = range(0, len(self.rows), CHUNK)
        rows = {f"items-{start // CHUNK}": self.rows[start : start + CHUNK] for start in starts}
        return {"items-index": index, **rows}

    def section(self) -> str:
        """Search, filters and an empty list, hidden until the script fills them."""
        cut = ""
        if self.num_cut:
            cut = f" {self.num_cut:,} texts are longer than {self.limit:,} characters and cut here."
        return (
            f'<h2 id="items-title">All {len(self.ids):,} test items</h2><p class="muted">The eval files hold them too.{cut}'
            ' <span id="items-off">To search and read them here, allow this page its script.</span></p>'
            '<div id="items" hidden><div class="controls card" role="search" aria-labelledby="items-title"></div>'
            '<p id="items-status" class="small" role="status"></p><div id="items-list"></div>'
            '<div class="pages" role="group" aria-label="Pages of test items"></div></div>'
        )


def _texts(rows: Mapping[str, EvalRow]) -> list[str]:
    student = rows["student"]
    outputs = [text for row in rows.values() for text in (row.output, row.thinking or "")]
    return [prompt_text(student), student.answer or "", *outputs]


def prompt_text(row: EvalRow) -> str:
    """The prompt's turns as one text; all but the user's with their role in front."""
    return "\n\n".join(
        message["content"] if message.get("role") == "user" else f"[{message.get('role')}] {message['content']}"
        for message in row.prompt
    )


def _limit(found: Sequence[Mapping[str, EvalRow]]) -> int:
    lengths = Counter(len(text) for rows in found for text in _texts(rows))
    for limit in LIMITS:
        if sum(min(length, limit) * number for length, number in lengths.items()) <= MAX_PAGE_CHARS:
            return limit
    return LIMITS[-1]


def _row(rows: Mapping[str, EvalRow], models: Sequence[str], limit: int) -> Row:
    def cut(text: str) -> str:
        text = fast_clean(text)
        return text if len(text) <= limit else f"{text[:limit]} [… {len(text) - limit:,} more characters]"

    def answer(row: EvalRow | None) -> list[object] | None:
        if row is None:
            return None
        thinking = cut(row.thinking) if row.thinking else None
        return [cut(row.output.strip()), thinking, round(row.score, 4), row.num_tokens, row.finish_reason]

    student = rows["student"]
    gold = cut(student.answer) if student.answer else None
    return cut(prompt_text(student)), gold, [answer(rows.get(model)) for model in models]


def _fields(directory: Path, found: Sequence[Mapping[str, EvalRow]], *, by_label: bool) -> dict[str, list[str | None]]:
    """Level, type and the like from the test rows, and the gold label: what items can be filtered by."""
    ids = [rows["student"].id for rows in found]
    values: dict[str, dict[str, str]] = {}
    for name, fields in _test_fields(directory / "test.jsonl").items():
        for field, value in fields.items():
            values.setdefault(field, {})[name] = fast_clean(value)
    if by_label:
        answers = {rows["student"].id: rows["student"].answer for rows in found}
        values["label"] = {name: fast_clean(answer) for name, answer in answers.items() if answer}
    return {
        field: [of.get(name) for name in ids]
        for field, of in values.items()
        if 2 <= len({of[name] for name in ids if name in of}) <= MAX_VALUES
    }


def _test_fields(path: Path) -> dict[str, dict[str, str]]:
    """Id -> fields of the test rows. Raises UserError, naming the file, for rows of another form."""
    found: dict[str, dict[str, str]] = {}
    if not path.is_file():
        return found
    for number, row in enumerate(read_jsonl(path), start=1):
        meta = row.get("meta") or {}
        if not isinstance(row.get("id"), str) or not isinstance(meta, dict):
            raise UserError(
                f"{path}:{number}: not a test prompt ({json.dumps(row)[:80]}); give the run's command again"
            )
        found[row["id"]] = fields_of(meta)
    return found
