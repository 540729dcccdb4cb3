"""Control tokens in what people and models write: `<|im_end|>` in a message is text, not the end of a turn.

    text = render(marked(tokenizer, message))      a chat template writes its own control tokens beside the marks
    ids = token_ids(tokenizer, text)                   control tokens for the template's, plain text for the marks

Without this a question about chat templates would end its own turn, and an answer that quotes `<|endoftext|>` would teach
the student to stop there. Thinking tags are no control tokens here: models write them on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

TAGS = ("think", "/think", "thinking", "/thinking")
TAGS_WITH_BARS = ("begin_of_thought", "end_of_thought", "begin_of_solution", "end_of_solution")
NOT_CONTROL = frozenset([*(f"<{tag}>" for tag in TAGS), *(f"<|{tag}|>" for tag in TAGS_WITH_BARS)])
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around a mark's number: Unicode's noncharacters, which no text that is exchanged contains and no template looks for."""
MARK = re.compile(f"{OPEN}(\\d+){CLOSE}")


@dataclass(frozen=True, slots=True)
class _Control:
    """The control tokens of one tokenizer."""

    size: int
    """Tokens the tokenizer had when they were found."""
    tokens: dict[str, AddedToken]
    pattern: re.Pattern[str] | None
    """Any of them, as one group; None where there are none."""


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


def marked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with a mark in the place of each control token it spells."""
    control = _control(tokenizer)
    if control.pattern is None or not control.pattern.search(text):
        return text
    numbers = {name: number for number, name in enumerate(control.tokens)}
    return control.pattern.sub(lambda match: f"{OPEN}{numbers[match[0]]}{CLOSE}", text)


def unmarked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with what the marks stand for."""
    names = list(_control(tokenizer).tokens)
    return MARK.sub(lambda match: names[int(match[1])], text)


def spelled_in(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[str]:
    """The control tokens that are spelled in any of `texts`."""
    pattern = _control(tokenizer).pattern
    return set() if pattern is None else {name for text in texts for name in pattern.findall(text)}


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a rendered conversation: what its marks stand for as plain text, control tokens elsewhere as such.

    Text from one control token to the next is encoded in one go, so that the tokens around a mark are those that plain text
    has there.
    """
    if not MARK.search(text):
        return _ids(tokenizer, text)
    control = _control(tokenizer)
    assert control.pattern is not None
    ids: list[int] = []
    plain = ""
    parts = control.pattern.split(text)  # text, control token, text, ...
    for place, part in enumerate(parts):
        if not MARK.search(part):
            plain += part
            continue
        ids += _ids(tokenizer, plain) if plain else []
        plain = ""
        # Some control tokens take the white space beside them (Phi-3's), and would have it in the text as a whole.
        if place > 0 and control.tokens[parts[place - 1]].rstrip:
            part = part.lstrip()
        if place + 1 < len(parts) and control.tokens[parts[place + 1]].lstrip:
            part = part.rstrip()
        ids += _ids(tokenizer, unmarked(tokenizer, part), spelled=True)
    return ids + (_ids(tokenizer, plain) if plain else [])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, spelled: bool = False) -> list[int]:
    """The tokens of `text`; spelled: control tokens in it as the text they are."""
    settings: dict[str, Any] = {"split_special_tokens": True} if spelled else {}
    encoding: Mapping[str, Any] = tokenizer(text, add_special_tokens=False, **settings)
    return list(encoding["input_ids"])
