"""Control tokens and thinking tags in text: `<|im_end|>` in a message is text, not the end of a turn.

    text = render(mark(tokenizer, message))          the chat template adds its own control tokens around the marks
    ids = token_ids(tokenizer, text)                   control tokens from the template, plain text for the marks
    split_thinking("<think>\n4 + 4\n</think>\n\n8")     -> ("4 + 4", "8")

Without this, a question about chat templates would end its own turn, and an answer that quotes `<|endoftext|>` would teach
the student to stop there. Thinking tags do not count as control tokens here: models write them on purpose.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
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


_found: WeakKeyDictionary[PreTrainedTokenizerBase, _Control] = WeakKeyDictionary()


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
    text = _whole(text)
    if spelled:
        encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    else:
        encoding = tokenizer(text, add_special_tokens=False)
    return list(encoding["input_ids"])


def _whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair (an emoji that was cut), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_CHANNEL = re.compile(
    r"<\|channel\|>(?P<head>[^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<body>.*?)(?=<\|end\|>|<\|call\|>|<\|return\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)
_HARMONY_WITHOUT_MARKS = re.compile(r"analysis(?P<thinking>.*?)assistantfinal(?P<content>.*)", re.DOTALL)


class Closing(enum.Enum):
    """What a closing thinking tag without an opening one means."""

    NO = "text"
    UNCLEAR = "thinking, if the prompt opened it"
    YES = "thinking"


def bare_closing(text: str) -> Closing:
    """What a text's closing tag means if it does not start with an opening one.

    A model whose prompt opens the thinking ends it with the tag on a line by itself and a blank line. A tag within a line,
    in backticks or in a code block is text. On a line by itself without a blank line after it, it may be either.
    """
    return next((found for *_, found in _bare(text)), Closing.NO)


def _bare(text: str) -> list[tuple[str, str, Closing]]:
    """(text before, text after, meaning) of a closing tag that may end thinking."""
    if text.lstrip().startswith(tuple(opening for opening, _ in THINKING_TAGS)):
        return []
    for opening, closing in THINKING_TAGS:
        before, found, after = text.partition(closing)
        if not found or opening in before or closing in after or before.count("```") % 2:
            continue
        alone = not before.strip(" ") or before.rstrip(" ").endswith("\n")
        blank = not after.strip() or after.lstrip().startswith(SOLUTION_TAGS[0]) or re.match(r"[ \t]*\n[ \t]*\n", after)
        if blank and (alone or before[-1:].strip("`'\" ")):
            return [(before, after, Closing.YES)]
        if alone and after.startswith("\n"):
            return [(before, after, Closing.UNCLEAR)]
    return []


def split_thinking(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Split `text` into (thinking, content), without tags and the blank lines around them; empty thinking is None.

    Recognizes the tags of THINKING_TAGS at the start of `text`, and the channels of gpt-oss's format: analysis is thinking,
    final and commentary are content. A closing tag without an opening one ends the thinking if it is on a line by itself
    (`bare_closing`); thinking that is never closed leaves the content empty. opened: the prompt ended inside thinking
    (`chat.opens_thinking`), so any closing tag ends it, and a text cut off before is all thinking. Text without tags is
    returned unchanged.
    """
    stripped = text.lstrip()
    for opening, closing in THINKING_TAGS:
        if stripped.startswith(opening):
            thought, _, content = stripped[len(opening) :].partition(closing)
            return _thinking(thought), _solution(content)
    if opened:
        for opening, closing in THINKING_TAGS:
            before, found, content = text.partition(closing)
            if found and opening not in before:
                return _thinking(before), _solution(content)
        return _thinking(text), ""
    for before, content, _ in _bare(text):
        return _thinking(before), _solution(content)
    if stripped.startswith(HARMONY_STARTS):
        return _channels(stripped)
    if match := _HARMONY_WITHOUT_MARKS.fullmatch(stripped):
        return _thinking(match["thinking"]), match["content"]
    if stripped.startswith(SOLUTION_TAGS[0]):
        return None, _solution(text)
    return None, text


def _channels(text: str) -> tuple[str | None, str]:
    """Harmony: the analysis channel is thinking, the others are content; a call of a tool is left as it is, unread."""
    thinking: list[str] = []
    content: list[str] = []
    for match in _CHANNEL.finditer(text):
        name, *to = match["head"].split()[:2] or [""]
        if to or name not in ("analysis", "commentary", "final"):
            return None, text
        (thinking if name == "analysis" else content).append(match["body"])
    if not thinking and not content:
        return None, text
    return _thinking("\n".join(thinking)), "\n".join(content)


def _thinking(text: str) -> str | None:
    return text.strip("\n") if text.strip() else None


def _solution(text: str) -> str:
    # Remove blank lines, but keep the indentation of the first line of text (code).
    text = re.sub(r"\A(?:\s*\n|[ \t]+)", "", text)
    if text.startswith(SOLUTION_TAGS[0]):
        text = text[len(SOLUTION_TAGS[0]) :].partition(SOLUTION_TAGS[1])[0].strip("\n")
    return text
