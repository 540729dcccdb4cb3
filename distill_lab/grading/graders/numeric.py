r"""Numbers: correct if the answer is the gold number, however it is written.

    So she has $1,000.00 left.   against  1000 -> 1          The answer is 1/2.  against  0.5  -> 1
    \boxed{-5}                   against  5    -> 0          50%                 against  0.5  -> 1

The answer is the stated one (see `distill_lab.answers`: the last box, `Final Answer:`, `####`, `The answer is`, 答案是),
otherwise the last number in the text. Ignores thinking, units, currencies and thousands separators, but not signs. Whole
numbers must be equal; decimals of four or more places may be rounded (see `same_number`). A stated answer that is not a
single number (`5 or 6`, `2\pi`) is unparseable. The gold answer may be a worked solution that ends in `#### 18` or a box.
"""

from __future__ import annotations

from distill_lab.answers import after_thinking, last_box, stated_answer
from distill_lab.errors import UserError
from distill_lab.grading.graders import gold_answer
from distill_lab.grading.graders._number import Number, last_number, read_number, same_number
from distill_lab.types import Completion, Grade, Prompt

METRIC = "numeric answer"


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold number, 0 for any other; `unparseable` if the completion has none.

    Raises UserError if the prompt's gold answer is missing or not a number.
    """
    gold = read_number(worked_answer(gold_answer(prompt, "numeric")))
    if gold is None:
        raise UserError(
            f"prompt {prompt.id}: the gold answer {gold_answer(prompt, 'numeric')[:80]!r} is not a number; "
            "use the grader math, which reads formulas, or exact"
        )
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(same_number(answer, gold)), answer.text)


def read_answer(content: str) -> Number | None:
    """The stated number of a completion, otherwise the last number in it."""
    stated = stated_answer(content)
    return last_number(after_thinking(content)) if stated is None else read_number(stated)


def worked_answer(gold: str) -> str:
    """The result of a worked gold answer: the text after the last `####`, else the last box, else all of it."""
    _, mark, after = gold.rpartition("####")
    if mark and after.strip():
        return after.strip()
    box = last_box(gold)
    return box[1] if box else gold.strip()
