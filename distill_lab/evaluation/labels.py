"""What a classifier gets wrong: an eval file graded by `label` -> confusion matrix, accuracy per label, parse rate.

    report = label_report(run.path("eval/student.jsonl"))
    print(render_label_report(report))
    write_json(run.path("evaluation_results.json"), report.to_json() | {"predictions": predictions(items)})

Only the first sample of each prompt counts. Rows of the matrix are gold labels, columns what the model said: the labels
there are, then "other" (a label that no prompt has) and "?" (none that could be read), where they occur.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill_lab.data.prompts import read_prompts
from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import BAD_GOLD, first_samples
from distill_lab.files.jsonl import whole_rows
from distill_lab.grading.graders import BadGoldError
from distill_lab.grading.graders.label import grade, normalize_label
from distill_lab.types import Completion, Grade, JsonObject

OTHER, UNREAD = "other", "?"
NUM_WORST = 5
NUM_EXAMPLES = 3
"""Errors shown of each of the worst labels."""
TEXT_CHARS = 60
"""Longer texts are cut in lines; the JSON has them whole."""
RULE = "=" * 80


@dataclass(frozen=True, slots=True)
class LabelError:
    """One text that got a wrong label."""

    text: str
    gold: str
    predicted: str
    """A label, "other" or "?"."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How often texts of one gold label were labeled right."""

    label: str
    correct: int
    total: int
    errors: tuple[LabelError, ...] = ()
    """All of them, in the order of the file."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.total


@dataclass(frozen=True, slots=True)
class LabelMatrix:
    """A confusion matrix; see `LabelReport`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    array: tuple[tuple[int, ...], ...]
    """`array[row][column]`, counts."""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """How a model labels, as summary.json has it."""

    parse_rate: float
    """In [0, 1]."""
    per_label: dict[str, float]
    """Accuracy by gold label, worst first."""
    totals: dict[str, int]
    """Texts by gold label."""
    matrix: LabelMatrix
    worst: tuple[LabelScore, ...]
    """The first errors of the worst labels."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """How a model labels."""

    n: int
    correct: int
    parsed: int
    """Answers in which some label could be read."""
    rows: tuple[str, ...]
    """Gold labels, in alphabetical order."""
    columns: tuple[str, ...]
    """What was said: the gold labels and the others there are, then "other" and "?" where they occur."""
    matrix: tuple[tuple[int, ...], ...] = field(repr=False)
    """`matrix[gold][said]`, counts."""
    per_label: tuple[LabelScore, ...] = field(repr=False)
    """Worst first."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]; what could not be read counts as wrong."""
        return self.correct / self.n

    @property
    def parse_rate(self) -> float:
        """In [0, 1]."""
        return self.parsed / self.n

    def summary(self) -> LabelSummary:
        """What summary.json holds: all counts, and the first errors of the worst labels."""
        worst = (dataclasses.replace(each, errors=each.errors[:NUM_EXAMPLES]) for each in self.per_label[:NUM_WORST])
        return LabelSummary(
            parse_rate=self.parse_rate,
            per_label={score.label: score.accuracy for score in self.per_label},
            totals={score.label: score.total for score in self.per_label},
            matrix=LabelMatrix(self.rows, self.columns, self.matrix),
            worst=tuple(worst),
        )

    def to_json(self) -> JsonObject:
        """As a JSON object; the matrix both as a table by name, zeros left out, and as rows and columns."""
        by_name = {
            gold: {said: number for said, number in zip(self.columns, counts, strict=True) if number}
            for gold, counts in zip(self.rows, self.matrix, strict=True)
        }
        return {
            "num_samples": self.n,
            "num_parsed": self.parsed,
            "num_unparseable": self.n - self.parsed,
            "parse_rate": self.parse_rate,
            "accuracy": self.accuracy,
            "correct": self.correct,
            "labels": list(self.rows),
            "confusion_matrix": {
                "table": by_name,
                "rows": list(self.rows),
                "columns": list(self.columns),
                "array": [list(counts) for counts in self.matrix],
            },
            "per_label": [
                {
                    "label": each.label,
                    "accuracy": each.accuracy,
                    "correct": each.correct,
                    "total": each.total,
                    "errors": [dataclasses.asdict(error) for error in each.errors],
                }
                for each in self.per_label
            ],
            "worst": [each.label for each in self.per_label[:NUM_WORST]],
        }


def label_report(items: Path, labels: Sequence[str] = ()) -> LabelReport:
    """The report of an eval file (`distill_lab.evaluation.evaluate`) that the label grader made.

    labels: the labels there are, where that is known; the gold labels are always among them. Raises UserError for a file
    without items and for an item without a gold label.
    """
    spelled = {normalize_label(label): label for label in labels}
    told: list[tuple[str, str | None, str]] = []
    for row in first_samples(items):
        if row.grade.status == BAD_GOLD:
            continue
        if not row.answer:
            raise UserError(f"{items}: {row.id} has no gold label, so there is nothing to hold the answer against")
        spelled.setdefault(normalize_label(row.answer), row.answer)
        told.append((row.answer, row.grade.answer, row.text))
    if not told:
        raise UserError(f"{items}: no items in it; evaluate the model again")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    errors: dict[str, list[LabelError]] = defaultdict(list)
    for answer, read, text in told:
        gold = spelled[normalize_label(answer)]
        said = UNREAD if read is None else spelled.get(normalize_label(read), OTHER)
        counts[gold][said] += 1
        if said != gold:
            errors[gold].append(LabelError(text, gold, said))
    rows = tuple(sorted(counts))
    seen = {said for of_gold in counts.values() for said in of_gold}
    columns = (*sorted(set(spelled.values())), *(name for name in (OTHER, UNREAD) if name in seen))
    scores = [LabelScore(gold, counts[gold][gold], counts[gold].total(), tuple(errors[gold])) for gold in rows]
    return LabelReport(
        n=len(told),
        correct=sum(score.correct for score in scores),
        parsed=len(told) - sum(of_gold[UNREAD] for of_gold in counts.values()),
        rows=rows,
        columns=columns,
        matrix=tuple(tuple(counts[gold][said] for said in columns) for gold in rows),
        per_label=tuple(sorted(scores, key=lambda score: score.accuracy)),
    )


