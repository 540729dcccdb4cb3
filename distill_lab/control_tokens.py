"""Control tokens quoted in messages: `<|im_end|>` in a message is text, not the end of a turn.

    text = render(mark(tokenizer, message))          the chat template adds its own control tokens around the marks
    ids = token_ids(tokenizer, text)                   control tokens from the template, plain text for the marks

Without this, a question about chat templates would end its own turn, and an answer that quotes `<|endoftext|>` would teach
the student to stop there. Thinking tags do not count as control tokens here: models write them on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
"""Opening and closing tags of thinking: Qwen, DeepSeek and most others first, then Sky-T1, Mistral, Seed, Gemma, Command and
Kimi. Tags that a prompt asks for (`<reasoning>`, `<thought>`) are part of the answer's format and stay in the answer."""
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
HARMONY_STARTS = ("<|channel|>", "<|start|>assistant<|channel|>")
"""How an answer in gpt-oss's format (Harmony) starts: its thinking is a channel, not a pair of tags."""
HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>")
NOT_CONTROL = frozenset(tag for pair in (*THINKING_TAGS, SOLUTION_TAGS) for tag in pair)
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Delimiters of a mark's number: Unicode noncharacters, which no exchanged text contains and no template looks for."""
MARK = re.compile(f"{OPEN}(\\d+){CLOSE}")


@dataclass(frozen=True, slots=True)
class _Control:
    """The control tokens of one tokenizer."""

    size: int
    """The tokenizer's number of tokens when these were collected."""
    tokens: dict[str, AddedToken]
    pattern: re.Pattern[str] | None
    """Matches any of them, as one group; None if there are none."""


_found: WeakKeyDictionary[Any, _Control] = WeakKeyDictionary()


def _control(tokenizer: PreTrainedTokenizerBase) -> _Control:
    known = _found.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        tokens = {
            token.content: token
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and token.content.strip() and token.content not in NOT_CONTROL
        }
        longest_first = sorted(tokens, key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if tokens else None
        known = _found[tokenizer] = _Control(len(tokenizer), tokens, pattern)
    return known


def mark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with each spelled-out control token replaced by a mark."""
    control = _control(tokenizer)
    if control.pattern is None or not control.pattern.search(text):
        return text
    numbers = {name: number for number, name in enumerate(control.tokens)}
    return control.pattern.sub(lambda match: f"{OPEN}{numbers[match[0]]}{CLOSE}", text)


def unmark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with each mark replaced by the control token's text."""
    names = list(_control(tokenizer).tokens)
    return MARK.sub(lambda match: names[int(match[1])], text)


def find_spelled(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[str]:
    """The control tokens spelled out in any of `texts`."""
    pattern = _control(tokenizer).pattern
    return set() if pattern is None else {name for text in texts for name in pattern.findall(text)}


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a rendered conversation: marks become plain text; other control tokens stay control tokens.

    Text between two control tokens is encoded in one go, so that the tokens around a mark are the same as in plain text.
    """
    if not MARK.search(text):
        return _ids(tokenizer, text)
    control = _control(tokenizer)
    assert control.pattern is not None
    ids: list[int] = []
    plain = ""
    parts = control.pattern.split(text)  # text, control token, text, ...
    for index, part in enumerate(parts):
        if not MARK.search(part):
            plain += part
            continue
        ids += _ids(tokenizer, plain) if plain else []
        plain = ""
        # Some control tokens (Phi-3's) absorb the white space next to them, as they would in the whole text.
        if index > 0 and control.tokens[parts[index - 1]].rstrip:
            part = part.lstrip()
        if index + 1 < len(parts) and control.tokens[parts[index + 1]].lstrip:
            part = part.rstrip()
        ids += _ids(tokenizer, unmark(tokenizer, part), spelled=True)
    return ids + (_ids(tokenizer, plain) if plain else [])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, spelled: bool = False) -> list[int]:
    """Token ids of `text`; spelled: control tokens in it are encoded as plain text."""
    settings: dict[str, Any] = {"split_special_tokens": True} if spelled else {}
    encoding: Mapping[str, Any] = tokenizer(_whole(text), add_special_tokens=False, **settings)
    return list(encoding["input_ids"])


def _whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair (an emoji that was cut), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
