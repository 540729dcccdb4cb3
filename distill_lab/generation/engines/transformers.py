"""Generation with a Hugging Face model, anywhere transformers runs: prompts in, completions out as each is done.

In fp32 on a CPU greedy output equals `model.generate`, and sampled output of a prompt does not depend on its batch
(`sampling.py`). In bf16 or fp16, and on a GPU, sums differ in their last bits with the shape of the batch, and a near tie
between two tokens may fall the other way: a token here and there differs, as it does between two batches of `generate`.
Prompts are read in passes of a few seconds (`decoding/slices.py`), and what is done is reported. What prompts begin with
together is computed once, rows that are done give their place to waiting ones, and what does not fit the memory is tried
with half the rows.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lab import activity
from distill_lab.activity import Decoding
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.generation.decoding.choice import Choice
from distill_lab.generation.decoding.flat import FlatBatch, extra_bytes, why_not
from distill_lab.generation.decoding.padded import PaddedBatch
from distill_lab.generation.decoding.prefixes import share
from distill_lab.generation.decoding.row import Row
from distill_lab.generation.decoding.slices import Slices
from distill_lab.generation.engines._stop_strings import StopStrings
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.models.generation_config import settings_in, with_own
from distill_lab.models.loading import load_model
from distill_lab.types import Completion, Prompt

WINDOW = 8192
"""Completions whose prompts are looked through together for shared prefixes and sorted."""
MAX_ROWS_CPU, MAX_ROWS_GPU = 256, 1024
"""Most rows of a batch where the engine chooses: a CPU gains nothing beyond, a GPU is bound by launches up to it."""
MAX_PREFILL_CPU, MAX_PREFILL_GPU = 8_192, 131_072
"""Most tokens of the prompts that join a batch at once, where the engine chooses: they bound the pass's memory."""
FIRST_FLOP_CPU, FIRST_FLOP_GPU = 2e11, 1e14
"""Operations of the first pass over prompts, a few seconds' worth; from then on its measured pace decides (`Slices`)."""
REPORT_EVERY_S = 1.0
"""Between reports of how many tokens are generated so far."""
CACHE_SHARE = 0.5
"""Share of the free memory that a batch's keys and values and logits may be expected to take."""
EXPECTED_TOKENS = 1024
"""Most tokens a row is expected to get when the memory is divided."""
REFILL_SHARE = 1 / 8
"""Waiting rows join once this share of the batch's places is free."""
ROOM = 128
"""Tokens that room is first made for; it doubles when they are used up."""


def preference() -> int:
    """Suits every machine; engines made for the hardware at hand come first."""
    return 1


