"""What prompt distillation needs of its data: the system prompt joined on, answers read, unreadable ones asked again.

write_asked(prompts, path, system=rules, labels=labels)             prompts.jsonl -> prompts.jsonl for the teacher
write_unread(asked, completions, path, labels=labels)               those prompts whose answer cannot be read
write_answered(prompts, first, retry, path, labels=labels)          prompts with the answer to learn, rules and thinking gone
write_messages(answered, path)                                      {"messages": [...]}, what every trainer reads

An answer is read when it ended by itself and, if there are labels, names exactly one of them; what is learned then is
the label as it is spelled in the list. Without labels every answer with something in it is read, as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from distill_lab.config import ModelConfig
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.graders.label import normalize_label, read_label
from distill_lab.training_data.training_set import CUT, EMPTY, ERROR
from distill_lab.types import Completion, Counts, JsonObject, Message

TINY_LABELS = "tiny:labels"
UNPARSEABLE = "unparseable after all retries"
NO_GOLD = "no gold answer"
_LISTED = re.compile(r"\b(?:labels|classes|categories)\b[^:\n]{0,20}:[ \t]*([^\n]+)", re.IGNORECASE)
_LABEL = re.compile(r"[\w][\w /&+-]{0,39}")


def read_system_prompt(path: str) -> str:
    """The text of a prompt file; tiny:labels is the rules prompt of the embedded family's task.

    Raises UserError for no file, a file that is not UTF-8 text, and an empty one.
    """
    if path == TINY_LABELS:
        from distill_lab.tiny.labels import RULES

        return RULES
    if not path:
        raise UserError("which prompt? give --prompt-file rules.txt")
    text = _read(path, "the prompt to distill")
    if not text.strip():
        raise UserError(f"{path}: the prompt file is empty, so there is nothing to distill")
    return text.strip()


def read_labels(given: str, system: str) -> tuple[str, ...]:
    """The labels: `given` as a list with commas or as a file with one per line, else what `system` lists after `Labels:`.

    Empty if there are none: answers are free text. Raises UserError for a list of one, and for double labels.
    """
    if given:
        is_file = "," not in given and Path(given).expanduser().is_file()
        if not is_file and "," not in given:
            raise UserError(f"--labels {given}: no such file, and a list of one label; write a,b,c or name a file")
        found = _lines(given, "labels") if is_file else given.split(",")
    else:
        listed = _LISTED.search(system)
        found = listed[1].strip().rstrip(".。").split(",") if listed else []
        if not all(_LABEL.fullmatch(label.strip()) for label in found):
            return ()
    labels = [label.strip() for label in found if label.strip()]
    double = [label for label, number in Counter(map(normalize_label, labels)).items() if number > 1]
    if given and (double or len(labels) < 2):
        raise UserError(
            f"--labels {given}: {f'{double[0]!r} is in it twice' if double else 'fewer than two labels'}; "
            "give every label once"
        )
    return tuple(labels) if len(labels) > 1 and not double else ()


def write_gold(prompts: Path, path: Path, *, gold: str) -> Counts:
    """Write `prompts` with the gold answers of the file `gold`, a line for each row of the source the prompts are from.

    Raises UserError if a row has no line there, or if a line between others is blank: rows of a text file do not count
    blank lines, so every later gold answer could be another row's.
    """
    answers = [line.strip() for line in _lines(gold, "gold answers")]
    while answers and not answers[-1]:
        answers.pop()
    if "" in answers:
        raise UserError(
            f"{gold}: no gold answer in line {answers.index('') + 1}, which is blank; give one line per row"
        )

    def rows() -> Iterator[JsonObject]:
        for row in read_jsonl(prompts):
            number = int(row["id"].rpartition("-")[2])
            if number >= len(answers):
                raise UserError(f"{gold}: no gold answer in line {number + 1}, for row {number} of the data")
            yield {**row, "answer": answers[number]}

    number = write_jsonl(path, rows())
    return Counts(number, number)


def write_asked(prompts: Path, path: Path, *, system: str, labels: Sequence[str]) -> Counts:
    """Write `prompts` as a model is asked: the system prompt in front (a row's own after it), the labels in its meta."""

    def rows() -> Iterator[JsonObject]:
        for row in read_jsonl(prompts):
            meta = (row.get("meta") or {}) | ({"labels": list(labels)} if labels else {})
            yield row | {"messages": with_system(row["messages"], system), "meta": meta}

    number = write_jsonl(path, rows())
    return Counts(number, number)


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The conversation under a system prompt; one that it has already goes on after it."""
    if not system:
        return list(messages)
    own = messages[0]["content"] if messages[0]["role"] == "system" else ""
    text = f"{system}\n\n{own}" if own else system
    return [{"role": "system", "content": text}, *(messages[1:] if own else messages)]


def read_answer(completion: Completion, labels: Sequence[str]) -> str | None:
    """The answer after the thinking: a label of the list, or the whole text; None if it cannot be read."""
    if completion.finish_reason != "stop":
        return None
    if labels:
        return read_label(completion.content, tuple(labels))
    return completion.content.strip() or None


def write_unread(asked: Path, completions: Path, path: Path, *, labels: Sequence[str]) -> Counts:
    """Write the prompts of `asked` whose answer in `completions` cannot be read."""
    answers = _answers(completions)
    rows = list(read_jsonl(asked))
    unread = [row for row in rows if row["id"] not in answers or read_answer(answers[row["id"]], labels) is None]
    write_jsonl(path, unread)
    return Counts(len(rows), len(unread), {"answered": len(rows) - len(unread)})


def write_answered(prompts: Path, *files: Path, labels: Sequence[str]) -> Counts:
    """Write `prompts` with the first readable answer as their completion to the last of `files`.

    The others are completions, in the order of their requests. Left out, by the reason that their last answer gives:
    failed, cut, empty, and unparseable, which is an answer that names no label, or several.
    """
    *completions, path = files
    rounds = [_answers(file) for file in completions]
    dropped: Counter[str] = Counter()

    def rows() -> Iterator[JsonObject]:
        for row in read_jsonl(prompts):
            found = [answers[row["id"]] for answers in rounds if row["id"] in answers]
            read = next((answer for each in found if (answer := read_answer(each, labels)) is not None), None)
            if read is None:
                dropped[_reason(found[-1] if found else None)] += 1
            else:
                yield {**row, "completion": [{"role": "assistant", "content": read}]}

    kept = write_jsonl(path, rows())
    return Counts(kept + dropped.total(), kept, dict(dropped))


def write_messages(answered: Path, path: Path) -> Counts:
    """Write prompts with completions as `{"messages": [...]}`."""
    number = write_jsonl(path, ({"messages": [*row["messages"], *row["completion"]]} for row in read_jsonl(answered)))
    return Counts(number, number)


def write_references(prompts: Path, completions: Path, path: Path, *, labels: Sequence[str]) -> Counts:
    """Write the prompts with the teacher's answers as the gold ones; those it gave no readable answer to are left out."""
    answers = _answers(completions)
    rows = list(read_jsonl(prompts))
    read = {name: read_answer(answer, labels) for name, answer in answers.items()}
    kept = [row | {"answer": read[row["id"]]} for row in rows if read.get(row["id"])]
    write_jsonl(path, kept)
    return Counts(len(rows), len(kept), {"the teacher's answer cannot be read": len(rows) - len(kept)})


def tokens_per_batch(student: ModelConfig, rows: Path, *, num_rows: int, thinking: bool | None) -> int:
    """The tokens of a micro-batch that holds about `num_rows` rows of a training set, by their mean length.

    Raises ModelError if the student's tokenizer cannot be loaded.
    """
    from distill_lab.chat import encode
    from distill_lab.models.loading import load_tokenizer

    tokenizer = load_tokenizer(student)
    lengths = [
        len(encode(tokenizer, row["prompt"], row["completion"], thinking=thinking).input_ids)
        for row in read_jsonl(rows)
    ]
    return max(8, round(num_rows * mean(lengths)))


def has_gold(prompts: Path) -> bool:
    """Whether any prompt has a gold answer."""
    return any(row.get("answer") for row in read_jsonl(prompts))


def _answers(completions: Path) -> dict[str, Completion]:
    return {row["id"]: Completion.from_json(row) for row in read_jsonl(completions)}


def _reason(answer: Completion | None) -> str:
    if answer is None or answer.finish_reason == "error":
        return ERROR
    if answer.finish_reason == "length":
        return CUT
    return UNPARSEABLE if answer.content.strip() else EMPTY


def _lines(path: str, what: str) -> list[str]:
    """The lines of a file, without what a Unicode reader also takes for line ends (a form feed, U+2028)."""
    return _read(path, what).split("\n")


def _read(path: str, what: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: no such file (looked for {file.absolute()}); it must contain {what}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not UTF-8 ({error.reason} at byte {error.start})") from None
