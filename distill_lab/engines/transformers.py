"""Generation with a Hugging Face model, anywhere transformers runs: prompts in, completions out as each is done.

Greedy output equals `model.generate`; sampled output of a prompt does not depend on its batch (`sampling.py`). Prompts
of like length share a batch, rows that are done leave it, and a batch that does not fit the memory is halved.
Shapes: B rows of a batch, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lab import chat
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.kv_cache import growing_cache
from distill_lab.memory import free_memory, is_out_of_memory
from distill_lab.models import load_model
from distill_lab.sampling import BLOCK, next_tokens, penalize, uniforms
from distill_lab.stopping import StopTexts
from distill_lab.types import Completion, FinishReason, Prompt

WINDOW = 8192
"""Completions that are sorted by prompt length together."""
MOST_ROWS_CPU, MOST_ROWS_GPU = 256, 1024
"""Most rows of a batch where the engine chooses: a CPU gains nothing beyond, a GPU is bound by launches up to it."""
MOST_PREFILL_CPU, MOST_PREFILL_GPU = 32_768, 131_072
"""Most prompt tokens of a batch, padding included, where the engine chooses: they bound the first pass's memory."""
CACHE_SHARE = 0.5
"""Share of the free memory that a batch's keys and values and logits may be expected to take."""
LEAVE_SHARE = 1 / 8
"""Rows that are done are taken out of the batch once they are this share of it."""
ROOM = 128
"""Tokens a batch's cache first has room for; it doubles when they are used up."""


def preference() -> int:
    """Suits every machine; engines made for the hardware at hand come first."""
    return 1


def load(model: ModelConfig, config: EngineConfig) -> TransformersEngine:
    """Load the model and its tokenizer. Raises ModelError."""
    return TransformersEngine(*load_model(model), batch_size=config.batch_size)


