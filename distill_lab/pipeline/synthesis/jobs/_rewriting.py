"""What shorten and lengthen share: a row's reasoning -> the same reasoning in other length, with the same result.

If a row has thinking apart from its answer, the thinking is rewritten and the answer stays word for word; else the answer as
a whole is rewritten, and the number that it states as its answer, or the gold answer, must stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.answers import stated_answer
from distill_lab.data import traces
from distill_lab.grading.graders import BadGoldError
from distill_lab.grading.graders.numeric import grade
from distill_lab.pipeline.synthesis.jobs import Row, Values
from distill_lab.pipeline.synthesis.jobs.rate import SCALES
from distill_lab.pipeline.synthesis.reading import answer_of, shown, written
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.types import Completion, Fields, JsonObject, Message, Prompt

PLACEHOLDERS = ("question", "answer", "reasoning")
OTHER_RESULT = "another final answer"


def reasoning_values(row: Row) -> Values | str:
    """The question, its reasoning, and its answer if that is apart from the reasoning."""
    answer = answer_of(row.get("completion"))
    if isinstance(answer, str):
        return answer
    thinking = answer.get("thinking")
    return {
        "": {
            "question": shown(row["messages"]),
            "answer": answer["content"].strip() if thinking else row["answer"] or "",
            "reasoning": (thinking or answer["content"]).strip(),
        }
    }


def rewritten(row: Row, answers: Mapping[str, Completion], template: Template, *, shorter: bool) -> Row | str:
    """The row with its reasoning rewritten; the reason if it is unreadable, not shorter (or longer), or ends elsewhere."""
    found = written(answers[""], template.tag("reasoning", "answer"))
    if isinstance(found, str):
        return found
    answer = answer_of(row["completion"])
    assert not isinstance(answer, str)
    thinking, text = answer.get("thinking"), found[0]
    before = len((thinking or answer["content"]).strip())
    if (len(text) >= before) if shorter else (len(text) <= before):
        return "not shorter" if shorter else "not longer"
    if not thinking and not _same_result(row["answer"] or stated_answer(answer["content"]), text):
        return OTHER_RESULT
    message: Message = {**answer, **({"thinking": text} if thinking else {"content": text})}
    return row | {"completion": [message], "meta": without_ratings(row["meta"])}


def without_ratings(meta: Fields) -> JsonObject:
    """A row's meta without what is known of a text that is replaced: its ratings and the traces it was chosen from."""
    stale = {traces.META, *traces.SCORES, *SCALES["cot"], *SCALES["answer"], "rv", "cd", "verified"}
    return {name: value for name, value in meta.items() if name not in stale}


def _same_result(before: str | None, after: str) -> bool:
    """Whether a text ends in the number `before`; an answer that is not a number is not compared."""
    if not before:
        return True
    try:
        return grade(Prompt("", [], before), Completion("", 0, after, None, "stop", 0)).score == 1
    except BadGoldError:
        return True
