r"""Numbers: right when the answer is the gold number, however it is written.

    So she has $1,000.00 left.   against  1000 -> 1          The answer is 1/2.  against  0.5  -> 1
    \boxed{-5}                   against  5    -> 0          50%                 against  0.5  -> 1

The answer is what the text states (see `distill_lab.answers`: the last box, `Final Answer:`, `####`, `The answer is`,
答案是), else the last number in it. Thinking is never read. Units, currencies and thousands separators do not count, signs
do. Whole numbers must be equal; decimals of four places and more may be rounded (`same_number` says how far). A stated
answer that is no single number (`5 or 6`, `2\pi`) is unparseable. A gold answer may be a worked one that ends in `#### 18`
or a box.
"""

from __future__ import annotations

from distill_lab.answers import after_thinking, last_box, stated_answer
from distill_lab.errors import UserError
from distill_lab.grading.graders import gold_answer
from distill_lab.grading.graders._number import Number, last_number, read_number, same_number
from distill_lab.types import Completion, Grade, Prompt

METRIC = "numeric answer"


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold number, 0 for any other; `unparseable` where the completion has none.

    Raises UserError where the prompt's gold answer is missing or is no number.
    """
    gold = read_number(worked_answer(gold_answer(prompt, "numeric")))
    if gold is None:
        raise UserError(
            f"prompt {prompt.id}: the gold answer {gold_answer(prompt, 'numeric')[:80]!r} is not a number; "
            "grade with math, which reads formulas, or with exact"
        )
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(same_number(answer, gold)), answer.text)


def read_answer(content: str) -> Number | None:
    """The number that a completion states, else the last one in it."""
    stated = stated_answer(content)
    return last_number(after_thinking(content)) if stated is None else read_number(stated)


def worked_answer(gold: str) -> str:
    """The end of a worked gold answer: what follows its last `####`, else what its last box holds; else all of it."""
    _, mark, after = gold.rpartition("####")
    if mark and after.strip():
        return after.strip()
    box = last_box(gold)
    return box[1] if box else gold.strip()
