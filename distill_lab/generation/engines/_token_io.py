"""Convert prompts to token ids, and generated token ids to completions.

    io = TokenIO(tokenizer, generation_config)
    ids, limit, refusal = io.request(prompt, sampling, context=4096)
    completion = io.completion(prompt, 0, ids, tokens, "stop")

Shared by engines that generate tokens, so that all turn them into completions in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_lab import chat
from distill_lab.config import SamplingConfig
from distill_lab.control_tokens import HARMONY_MARKS, HARMONY_STARTS, NOT_CONTROL
from distill_lab.errors import UserError
from distill_lab.models.plain_text import plain_text, text_ids
from distill_lab.types import Completion, FinishReason, Prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class TokenIO:
    """A tokenizer, the tokens that end a completion (`end_ids`), and those left out of its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.end_ids = chat.end_token_ids(tokenizer, generation_config)
        added = tokenizer.added_tokens_decoder.items()
        harmony = HARMONY_MARKS if any(text.content == HARMONY_STARTS[0] for _, text in added) else ()
        tags = {*NOT_CONTROL, *harmony}
        self._hidden_ids = {token for token, text in added if text.special and text.content not in tags}
        self.control_ids = frozenset(self._hidden_ids.difference(self.end_ids))
        """Special tokens that neither end a completion nor are part of its text."""
        self._hidden_ids.update(self.end_ids)

    def request(self, prompt: Prompt, sampling: SamplingConfig, *, context: int) -> tuple[list[int], int, str]:
        """Token ids of a prompt, the maximum tokens of its completion, and why the model cannot answer it (or "").

        context: maximum tokens of prompt plus completion. A prompt may be a text to continue (`plain_text`). Raises
        UserError for a conversation if the tokenizer has no template.
        """
        text = plain_text(prompt.messages)
        try:
            if text is None:
                ids = chat.prompt_ids(self.tokenizer, prompt.messages, thinking=sampling.thinking)
            else:
                ids = text_ids(self.tokenizer, text)
        except UserError as error:
            if not self.tokenizer.chat_template:
                raise
            return [], 0, str(error)
        limit = min(sampling.max_new_tokens, context - len(ids))
        return (
            ids,
            limit,
            "" if limit > 0 else f"the prompt has {len(ids)} tokens, but the model's context is {context}",
        )

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens as text, without special tokens except thinking and solution tags."""
        shown = [token for token in tokens if token not in self._hidden_ids]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def completion(
        self,
        prompt: Prompt,
        sample: int,
        prompt_ids: Sequence[int],
        tokens: Sequence[int],
        reason: FinishReason,
        *,
        cut_at: int | None = None,
    ) -> Completion:
        """The completion for `tokens`. cut_at: offset of a stop string in their text."""
        opened = chat.opens_thinking(self.tokenizer, prompt_ids)
        thinking, content = chat.split_thinking(self.text(tokens)[:cut_at], opened=opened)
        return Completion(prompt.id, sample, content, thinking, reason, len(tokens))
