"""Generate with a Hugging Face model, anywhere transformers runs: prompts in, completions out as each is done.

In fp32 on a CPU, greedy output equals `model.generate`, and a prompt's sampled output does not depend on its batch
(`sampling.py`). In bf16 or fp16, and on a GPU, the last bits of sums depend on the shape of the batch, so a near tie between
two tokens may go the other way: occasional tokens differ, as between two batches of `generate`. Prompts are read in passes
of a few seconds (`decoding/slices.py`) with progress reports. Shared prefixes of prompts are computed once, waiting rows
replace finished ones, and a batch that does not fit in memory is retried with half the rows.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill_lab import activity
from distill_lab.activity import Decoding
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.generation.decoding.flat import FlatBatch, extra_bytes, why_not
from distill_lab.generation.decoding.padded import PaddedBatch
from distill_lab.generation.decoding.prefixes import find_shared_prefixes
from distill_lab.generation.decoding.sampler import Sampler
from distill_lab.generation.decoding.sequence import DecodingSequence, NextTokens
from distill_lab.generation.decoding.slices import Slices
from distill_lab.generation.engines._stop_strings import StopStrings
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.models.generation_config import settings_in, with_generation_config
from distill_lab.models.loading import load_model
from distill_lab.models.packed_linear import pack_linears
from distill_lab.types import Completion, FinishReason, Prompt

WINDOW = 8192
"""Number of completions whose prompts are sorted and searched for shared prefixes together."""
MAX_ROWS_CPU, MAX_ROWS_GPU = 256, 1024
"""Maximum rows per batch if the engine chooses: more do not help a CPU; fewer leave a GPU bound by kernel launches."""
MAX_PREFILL_CPU, MAX_PREFILL_GPU = 8_192, 131_072
"""Maximum prompt tokens added to a batch at once if the engine chooses; limits the memory of the pass."""
FIRST_FLOP_CPU, FIRST_FLOP_GPU = 2e11, 1e14
"""Operations of the first pass over prompts, a few seconds' worth; then the measured speed decides (`Slices`)."""
REPORT_EVERY_S = 1.0
"""Seconds between reports of how many tokens are generated so far."""
CACHE_FRACTION = 0.5
"""Fraction of free memory that a batch's KV cache and logits are expected to take."""
EXPECTED_TOKENS = 1024
"""Maximum tokens per row to plan memory for."""
REFILL_FRACTION = 1 / 8
"""Waiting rows are added once this fraction of the batch is free."""
INITIAL_CACHE_TOKENS = 128
"""Initial cache headroom in tokens; doubled when full."""
OnTokens = Callable[[DecodingSequence, FinishReason], None]
"""Receives each sequence when it has ended, with all its tokens."""


def preference() -> int:
    """Works on every machine; engines made for its hardware are preferred."""
    return 1


