"""Reasoning traces of word problems with levels of verbosity and difficulty, in the form of OmniThought's rows.

The worked solution of a problem is its only trace. Its levels follow from rules, not from a judge: difficulty (CD) grows
with the number of steps, and so does verbosity (RV), by three levels more if the steps are written in full sentences.

    steps           1      2      3      4
    CD              3      5      7      9
    RV, equations   2      4      6      8
    RV, sentences   5      7      9      9
"""

from __future__ import annotations

from distill_lab.tiny.item import Item
from distill_lab.types import JsonObject

MAX_LEVEL = 9


def row(item: Item) -> JsonObject:
    """A problem (see `problems.item`) as `{"question", "reasoning": [trace]}`."""
    steps, full = int(item["meta"]["level"]), item["meta"]["style"] == "full"
    trace = {
        "thought": item["thinking"],
        "solution": item["output"],
        "teacher": "tiny",
        "thought_correctness_verify": True,
        "Reasoning_Verbosity": {"level": min(MAX_LEVEL, 2 * steps + (3 if full else 0))},
        "Cognitive_Difficulty": {"level": min(MAX_LEVEL, 1 + 2 * steps)},
    }
    return {"question": item["question"], "reasoning": [trace]}
