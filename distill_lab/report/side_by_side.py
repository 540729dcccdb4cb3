"""Answers of several models side by side, as text for a terminal or a notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from distill_lab.evaluation.compare import Comparison
from distill_lab.formatting import clean
from distill_lab.types import Completion

LINE = 100
"""Characters per line of a rendered comparison."""
TEACHER_CHARS = 300
"""Maximum characters shown of a teacher's answer, which is there to compare with."""
NO_LIMITS: Mapping[str, int] = MappingProxyType({})


def render_comparison(
    comparisons: Sequence[Comparison], *, max_chars: Mapping[str, int] = NO_LIMITS, width: int = LINE
) -> str:
    """The comparison as plain text: per prompt a block, per model its label on a separate line, then its answer.

    max_chars: label -> maximum characters of that model's answers; a cut is marked. width: characters per line. Each
    missing model has the line `Model not found at <path>`. Control characters in answers are left out.
    """
    missing = comparisons[0].missing if comparisons else {}
    lines = [f"Model not found at {path}" for path in missing.values()]
    for number, comparison in enumerate(comparisons, start=1):
        lines += ["=" * width, f"Prompt {number} of {len(comparisons)}", *_wrapped(comparison.prompt, width)]
        for label, completion in comparison.answers.items():
            text = _answer_text(completion, most=max_chars.get(label))
            lines += ["-" * width, f"{label}:", *_wrapped(text, width)]
    return "\n".join([*lines, "=" * width] if comparisons else lines)


def _answer_text(completion: Completion, *, most: int | None) -> str:
    if completion.finish_reason == "error":
        return f"[no answer: {completion.error}]"
    text = completion.content.strip()
    if not text:
        text = f"[thinking only] {completion.thinking.strip()}" if completion.thinking else "[empty answer]"
    if most is not None and len(text) > most:
        return f"{text[:most].rstrip()} [... {len(text) - most} more characters]"
    return f"{text} [cut at {completion.num_tokens} tokens]" if completion.finish_reason == "length" else text


def _wrapped(text: str, width: int) -> list[str]:
    """Indented lines; what a model says can neither look like one of our lines nor steer a terminal."""
    lines: list[str] = []
    for line in clean(text.expandtabs(4)).split("\n"):
        lines += textwrap.wrap(line, width - 2, replace_whitespace=False, drop_whitespace=False) or [""]
    return [f"  {line}".rstrip() for line in lines]