def load(model: ModelConfig, config: EngineConfig) -> TransformersEngine:
    """Load the model and its tokenizer, on a CPU with packed layers. Raises ModelError."""
    loaded, tokenizer = load_model(model)
    pack_linears(loaded)
    return TransformersEngine(loaded, tokenizer, batch_size=config.batch_size)


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `generate`."""

    sampling: SamplingConfig
    stop: StopStrings
    end_ids: frozenset[int]
    min_new_tokens: int
    done: _Done
    on_tokens: OnTokens


@dataclass(slots=True)
class _Done:
    """Progress of a call of `generate`; see `activity.Decoding`."""

    rows: int = 0
    rows_read: int = 0
    tokens: int = 0
    seconds_reading: float = 0.0
    seconds_decoding: float = 0.0
    reported_at: float = -math.inf


class TransformersEngine:
    """A model in evaluation mode, its tokenizer and the batch size (0: chosen by free memory)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 0) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.io = TokenIO(tokenizer, model.generation_config)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._text_config = model.config.get_text_config(decoder=True)
        reason = why_not(model)
        self._flat = not reason
        self.note = f"decoding with padding, which is slower: {reason}" if reason else ""
        """What a user should know about decoding this model; may be empty."""
        self._bytes_per_token = _bytes_per_token(self._text_config, model.dtype)
        self._fitting_rows: int | None = None
        """Set once a batch did not fit in memory."""
        self.slices = self._first_slices()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        *,
        min_new_tokens: int = 0,
        on_tokens: OnTokens = lambda sequence, reason: None,
    ) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, long prompts first, each as soon as it is done.

        min_new_tokens: minimum length of each completion (for timing). on_tokens: called before each completion with its
        token ids, which its text alone does not tell. A prompt that the model cannot answer gets a completion with
        finish_reason "error". Raises UserError if not even one row fits in memory, or if the model's output is not a number.
        """
        sampling = (
            with_generation_config(sampling, settings_in(self.model.generation_config))
            if sampling.from_model
            else sampling
        )
        stop = StopStrings(sampling.stop, self.tokenizer, self.io.text)
        end_ids = frozenset(self.io.end_ids) | stop.token_ids
        job = _Job(sampling, stop, end_ids, min_new_tokens, _Done(), on_tokens)
        made = (row for prompt in prompts for row in self._rows(prompt, sampling))
        while window := list(islice(made, WINDOW)):
            yield from (row for row in window if isinstance(row, Completion))
            rows = [row for row in window if isinstance(row, DecodingSequence)]
            job.done.rows += len(rows)
            yield from self._complete(self._in_order(rows), job)
            # Callers such as a judge or a measurement do not check the number of completions.
            assert all(row.done for row in rows), f"{sum(not row.done for row in rows)} prompts were not answered"
            self._report(job.done)

    def refusal(self, prompt: Prompt, sampling: SamplingConfig) -> str:
        """Why the model cannot answer a prompt; empty if it can."""
        return self.io.request(prompt, sampling, context=self._text_config.max_position_embeddings)[2]

    def _in_order(self, rows: list[DecodingSequence]) -> deque[DecodingSequence]:
        """Sort rows: those that share a prefix next to each other, otherwise the longest first."""
        if self._flat and len(rows) > 1:
            max_rows, _ = self._max_batch()
            # Every step needs one more attention call for the prefix, but reads it once instead of once per row.
            min_bytes = 2 * extra_bytes(self.model.device) * self._text_config.num_hidden_layers

            def pays(tokens: int, sharing: int) -> bool:
                return tokens * min(sharing, max_rows) * self._bytes_per_token >= min_bytes

            for row, prefix in zip(
                rows, find_shared_prefixes([row.prompt_ids for row in rows], pays=pays), strict=True
            ):
                row.prefix = prefix
        rows.sort(key=lambda row: (row.prefix.order if row.prefix else len(rows), -len(row.prompt_ids)))
        return deque(rows)

    def _rows(self, prompt: Prompt, sampling: SamplingConfig) -> Iterator[DecodingSequence | Completion]:
        """The rows of one prompt, or error completions if the template or the context length rejects it."""
        context = self._text_config.max_position_embeddings
        ids, limit, reason = self.io.request(prompt, sampling, context=context)
        for sample in range(sampling.num_samples):
            if reason:
                yield Completion(prompt.id, sample, "", None, "error", 0, reason)
            else:
                yield DecodingSequence(prompt, sample, ids, limit)

    def _complete(self, waiting: deque[DecodingSequence], job: _Job) -> Iterator[Completion]:
        """Complete `waiting`; if memory runs out, retry with half as many rows. No token is generated twice."""
        while waiting:
            batch = self._batch(job)
            tried: list[DecodingSequence] = []
            fits = True
            try:
                yield from self._decode(batch, waiting, tried, job)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if fits:
                continue  # a batch that cannot grow may end with rows still waiting
            # After the except block, because the traceback kept the batch's tensors alive.
            del batch
            free_memory()
            if len(tried) == 1:
                raise UserError(
                    f"out of memory with one prompt at a time ({len(tried[0].prompt_ids)} tokens, max_new_tokens "
                    f"{job.sampling.max_new_tokens}); lower max_new_tokens, use quantization 8bit or 4bit, or a smaller "
                    "model"
                )
            self._fitting_rows = (len(tried) + 1) // 2
            again = [row for row in tried if not row.done]
            job.done.rows_read -= sum(bool(row.tokens) for row in again)
            waiting.extendleft(reversed(again))

    def _decode(
        self, batch: FlatBatch | PaddedBatch, waiting: deque[DecodingSequence], tried: list[DecodingSequence], job: _Job
    ) -> Iterator[Completion]:
        """Decode until the batch is empty and, if rows can be added, none is waiting. tried: set to the rows in memory."""
        max_rows, max_prefill = self._max_batch()
        budget = CACHE_FRACTION * _free_bytes(self.model.device)
        num_done = 0
        filling = True
        while True:
            free = max_rows - len(batch.rows)
            enough = 1 if filling else max(1, min(len(waiting), REFILL_FRACTION * max_rows))
            if not batch.rows or (batch.can_add and free >= enough):
                held = sum(self._row_bytes(row, job) for row in batch.rows)
                added = self._take_fitting(waiting, free, max_prefill, budget - held, job, alone=not batch.rows)
            else:
                added = []
            filling = bool(added)  # a slice at a time, until the batch or the memory is full
            tried[:] = batch.rows + added
            made = self._advance(batch, added, job.done)
            cut_by_context = False
            for row, token in made:
                if row.done:
                    continue
                row.tokens.append(token)
                may_end = len(row.tokens) > job.min_new_tokens
                offset = job.stop.find(row.tokens) if job.stop and may_end else None
                ended = offset is not None or (may_end and token in job.end_ids)
                if ended or len(row.tokens) >= row.limit:
                    row.done = True
                    num_done += 1
                    cut_by_context |= not ended
                    if row.prefix:
                        row.prefix.row_done()
                    reason = "stop" if ended else "length"
                    job.on_tokens(row, reason)
                    yield self.io.completion(row.prompt, row.sample, row.prompt_ids, row.tokens, reason, cut_at=offset)
            if num_done == len(batch.rows) and not (batch.can_add and waiting):
                return
            # Evict a row at the end of its context immediately: models with learned positions fail beyond it.
            if num_done and (cut_by_context or num_done >= batch.evict_fraction * len(batch.rows)):
                batch.evict()
                num_done = 0

    def _advance(self, batch: FlatBatch | PaddedBatch, added: list[DecodingSequence], done: _Done) -> NextTokens:
        """Add rows or take one step; report the progress."""
        start, prefixes = self.slices.clock(), self.slices.prefix_seconds
        if added and not done.rows_read:
            self._report(done)
        made = batch.add(added) if added else batch.step()
        seconds = self.slices.clock() - start
        if added:
            done.rows_read += len(added)
            done.seconds_reading += seconds - (self.slices.prefix_seconds - prefixes)
        else:
            done.seconds_decoding += seconds
            done.tokens += sum(not row.done for row, _ in made)
        if added or self.slices.clock() - done.reported_at >= REPORT_EVERY_S:
            self._report(done)
        return made

    def _report(self, done: _Done) -> None:
        done.reported_at = self.slices.clock()
        decoding = Decoding(done.rows, done.rows_read, done.tokens, done.seconds_reading, done.seconds_decoding)
        if not done.tokens:
            activity.report("reading prompts", done.rows_read, done.rows, decoding=decoding)
        else:
            activity.report("generated tokens:", done.tokens, decoding=decoding)

    def _first_slices(self) -> Slices:
        on_cpu = self.model.device.type == "cpu"
        operations = 2 * sum(weight.numel() for weight in self.model.parameters())  # per token
        return Slices(
            first=(FIRST_FLOP_CPU if on_cpu else FIRST_FLOP_GPU) / operations,
            maximum=MAX_PREFILL_CPU if on_cpu else MAX_PREFILL_GPU,
        )

    def _take_fitting(
        self, waiting: deque[DecodingSequence], most: int, max_prefill: int, budget: float, job: _Job, *, alone: bool
    ) -> list[DecodingSequence]:
        """Take the next rows from `waiting` that fit in the remaining memory; alone: at least one."""
        added: list[DecodingSequence] = []
        size = self.slices.size if self._flat else math.inf
        while waiting and len(added) < most:
            row = waiting[0]
            max_prefill -= row.num_own if self._flat else len((added or [row])[0].prompt_ids)  # includes padding
            budget -= self._row_bytes(row, job)
            size -= row.num_own
            if size < 0 and added:
                break
            if not self.batch_size and min(max_prefill, budget) < 0 and (added or not alone):
                break
            added.append(waiting.popleft())
        return added

    def _batch(self, job: _Job) -> FlatBatch | PaddedBatch:
        sampler = Sampler(
            job.sampling,
            vocabulary=self._text_config.vocab_size,
            end_ids=sorted(job.end_ids),
            min_new_tokens=job.min_new_tokens,
        )
        headroom = min(INITIAL_CACHE_TOKENS, job.sampling.max_new_tokens)
        if self._flat:
            return FlatBatch(
                self.model,
                sampler,
                bytes_per_token=self._bytes_per_token,
                headroom=headroom,
                slices=self.slices,
            )
        return PaddedBatch(
            self.model,
            sampler,
            pad_id=int(self.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
            headroom=headroom,
            takes_positions=self._takes_positions,
            last_only=self._last_only,
        )

    def _max_batch(self) -> tuple[int, int]:
        """Maximum rows in memory at once, and maximum tokens added at once."""
        on_cpu = self.model.device.type == "cpu"
        rows = self.batch_size or (MAX_ROWS_CPU if on_cpu else MAX_ROWS_GPU)
        return min(rows, self._fitting_rows or rows), MAX_PREFILL_CPU if on_cpu else MAX_PREFILL_GPU

    def _row_bytes(self, row: DecodingSequence, job: _Job) -> int:
        """Expected final memory of a row in bytes, including its logits."""
        own = len(row.prompt_ids) - (row.prefix.end if row.prefix else 0)
        # Logits in fp32, and for sampling their probabilities and cumulative probabilities (fp64).
        logits_bytes = self._text_config.vocab_size * (4 if job.sampling.temperature == 0 else 24)
        return self._bytes_per_token * (own + min(row.limit, EXPECTED_TOKENS)) + logits_bytes


def _bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values per token."""
    fields = config.to_dict()  # models without grouped heads or an explicit head size lack these fields
    heads = fields.get("num_key_value_heads") or config.num_attention_heads
    size = fields.get("head_dim") or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return psutil.virtual_memory().available
