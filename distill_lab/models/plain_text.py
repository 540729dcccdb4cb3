"""Texts that a model reads as they are, without a chat template: text -> token ids.

    text_ids(tokenizer, "Question: What is 2 + 3?\nAnswer:")
    as_prompt("Question: ...")             a prompt's messages: every engine with a tokenizer continues the text

Benchmarks are written for base models, which continue a text. A prompt of one message with the role `text` is such a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_lab.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLE = "text"


def as_prompt(text: str) -> list[Message]:
    """The messages of a prompt that is continued as it is."""
    return [{"role": ROLE, "content": text}]


def plain_text(messages: Sequence[Message]) -> str | None:
    """The text to continue; None for a conversation."""
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == ROLE else None


def prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that is before a text without a context: the beginning of a text, or else the end of one."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(found, int), "load_tokenizer refuses tokenizers without an end token"
    return found


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool | None = None) -> list[int]:
    """Token ids of a text, begun as its tokenizer begins texts, unless it has that beginning already.

    Control tokens that the text spells are control tokens: a rendered chat template is such a text. special: whether the
    tokenizer adds its special tokens; None: unless the text begins with them.
    """
    if special is None:
        special = not text.startswith(str(tokenizer.decode([prefix_id(tokenizer)])))
    return list(tokenizer.encode(text, add_special_tokens=special))