def load(model: ModelConfig, config: EngineConfig) -> TransformersEngine:
    """Load the model and its tokenizer. Raises ModelError."""
    return TransformersEngine(*load_model(model), batch_size=config.batch_size)


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `generate`."""

    sampling: SamplingConfig
    stop: StopStrings
    end_ids: frozenset[int]
    min_new_tokens: int
    done: _Done


@dataclass(slots=True)
class _Done:
    """How far a call of `generate` is; see `activity.Decoding`."""

    rows: int = 0
    rows_read: int = 0
    tokens: int = 0
    seconds_reading: float = 0.0
    seconds_decoding: float = 0.0
    reported_at: float = -math.inf


class TransformersEngine:
    """A model in evaluation mode, its tokenizer and the batch size (0: chosen by memory)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 0) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.io = TokenIO(tokenizer, model.generation_config)
        taken = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._text_config = model.config.get_text_config(decoder=True)
        reason = why_not(model)
        self._flat = not reason
        self.note = f"decoded with padding, which is slower: {reason}" if reason else ""
        """What a user should know of how this model is decoded; empty: nothing."""
        self._bytes_per_token = _bytes_per_token(self._text_config, model.dtype)
        self._fitting_rows: int | None = None
        """Set once a batch did not fit."""
        self.slices = self._first_slices()

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, min_new_tokens: int = 0
    ) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, long prompts first, each as soon as it is done.

        min_new_tokens: no completion ends before it has as many tokens (for timing). A prompt that the model cannot
        take gives a completion with finish_reason "error". Raises UserError where not even one row fits the memory, and
        where the model's output is not a number.
        """
        sampling = with_own(sampling, settings_in(self.model.generation_config)) if sampling.from_model else sampling
        stop = StopStrings(sampling.stop, self.tokenizer, self.io.text)
        job = _Job(sampling, stop, frozenset(self.io.end_ids) | stop.token_ids, min_new_tokens, _Done())
        made = (row for prompt in prompts for row in self._rows(prompt, sampling))
        while window := list(islice(made, WINDOW)):
            yield from (row for row in window if isinstance(row, Completion))
            rows = [row for row in window if isinstance(row, Row)]
            job.done.rows += len(rows)
            yield from self._complete(self._in_order(rows), job)
            # Who asks by the way (a judge, a measurement) counts nothing.
            assert all(row.done for row in rows), f"{sum(not row.done for row in rows)} prompts were left unanswered"
            self._report(job.done)

    def refusal(self, prompt: Prompt, sampling: SamplingConfig) -> str:
        """Why the model cannot take a prompt; empty where it can."""
        return self.io.request(prompt, sampling, context=self._text_config.max_position_embeddings)[2]

    def _in_order(self, rows: list[Row]) -> deque[Row]:
        """Rows that share a prefix one after another, otherwise long ones first."""
        if self._flat and len(rows) > 1:
            most_rows, _ = self._most()
            # Every step pays for a look at the prefix, and saves one look of each row.
            least = 2 * extra_bytes(self.model.device) * self._text_config.num_hidden_layers

            def pays(tokens: int, sharing: int) -> bool:
                return tokens * min(sharing, most_rows) * self._bytes_per_token >= least

            for row, prefix in zip(rows, share([row.prompt_ids for row in rows], pays=pays), strict=True):
                row.prefix = prefix
        rows.sort(key=lambda row: (row.prefix.order if row.prefix else len(rows), -len(row.prompt_ids)))
        return deque(rows)

    def _rows(self, prompt: Prompt, sampling: SamplingConfig) -> Iterator[Row | Completion]:
        """The rows of one prompt, or its failures where the template or the context refuses it."""
        context = self._text_config.max_position_embeddings
        ids, limit, reason = self.io.request(prompt, sampling, context=context)
        for sample in range(sampling.num_samples):
            if reason:
                yield Completion(prompt.id, sample, "", None, "error", 0, reason)
            else:
                yield Row(prompt, sample, ids, limit)

    def _complete(self, waiting: deque[Row], job: _Job) -> Iterator[Completion]:
        """Completions of `waiting`, or of half as many at a time where the memory is too small; no token is made twice."""
        while waiting:
            batch = self._batch(job)
            tried: list[Row] = []
            fits = True
            try:
                yield from self._decode(batch, waiting, tried, job)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if fits:
                continue  # a batch that nothing can join ends with rows still waiting
            # Out of the except block: the traceback no longer holds the batch's tensors.
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
        self, batch: FlatBatch | PaddedBatch, waiting: deque[Row], tried: list[Row], job: _Job
    ) -> Iterator[Completion]:
        """Decode until no row is in the batch or, where it can be joined, waiting. tried: set to the rows in memory."""
        most_rows, most_prefill = self._most()
        budget = CACHE_SHARE * _free_bytes(self.model.device)
        num_done = 0
        filling = True
        while True:
            free = most_rows - len(batch.rows)
            enough = 1 if filling else max(1, min(len(waiting), REFILL_SHARE * most_rows))
            if not batch.rows or (batch.can_join and free >= enough):
                held = sum(self._row_bytes(row, job) for row in batch.rows)
                joining = self._joining(waiting, free, most_prefill, budget - held, job, alone=not batch.rows)
            else:
                joining = []
            filling = bool(joining)  # a slice at a time, until the places or the memory are taken
            tried[:] = batch.rows + joining
            made = self._advance(batch, joining, job.done)
            cut_by_context = False
            for row, token in made:
                if row.done:
                    continue
                row.tokens.append(token)
                may_end = len(row.tokens) > job.min_new_tokens
                place = job.stop.find(row.tokens) if job.stop and may_end else None
                ended = place is not None or (may_end and token in job.end_ids)
                if ended or len(row.tokens) >= row.limit:
                    row.done = True
                    num_done += 1
                    cut_by_context |= not ended
                    if row.prefix:
                        row.prefix.row_done()
                    reason = "stop" if ended else "length"
                    yield self.io.completion(row.prompt, row.sample, row.prompt_ids, row.tokens, reason, cut_at=place)
            if num_done == len(batch.rows) and not (batch.can_join and waiting):
                return
            # A row at the end of its context leaves at once: models with learned positions fail beyond it.
            if num_done and (cut_by_context or num_done >= batch.leave_share * len(batch.rows)):
                batch.leave()
                num_done = 0

    def _advance(self, batch: FlatBatch | PaddedBatch, joining: list[Row], done: _Done) -> list[tuple[Row, int]]:
        """Let rows join, or take one step; reports how far it is."""
        start, prefixes = self.slices.clock(), self.slices.prefix_seconds
        if joining and not done.rows_read:
            self._report(done)
        made = batch.join(joining) if joining else batch.step()
        seconds = self.slices.clock() - start
        if joining:
            done.rows_read += len(joining)
            done.seconds_reading += seconds - (self.slices.prefix_seconds - prefixes)
        else:
            done.seconds_decoding += seconds
            done.tokens += sum(not row.done for row, _ in made)
        if joining or self.slices.clock() - done.reported_at >= REPORT_EVERY_S:
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
        operations = 2 * sum(weight.numel() for weight in self.model.parameters())  # of one token
        return Slices(
            first=(FIRST_FLOP_CPU if on_cpu else FIRST_FLOP_GPU) / operations,
            most=MAX_PREFILL_CPU if on_cpu else MAX_PREFILL_GPU,
        )

    def _joining(
        self, waiting: deque[Row], most: int, most_prefill: int, budget: float, job: _Job, *, alone: bool
    ) -> list[Row]:
        """Take the next rows from `waiting` that fit the memory left; alone: at least one."""
        joining: list[Row] = []
        size = self.slices.size if self._flat else math.inf
        while waiting and len(joining) < most:
            row = waiting[0]
            most_prefill -= row.num_own if self._flat else len((joining or [row])[0].prompt_ids)  # padding included
            budget -= self._row_bytes(row, job)
            size -= row.num_own
            if size < 0 and joining:
                break
            if not self.batch_size and min(most_prefill, budget) < 0 and (joining or not alone):
                break
            joining.append(waiting.popleft())
        return joining

    def _batch(self, job: _Job) -> FlatBatch | PaddedBatch:
        choice = Choice(
            job.sampling,
            vocabulary=self._text_config.vocab_size,
            end_ids=sorted(job.end_ids),
            min_new_tokens=job.min_new_tokens,
        )
        room = min(ROOM, job.sampling.max_new_tokens)
        if self._flat:
            return FlatBatch(self.model, choice, bytes_per_token=self._bytes_per_token, room=room, slices=self.slices)
        return PaddedBatch(
            self.model,
            choice,
            pad_id=int(self.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
            room=room,
            takes_positions=self._takes_positions,
            last_only=self._last_only,
        )

    def _most(self) -> tuple[int, int]:
        """Most rows in memory at once, and most tokens of those that join at once."""
        on_cpu = self.model.device.type == "cpu"
        rows = self.batch_size or (MAX_ROWS_CPU if on_cpu else MAX_ROWS_GPU)
        return min(rows, self._fitting_rows or rows), MAX_PREFILL_CPU if on_cpu else MAX_PREFILL_GPU

    def _row_bytes(self, row: Row, job: _Job) -> int:
        """What a row is expected to take in the end, its share of the logits included."""
        own = len(row.prompt_ids) - (row.prefix.end if row.prefix else 0)
        # Logits in fp32, and while sampling their probabilities and cumulated probabilities (fp64).
        logits_bytes = self._text_config.vocab_size * (4 if job.sampling.temperature == 0 else 24)
        return self._bytes_per_token * (own + min(row.limit, EXPECTED_TOKENS)) + logits_bytes


def _bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Of its keys and values."""
    fields = config.to_dict()  # models without grouped heads or a head size of their own lack these fields
    heads = fields.get("num_key_value_heads") or config.num_attention_heads
    size = fields.get("head_dim") or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return psutil.virtual_memory().available
