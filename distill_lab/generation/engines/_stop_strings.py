"""Texts that end a completion, found wherever they fall on token boundaries.

Data in: the tokens of a completion so far. Data out: where in its text a stop text begins, as soon as it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no whole character yet."""


class StopStrings:
    """`texts` in the text that `decode` makes of tokens. `token_ids`: those that are one token by themselves."""

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._texts = tuple(text for text in texts if text)
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.token_ids = {added[text] for text in self._texts if text in added}
        self._decode, self._tokenizer = decode, tokenizer
        self._last_characters = {text[-1] for text in self._texts}
        self._may_complete: dict[int, bool] = {}
        # Each token gives at least a byte; tokens that show nothing are why there are some more.
        self._tail = 8 + max((len(text.encode()) for text in self._texts), default=0)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def find(self, tokens: Sequence[int]) -> int | None:
        """The place in the whole text where a stop text begins that the last token has completed; else None."""
        last = tokens[-1]
        if last not in self._may_complete:
            self._may_complete[last] = self._ends_one(last)
        if not self._may_complete[last]:
            return None
        tail = self._decode(tokens[-self._tail :])
        if not any(text in tail for text in self._texts):
            return None
        whole = self._decode(tokens)
        return min((place for text in self._texts if (place := whole.find(text)) >= 0), default=None)

    def _ends_one(self, token: int) -> bool:
        """Whether a stop text's last character can come from this token: what spares most tokens the decoding."""
        text = str(self._tokenizer.decode([token], skip_special_tokens=False))
        # Some decoders drop the space before a first word, so white space is never ruled out.
        return REPLACEMENT in text or any(end in text or end.isspace() for end in self._last_characters)
