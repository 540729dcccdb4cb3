"""Write CoT: a question -> the question with reasoning and solution as its completion.

The reasoning is what a thinking model thinks by itself and what the model writes between thinking tags. If the request does
not ask for tags, an answer without them is a worked solution as a whole. The row's gold answer stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.control_tokens import THINKING_TAGS, split_thinking
from distill_lab.pipeline.synthesis.jobs import Row, Values
from distill_lab.pipeline.synthesis.jobs._rewriting import without_ratings
from distill_lab.pipeline.synthesis.reading import shown
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.training_data.training_set import EMPTY
from distill_lab.types import Completion

VERSION = 1
PLACEHOLDERS = ("question",)
NEEDED: tuple[str, ...] = ()
SETTINGS = ("max_retries",)
SEVERAL = True
COMPARED = "row"
NO_REASONING = "no reasoning"
TEMPLATE = """\
Solve the task below. First think it through inside <think></think>: go step by step, with an empty line between \
steps, check each result, and correct what turns out to be wrong. Then write the solution for a reader: short, complete, \
with the result at its end.

The task:

{question}"""


def values(row: Row, kind: str) -> Values | str:
    """The question."""
    return {"": {"question": shown(row["messages"])}}


def read(row: Row, answers: Mapping[str, Completion], template: Template) -> Row | str:
    """The row with the reasoning and the solution."""
    written, content = split_thinking(answers[""].content)
    thinking = "\n\n".join(filter(None, (answers[""].thinking, written))) or None
    if not content.strip():
        return EMPTY
    if thinking is None and any(opening in template.text for opening, _ in THINKING_TAGS):
        return NO_REASONING
    message = {"role": "assistant", "content": content.strip("\n")}
    completion = [message | {"thinking": thinking} if thinking else message]
    return row | {"completion": completion, "meta": without_ratings(row["meta"])}
