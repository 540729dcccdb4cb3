"""Fields whose content changes what a row means: each is used by an adapter, or the row is refused by name.

A row whose passage, choices or image is left out would still look like a question, and a wrong answer would look right.
Every other field goes to the prompt's `meta`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distill_lab.data.adapters import _choices, _tools
from distill_lab.types import Fields

SYSTEM = ("system", "system_prompt", "system_message", "sys_prompt")
CONTEXT = (
    "context", "contexts", "passage", "passages", "article", "document", "documents", "paragraph", "paragraphs",
    "background", "story", "evidence", "knowledge", "body", "support", "schema", "table", "sql_context",
)  # fmt: skip
"""What a question is about; the prompt has it before the question."""
QUESTIONS = (
    "prompt", "question", "problem", "query", "instruction", "input", "messages", "conversations", "conversation",
    "history", "premise", "hypothesis",
)  # fmt: skip
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
OTHERS = ("starter_code", "mc1_targets", "mc2_targets", "few_shot_examples", "demonstrations")
COMPLETIONS = (
    "completion", "response", "output", "solution", "cot", "chosen", "generation", "generations", "generated_text",
    "message_content", "answers",
)  # fmt: skip
"""What may be trained; refused only if the row has neither a completion nor a gold answer without it."""
NOTHING = (None, "", [], {}, False, "[]", "{}", "null", "None", "nan")
CHANGING = frozenset((*SYSTEM, *CONTEXT, *QUESTIONS, *MEDIA, *OTHERS, *_choices.LISTS, *_tools.FIELDS))
"""Fields that are refused if nothing used them."""
ALL = CHANGING | {*COMPLETIONS, *_choices.GOLD}


DISTRACTORS = ("incorrect_answer", "wrong_answer", "distractor")
"""How the names of columns with wrong choices start."""


def check(row: Fields, used: Iterable[str | None], shown: Iterable[str], *, answered: bool) -> None:
    """Raise ValueError for a field that means something and was not used.

    shown: the texts of the record; a field whose text is in them already is a copy. answered: whether the record has a
    completion or a gold answer.
    """
    read, texts = set(used), [text.strip() for text in shown]
    for field, value in row.items():
        name = "_".join(field.lower().split())
        changing = name in CHANGING or name.startswith(DISTRACTORS)
        if field in read or not (changing or name in COMPLETIONS):
            continue
        if value in NOTHING or _is_copy(value, texts):
            continue
        if changing:
            what = "which the lab cannot read" if name in MEDIA else "which changes what the row means and is not used"
        elif name in COMPLETIONS and not answered:
            what = "which may be its answer and is not used"
        else:
            continue
        raise ValueError(
            f"the row has the field {field!r}, {what}; say what it is (--data.columns context={field}) or leave it out "
            f"by name (--data.columns ignore={field})"
        )


def _is_copy(value: object, texts: list[str]) -> bool:
    """Whether all texts in a value are in the record, or one of them has the whole question in it."""
    found = [text.strip() for text in _texts(value) if text.strip()]
    if not found:
        return True
    everything = "\n".join(texts)
    return all(text in everything for text in found) or (
        isinstance(value, list) and any(text and text in found for text in texts)
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if "role" in value or "from" in value:
            yield from (str(value[key]) for key in ("content", "value") if isinstance(value.get(key), str))
        else:
            for item in value.values():
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield repr(value)
