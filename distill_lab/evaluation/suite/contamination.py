"""Which items of a suite the student was trained on: items and training rows -> overlaps, counted by task.

    found = find_contamination(suite, Path("runs/a/train.jsonl"), out.with_suffix(".overlap.jsonl"), limit=None)
    found.items["gsm8k"]            ids of eval rows

The rules are those of `data/contamination.py`, which keep a recipe's own test apart. Examples before a question are not
compared, only the question.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from distill_lab.data.contamination import NUM_WORDS, find_overlaps
from distill_lab.evaluation.suite.harness import Suite
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.types import JsonObject

TRAINING_SETS = ("train.jsonl", "train.parquet")
"""Where a run keeps what its student was trained on."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a training set and a suite have in common."""

    rows: str
    """The training set."""
    num_rows: int
    num_overlapping: int
    """Training rows that overlap with an item."""
    reasons: dict[str, int]
    """Why -> number of training rows."""
    items: dict[str, tuple[str, ...]]
    """Task -> ids of the items that a training row overlaps with, each row counted with the first one."""

    @property
    def ids(self) -> frozenset[str]:
        """Of all tasks."""
        return frozenset(id for ids in self.items.values() for id in ids)

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if not self.num_overlapping:
            return f"none of the {self.num_rows:,} rows of {self.rows} overlaps with an item"
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons.items())
        return (
            f"{len(self.ids):,} items overlap with {self.num_overlapping:,} of the {self.num_rows:,} rows of {self.rows} "
            f"({reasons.replace('a test prompt', 'an item')})"
        )


def find_contamination(suite: Suite, rows: Path, path: Path, *, limit: int | None) -> Contamination:
    """Compare the items with a training set; `path` gets a line for each training row that overlaps.

    rows: JSONL or Parquet of `{"prompt", "completion"}`. Raises DataError, naming the row, for a file of another form.
    """
    from distill_lab.train.rows import checked_rows

    with tempfile.TemporaryDirectory() as folder:
        training, items = Path(folder) / "rows.jsonl", Path(folder) / "items.jsonl"
        num_rows = write_jsonl(training, checked_rows(rows))
        questions = suite.questions(limit)
        write_jsonl(items, ({"id": id, "messages": [{"role": "user", "content": text}]} for id, text in questions))
        find_overlaps(training, items, path, num_words=NUM_WORDS)
    reasons: Counter[str] = Counter()
    by_task: dict[str, dict[str, None]] = defaultdict(dict)
    for row in read_jsonl(path):
        reasons[row["reason"]] += 1
        by_task[row["test_id"].rpartition("/")[0]][row["test_id"]] = None
    found = {task: tuple(ids) for task, ids in by_task.items()}
    return Contamination(str(rows), num_rows, reasons.total(), dict(reasons), found)


def training_set_of(model: str) -> Path | None:
    """The training set of the run that a student is from, if the model is one."""
    folder = Path(model)
    if not folder.is_dir() or not (folder.parent / "run.json").is_file():
        return None
    return next((path for name in TRAINING_SETS if (path := folder.parent / name).is_file()), None)
