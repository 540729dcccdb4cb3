"""Stop strings, found even when they span several tokens.

Data in: the tokens of a completion so far. Data out: the offset of a stop string in its text, once it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What decoders return for bytes that are not yet a complete character."""


class StopStrings:
    """Finds `texts` in the text that `decode` returns for tokens. `token_ids`: stop strings that are single tokens."""

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._texts = tuple(text for text in texts if text)
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.token_ids = {added[text] for text in self._texts if text in added}
        self._decode, self._tokenizer = decode, tokenizer
        self._last_characters = {text[-1] for text in self._texts}
        self._may_complete: dict[int, bool] = {}
        # Each token yields at least one byte; a few more, because some tokens yield nothing.
        self._tail = 8 + max((len(text.encode()) for text in self._texts), default=0)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def find(self, tokens: Sequence[int]) -> int | None:
        """The offset in the whole text of a stop string that the last token completed; None if there is none."""
        last = tokens[-1]
        if last not in self._may_complete:
            self._may_complete[last] = self._ends_one(last)
        if not self._may_complete[last]:
            return None
        tail = self._decode(tokens[-self._tail :])
        if not any(text in tail for text in self._texts):
            return None
        whole = self._decode(tokens)
        return min((offset for text in self._texts if (offset := whole.find(text)) >= 0), default=None)

    def _ends_one(self, token: int) -> bool:
        """Whether this token can contain the last character of a stop string; usually saves decoding the token."""
        text = str(self._tokenizer.decode([token], skip_special_tokens=False))
        # Some decoders drop the space before a first word, so white space always counts as possible.
        return REPLACEMENT in text or any(end in text or end.isspace() for end in self._last_characters)
