r"""Numbers: correct if the answer is the gold number, however it is written.

    So she has $1,000.00 left.   against  1000 -> 1          The answer is 1/2.  against  0.5  -> 1
    \boxed{-5}                   against  5    -> 0          50%                 against  0.5  -> 1

The answer is the stated one (see `distill_lab.answers`: the last box, `<answer>`, `Final Answer:`, `####`, `The answer is`,
答案是), otherwise the number of the last sentence that has one. Ignores thinking, currencies and thousands separators, but
not signs; a unit counts if the gold answer names one. Whole numbers must be equal; decimals of four or more significant
digits may be rounded (see `same_number`). An answer that is not one plain number (`5 or 6`, `2\pi`, `at least 8`, `not 8`,
`4 feet 3 inches`) is unparseable. The gold answer may be a worked solution that ends in `#### 18` or a box.
"""

from __future__ import annotations

import re

from distill_lab.answers import Statement, answer_part, find_statement, last_box, retracted
from distill_lab.grading.graders import BadGoldError, gold_answer
from distill_lab.grading.graders._number import last_number, read_number
from distill_lab.grading.graders._quantity import Number, same_number
from distill_lab.grading.graders._units import is_measure, read_unit
from distill_lab.types import Completion, Grade, Prompt

METRIC = "numeric answer"
_SCALED = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|gross|k\b|K\b|[百千万亿])")


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold number, 0 for any other; `unparseable` if the completion does not state exactly one.

    Raises UserError if the prompt has no gold answer, BadGoldError if it is not a number.
    """
    gold = read_number(worked_answer(gold_answer(prompt, "numeric")))
    if gold is None:
        raise BadGoldError(
            f"prompt {prompt.id}: the gold answer {gold_answer(prompt, 'numeric')[:80]!r} is not a number; "
            "use the grader math, which reads formulas, or exact"
        )
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(same_number(answer, gold)), answer.text)


def read_answer(content: str) -> Number | None:
    """The stated number of a completion, otherwise the number that its last sentence with one states."""
    statement = find_statement(content)
    if statement is not None:
        return read_number(with_unit(statement))
    text = answer_part(content)
    number = last_number(text)
    if number is None:
        return None
    return None if retracted(text[text.rfind(number.text[-1]) :]) else number


def with_unit(statement: Statement) -> str:
    """A statement's text, with the unit or scale that follows its box."""
    after = statement.after.lstrip("$) \\]")
    unit, end = read_unit(" " + after)
    if _SCALED.match(after):
        return f"{statement.text} {after}"
    return f"{statement.text} {after[: end - 1]}" if unit and is_measure(unit) else statement.text


def worked_answer(gold: str) -> str:
    """The result of a worked gold answer: the text after the last `####`, else the last box, else all of it."""
    _, mark, after = gold.rpartition("####")
    if mark and after.strip():
        return after.strip()
    box = last_box(gold)
    return box[1] if box else gold.strip()