def predictions(items: Path) -> list[JsonObject]:
    """Every item of an eval file as `{"id", "text", "prediction", "gold", "correct", "output"}`."""
    return [
        {
            "id": row.id,
            "text": row.text,
            "prediction": row.grade.answer,
            "gold": row.answer,
            "correct": row.score == 1,
            "output": row.output,
        }
        for row in first_samples(items)
    ]


def item_lines(items: Path) -> Iterator[str]:
    """A line per item of an eval file, with the accuracy so far."""
    rows = list(first_samples(items))
    correct = 0
    for number, row in enumerate(rows, start=1):
        right = row.score == 1
        correct += right
        said, gold = row.grade.answer, row.answer or ""
        yield item_line(number, len(rows), correct, right=right, said=said, gold=gold, text=row.text)


def item_line(number: int, total: int, correct: int, *, right: bool, said: str | None, gold: str, text: str) -> str:
    """`+ [   1/2100] Pred: ar | GT: ar | Acc: 1/1 (100.0%) | text...`; `-` in front where the label is wrong."""
    width = len(str(total))
    return (
        f"{'+' if right else '-'} [{number:>{width}}/{total}] Pred: {said or UNREAD} | GT: {gold} | "
        f"Acc: {correct}/{number} ({100 * correct / number:5.1f}%) | {_short(text)}"
    )


class LiveLines:
    """Tells of each answer as it comes, held against its gold label: `generate(..., on_completion=LiveLines(...))`.

    done: completions of an earlier execution, which count, and are not told again.
    """

    def __init__(self, prompts: Path, tell: Callable[[str], None], *, done: Path) -> None:
        self._tell = tell
        self._prompts = {prompt.id: prompt for prompt in read_prompts(prompts, references=True)}
        self._number = self._correct = 0
        for row in whole_rows(done) if done.exists() else ():
            self._line(Completion.from_json(row))

    def __call__(self, completion: Completion) -> None:
        """Tell of a new completion."""
        if completion.sample == 0:
            self._tell(self._line(completion))

    def _line(self, completion: Completion) -> str:
        prompt = self._prompts[completion.id]
        try:
            found = grade(prompt, completion)
        except BadGoldError:
            found = Grade(0.0, None, BAD_GOLD)
        self._number += 1
        self._correct += found.score == 1
        return item_line(
            self._number,
            len(self._prompts),
            self._correct,
            right=found.score == 1,
            said=found.answer,
            gold=prompt.answer or "",
            text=prompt.messages[-1]["content"],
        )


def render_label_report(report: LabelReport) -> str:
    """The report as plain text: matrix, accuracy per label, the five worst labels with examples, totals."""
    worst = [score for score in report.per_label[:NUM_WORST] if score.errors]
    parts = ["CONFUSION MATRIX (rows: gold, columns: predicted)", *_matrix_lines(report), "", "ACCURACY PER LABEL"]
    width = max(map(len, report.rows))
    parts += [
        f"  {score.label:<{width}}  {score.accuracy:>6.1%}  ({score.correct:>4}/{score.total:>4})"
        for score in report.per_label
    ]
    if worst:
        parts += ["", f"WORST LABELS (at most {NUM_WORST})"]
    for number, score in enumerate(worst, start=1):
        parts.append(f"  {number}. {score.label}: {score.accuracy:.1%} ({score.correct}/{score.total})")
        parts += [f"     said {error.predicted}: {_short(error.text)}" for error in score.errors[:NUM_EXAMPLES]]
    parts += [
        "",
        f"accuracy {report.accuracy:.2%} ({report.correct}/{report.n}), "
        f"parse rate {report.parse_rate:.2%} ({report.n - report.parsed} unparseable)",
    ]
    return "\n".join([RULE, *parts, RULE])


def _matrix_lines(report: LabelReport) -> Iterator[str]:
    width = max(4, *(len(name) + 1 for name in (*report.rows, *report.columns)))
    head = "".join(f"{name:>{width}}" for name in report.columns)
    yield f"{'':<{width}}  {head} | Total"
    yield " " * width + "  " + "-" * (len(head) + 8)
    for gold, counts in zip(report.rows, report.matrix, strict=True):
        cells = "".join(f"{number or '.':>{width}}" for number in counts)
        yield f"{gold:<{width}}| {cells} | {sum(counts):>5}"


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= TEXT_CHARS else f"{plain[:TEXT_CHARS]}..."
