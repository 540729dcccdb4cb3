r"""Whether an answer reasons in several steps before its final answer. In: answers and eval files. Out: shares in [0, 1].

    num_steps(Completion(..., content="12 + 5 = 17.\n17 * 2 = 34.\nFinal Answer: 34", ...))   -> 2
    count_steps(run.path("test.jsonl"), {"student": run.path("eval/student.jsonl")})["student"]   -> Steps(0.97, n=361, ...)

The rule: the thinking and the answer are cut into sentences and lines. The final answer is the last one that states an
answer (`distill_lab.answers`), else the last one. A step is what comes before it and says something, three words or an
equation, and was not said before. Two steps are several. An answer that was cut or failed has none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.answers import MAX_CHARS, stated_answer
from distill_lab.control_tokens import split_thinking
from distill_lab.evaluation.eval_rows import read_eval_rows
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.statistics import score_interval
from distill_lab.files.jsonl import read_jsonl
from distill_lab.types import Message

SEVERAL = 2
_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_EQUATION = re.compile(r"[\w)}%]\s*(?:=|\\approx|≈|\\to|→)\s*[-+\\($]*\w")
_LABEL = re.compile(r"^[\s>*#_-]*(?:(?:step|第)?\s*\d{1,3}\s*(?:步|[.):：])\s*)?[\s*_]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Steps:
    """How many of a model's answers reason in several steps."""

    share: float
    """Of the prompts that take several steps, in [0, 1]; 0 if there is none."""
    n: int
    """Prompts that take several steps: all but those whose own worked solution, where the data has one, takes fewer."""
    ci95: Interval | None = None
    """95% interval of `share`; None without prompts."""


def num_steps(content: str, thinking: str | None = None) -> int:
    """Steps before the final answer of a whole answer; 0 if it has no answer apart from its thinking."""
    if thinking is None:
        thinking, content = split_thinking(content)
    parts = _parts(content)
    if not parts:
        return 0
    final = next((place for place in reversed(range(len(parts))) if stated_answer(parts[place])), len(parts) - 1)
    return len({step for step in map(_said, _parts(thinking or "") + parts[:final]) if step})


def count_steps(prompts: Path, results: Mapping[str, Path]) -> dict[str, Steps]:
    """The Steps of each model's eval file (see evaluate.py) of `prompts`; several samples of a prompt share its weight."""
    needed = {row["id"] for row in read_jsonl(prompts) if _takes_several(row.get("completion") or [])}
    return {name: _steps(needed, path) for name, path in results.items()}


def _steps(needed: Collection[str], items: Path) -> Steps:
    found: dict[str, list[bool]] = {}
    for row in read_eval_rows(items):
        if row.id in needed:
            whole = row.finish_reason == "stop"
            found.setdefault(row.id, []).append(whole and num_steps(row.output, row.thinking) >= SEVERAL)
    shares = [sum(samples) / len(samples) for samples in found.values()]
    return Steps(sum(shares) / max(len(shares), 1), len(shares), score_interval(shares) if shares else None)


def _takes_several(completion: Sequence[Message]) -> bool:
    if not completion or completion[0].get("thinking"):
        return True
    return num_steps(completion[0]["content"]) >= SEVERAL


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, _ENDS.split(text[-MAX_CHARS:])) if part]


def _said(part: str) -> str:
    """What a sentence says, without the mark of a list; empty if that is nothing: a heading, a single word."""
    said = _LABEL.sub("", part, count=1).strip()
    return said if len(_WORDS.findall(said)) >= 3 or _EQUATION.search(said) else ""