@dataclass(slots=True, eq=False)
class _Row:
    """One completion in the making."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    limit: int
    """Most tokens it may have."""
    tokens: list[int] = field(default_factory=list)
    done: bool = False


class TransformersEngine:
    """A model in evaluation mode, its tokenizer and the batch size (0: chosen by memory)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 0) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.end_ids = chat.end_token_ids(tokenizer, model.generation_config)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._text_config = model.config.get_text_config(decoder=True)
        tags = {tag for pair in (*chat.THINKING_TAGS, chat.SOLUTION_TAGS) for tag in pair}
        added = tokenizer.added_tokens_decoder.items()
        self._hidden_ids = {token for token, text in added if text.special and text.content not in tags}
        self._hidden_ids.update(self.end_ids)
        self._fitting_rows: int | None = None
        """Set once a batch did not fit."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, min_new_tokens: int = 0
    ) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, long prompts first, each as soon as it is done.

        min_new_tokens: no completion ends before it has as many tokens (for timing). A prompt that the model cannot
        take gives a completion with finish_reason "error". Raises UserError where not even one row fits the memory, and
        where the model's output is not a number.
        """
        stop = StopTexts(sampling.stop, self.tokenizer, self._text)
        made = (row for prompt in prompts for row in self._rows(prompt, sampling))
        while window := list(islice(made, WINDOW)):
            yield from (row for row in window if isinstance(row, Completion))
            rows = [row for row in window if isinstance(row, _Row)]
            rows.sort(key=lambda row: -len(row.prompt_ids))
            while rows:
                size = self._batch_rows(rows, sampling)
                yield from self._complete(rows[:size], sampling, stop, min_new_tokens)
                del rows[:size]

    def _rows(self, prompt: Prompt, sampling: SamplingConfig) -> Iterator[_Row | Completion]:
        """The rows of one prompt, or its failures where the template or the context refuses it."""
        reason, ids, limit = "", [], sampling.max_new_tokens
        try:
            ids = chat.prompt_ids(self.tokenizer, prompt.messages, thinking=sampling.thinking)
        except UserError as error:
            if not self.tokenizer.chat_template:
                raise
            reason = str(error)
        else:
            most = self._text_config.max_position_embeddings
            limit = min(limit, most - len(ids))
            if limit < 1:
                reason = f"the prompt has {len(ids)} tokens, and the model's context is {most}"
        for sample in range(sampling.num_samples):
            if reason:
                yield Completion(prompt.id, sample, "", None, "error", 0, reason)
            else:
                yield _Row(prompt, sample, ids, limit)

    def _complete(
        self, rows: list[_Row], sampling: SamplingConfig, stop: StopTexts, min_new_tokens: int
    ) -> Iterator[Completion]:
        """Completions of `rows` in one batch, or in halves where the memory is too small; no token is made twice."""
        fits = True
        try:
            yield from self._decode(rows, sampling, stop, min_new_tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if fits:
            return
        # Out of the except block: the traceback no longer holds the batch's tensors.
        free_memory()
        left = [row for row in rows if not row.done]
        if len(rows) == 1:
            raise UserError(
                f"out of memory with one prompt at a time ({len(rows[0].prompt_ids)} tokens, max_new_tokens "
                f"{sampling.max_new_tokens}); lower max_new_tokens, use quantization 8bit or 4bit, or a smaller model"
            )
        self._fitting_rows = max(1, len(rows) // 2)
        half = (len(left) + 1) // 2
        for part in (left[:half], left[half:]):
            if part:
                yield from self._complete(part, sampling, stop, min_new_tokens)

    def _decode(
        self, rows: list[_Row], sampling: SamplingConfig, stop: StopTexts, min_new_tokens: int
    ) -> Iterator[Completion]:
        """Decode `rows` as one batch until all are done. They all have the same number of tokens, at the start too."""
        batch = _Batch(self, rows, sampling)
        end_ids = set(self.end_ids) | stop.token_ids
        banned = sorted(end_ids)
        num_done = 0
        for step in range(len(rows[0].tokens), sampling.max_new_tokens):
            may_end = step + 1 > min_new_tokens
            tokens = batch.step(step, banned=None if may_end else banned)
            cut_by_context = False
            for row, token in zip(batch.rows, tokens, strict=True):
                if row.done:
                    continue
                row.tokens.append(token)
                place = stop.find(row.tokens) if stop and may_end else None
                ended = place is not None or (may_end and token in end_ids)
                if ended or len(row.tokens) >= row.limit:
                    row.done = True
                    num_done += 1
                    cut_by_context |= not ended
                    yield self._completion(row, "stop" if ended else "length", place)
            if num_done == len(batch.rows):
                return
            # A row at the end of its context leaves at once: models with learned positions fail beyond it.
            if num_done and (cut_by_context or num_done >= LEAVE_SHARE * len(batch.rows)):
                batch.keep([place for place, row in enumerate(batch.rows) if not row.done])
                num_done = 0

    def _completion(self, row: _Row, reason: FinishReason, place: int | None) -> Completion:
        text = self._text(row.tokens)[:place]
        thinking, content = chat.split_thinking(text, opened=chat.opens_thinking(self.tokenizer, row.prompt_ids))
        return Completion(row.prompt.id, row.sample, content, thinking, reason, len(row.tokens))

    def _text(self, tokens: Sequence[int]) -> str:
        """The tokens as text, special ones left out except for the tags that thinking is known by."""
        shown = [token for token in tokens if token not in self._hidden_ids]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _batch_rows(self, rows: list[_Row], sampling: SamplingConfig) -> int:
        """How many of `rows`, longest first, to take at once."""
        device, config = self.model.device, self._text_config
        on_cpu = device.type == "cpu"
        most_rows = self.batch_size or (MOST_ROWS_CPU if on_cpu else MOST_ROWS_GPU)
        most = min(len(rows), most_rows, self._fitting_rows or most_rows)
        if self.batch_size:
            return most
        most_prefill = MOST_PREFILL_CPU if on_cpu else MOST_PREFILL_GPU
        tokens = len(rows[0].prompt_ids) + min(rows[0].limit, 1024)
        fields = config.to_dict()  # models without grouped heads or a head size of their own lack these fields
        heads = fields.get("num_key_value_heads") or config.num_attention_heads
        size = fields.get("head_dim") or config.hidden_size // config.num_attention_heads
        cache_bytes = 2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize * tokens
        # Logits in fp32, and while sampling their probabilities and cumulated probabilities (fp64).
        logits_bytes = config.vocab_size * (4 if sampling.temperature == 0 else 24)
        fitting = int(CACHE_SHARE * _free_bytes(device) / (cache_bytes + logits_bytes))
        return max(1, min(most, fitting, most_prefill // len(rows[0].prompt_ids)))


class _Batch:
    """The tensors of rows that are decoded together. Prompts stand at the right, padding at the left."""

    @torch.inference_mode()
    def __init__(self, engine: TransformersEngine, rows: list[_Row], sampling: SamplingConfig) -> None:
        self._engine, self._sampling, self.rows = engine, sampling, list(rows)
        device = engine.model.device
        inputs = [row.prompt_ids + row.tokens for row in rows]
        length = max(map(len, inputs))
        pad = engine.tokenizer.pad_token_id
        self._ids_BT = torch.tensor([[pad] * (length - len(ids)) + ids for ids in inputs], device=device)
        self._padding_B1 = torch.tensor([[length - len(ids)] for ids in inputs], device=device)
        self._length = 0
        """Tokens in the cache, padding included."""
        self._padded = any(len(ids) < length for ids in inputs)
        self._cache = growing_cache(engine.model.config, room=min(ROOM, sampling.max_new_tokens))
        self._seen_BV: torch.Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_BV = torch.zeros(len(rows), engine.model.config.get_text_config().vocab_size, dtype=torch.bool)
            for place, ids in enumerate(inputs):
                self._seen_BV[place, ids] = True
            self._seen_BV = self._seen_BV.to(device)
        self._uniform_BS: torch.Tensor | None = None
        self._numbers_block = -1

    @torch.inference_mode()
    def step(self, step: int, *, banned: list[int] | None) -> list[int]:
        """Feed what was not fed yet; the next token of every row, none of them one of `banned`."""
        fresh = self._ids_BT.shape[1]
        first, self._length = self._length == 0, self._length + fresh
        logits_BV = self._forward(fresh)
        # Once per batch: a model that overflows (fp16) does so on its prompts.
        if first and bool(logits_BV.isnan().any()):
            raise UserError(
                "the model's output is not a number (NaN): its weights are damaged, or overflow in "
                f"{self._engine.model.dtype}; load it on a GPU with bfloat16 or on a CPU"
            )
        if self._seen_BV is not None:
            logits_BV = penalize(logits_BV, self._seen_BV, self._sampling.repetition_penalty)
        if banned:
            logits_BV = logits_BV.index_fill(1, torch.tensor(banned, device=logits_BV.device), -torch.inf)
        next_B = next_tokens(logits_BV, self._sampling, self._uniform(step))
        self._ids_BT = next_B[:, None]
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, self._ids_BT, True)
        return next_B.tolist()

    def _forward(self, fresh: int) -> torch.Tensor:
        engine = self._engine
        inputs: dict[str, torch.Tensor] = {}
        if self._padded:
            columns_1T = torch.arange(self._length, device=self._ids_BT.device)[None]
            inputs["attention_mask"] = (columns_1T >= self._padding_B1).long()
            if engine._takes_positions:
                inputs["position_ids"] = (columns_1T[:, -fresh:] - self._padding_B1).clamp(min=0)
        output = engine.model(
            input_ids=self._ids_BT, past_key_values=self._cache, use_cache=True, **inputs, **engine._last_only
        )
        return output.logits[:, -1]

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Go on with the rows at `places` only."""
        self.rows = [self.rows[place] for place in places]
        index: Any = torch.tensor(places, device=self._ids_BT.device)
        self._cache.reorder_cache(index)
        self._ids_BT, self._padding_B1 = self._ids_BT[index], self._padding_B1[index]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[index]
        if self._uniform_BS is not None:
            self._uniform_BS = self._uniform_BS[index.to(self._uniform_BS.device)]

    def _uniform(self, step: int) -> torch.Tensor | None:
        if self._sampling.temperature == 0:
            return None
        block, column = divmod(step, BLOCK)
        if self._uniform_BS is None or block != self._numbers_block:
            seed = self._sampling.seed
            numbers = [uniforms(seed, row.prompt.id, row.sample, block=block) for row in self.rows]
            device = self._ids_BT.device
            self._uniform_BS = torch.from_numpy(np.stack(numbers)).to("cpu" if device.type == "mps" else device)
            self._numbers_block = block
        return self._uniform_BS[:, column]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return psutil.virtual_memory().available
