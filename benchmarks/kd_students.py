"""Small students for the part `quality` of `benchmarks/kd.py`: from a teacher's texts, its distributions, or their own.

A teacher (`Author`) writes texts, knows the probability of every next id, and is a `SignalSource` for the lab's objectives.
Students of one size begin with the same weights for a seed. Shapes: B rows, W tokens, V ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any, Protocol

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill_lab.train import loss_module
from distill_lab.train.loss_module import SignalSource
from distill_lab.train.objectives import LossBatch, load_objective
from distill_lab.train.packing import Row, collate

LENGTH, BATCH = 128, 16
"""Tokens of a row; rows of a step."""
HELD_OUT = 64
"""Texts that nobody trained on, and texts of a student that the teacher reads."""
RATE, OWN_RATE = 4e-3, 1e-3
"""Peak learning rates: on given texts, and on the student's own."""
SHARE = 0.6
"""Of the time, spent on the teacher's texts before the student's own."""
STEPS_PER_ROUND = 32
"""Steps on the texts that the student wrote at once."""
MAX_ROWS = 4800
"""Texts that the teacher writes; further steps see them again."""


class Author(Protocol):
    """A teacher of this benchmark."""

    num_ids: int
    start: int
    """The id that texts begin with."""

    @property
    def source(self) -> SignalSource:
        """What it says at every position."""
        ...

    def write(self, number: int, seed: int) -> list[Row]:
        """Texts sampled from the teacher."""
        ...

    def log_p(self, ids_BW: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of every next id, [B, W, V]."""
        ...


def rows_of(ids_BW: np.ndarray) -> list[Row]:
    """Rows of which all but the first token is trained."""
    return [Row(row[:-1], row[1:], np.ones(len(row) - 1, bool)) for row in ids_BW.astype(np.int32)]


def a_student(seed: int, num_ids: int) -> LlamaForCausalLM:
    """Two layers of width 32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_ids, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=None,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def sample(model: Any, number: int, start: int) -> list[Row]:
    """Texts of a model at temperature 1."""
    was_training = model.training
    model.eval()
    prompts = torch.full((number, 1), start)
    ids = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, min_new_tokens=LENGTH,
        max_new_tokens=LENGTH, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    model.train(was_training)
    return rows_of(ids.numpy())


def train(
    student: Any,
    rows: Callable[[int], Sequence[Row]],
    *,
    steps: int,
    objective: str,
    teacher: SignalSource | None = None,
    rate: float = RATE,
    until_s: float | None = None,
) -> float:
    """Train in place on `rows(step)`; returns CPU seconds. until_s: as many of the steps as take this long."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.0)
    start, done = time.process_time(), 0.0
    for step in range(steps):
        done = step / steps if until_s is None else max(done, (time.process_time() - start) / until_s)
        if done >= 1:
            break
        batch = collate([[row] for row in rows(step)])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * max(0.05, 1 - done)
        loss_module.install(student, load_objective(objective), teacher=teacher)
        (student(batch).total / len(batch.labels_N)).backward()
        loss_module.uninstall(student)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def given(rows: Sequence[Row]) -> Callable[[int], Sequence[Row]]:
    """The rows of each step, in their order and again from the first."""
    return lambda step: [rows[index % len(rows)] for index in range(step * BATCH, (step + 1) * BATCH)]


@torch.no_grad()
def distance(author: Author, student: Any, batch: LossBatch) -> tuple[float, float]:
    """Mean KL(p, q) in nats, and the share of tokens at which both have the same most likely id."""
    log_p, log_q = author.log_p(batch.input_ids_BW), student(input_ids=batch.input_ids_BW).logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    return kl, (log_p.argmax(-1) == log_q.argmax(-1)).float().mean().item()


@torch.no_grad()
def nats_of_own_text(author: Author, student: Any, seed: int) -> float:
    """The teacher's mean surprise at what a student writes, in nats per token."""
    torch.manual_seed(seed)
    batch = collate([[row] for row in sample(student, HELD_OUT, author.start)])
    log_p = author.log_p(batch.input_ids_BW).flatten(0, 1)[batch.loss_positions_N]
    return -log_p.gather(1, batch.labels_N[:, None]).mean().item()


def on_policy_after(author: Author, seed: int, rows: Sequence[Row], *, steps: int) -> dict[str, float]:
    """The teacher's nats at students' own texts: SFT alone, and SFT followed by the student's own texts in the same time."""
    alone = a_student(seed, author.num_ids)
    seconds = train(alone, given(rows), steps=steps, objective="cross_entropy")
    both = a_student(seed, author.num_ids)
    spent = train(both, given(rows), steps=round(SHARE * steps), objective="cross_entropy")
    own: list[Row] = []

    def written(step: int) -> Sequence[Row]:
        place = step % STEPS_PER_ROUND * BATCH
        if not place:
            own[:] = sample(both, STEPS_PER_ROUND * BATCH, author.start)
        return own[place : place + BATCH]

    spent += train(
        both, written, steps=steps, objective="reverse_kl", teacher=author.source, rate=OWN_RATE,
        until_s=max(0.0, seconds - spent),
    )  # fmt: skip
    nats = {name: nats_of_own_text(author, model, 2000 + seed) for name, model in (("sft", alone), ("on_policy", both))}
    return {**nats, "sft_s": seconds, "on_policy_s": spent}


def paired(better: Sequence[float], worse: Sequence[float]) -> dict[str, float]:
    """The mean difference over the seeds, and p of the two-sided t test over the pairs."""
    from scipy.stats import ttest_rel

    gain = [right - left for left, right in zip(better, worse, strict=True)]
    several = len(gain) > 1 and stdev(gain) > 0
    return {"gain": mean(gain), "p": float(ttest_rel(better, worse).pvalue) if several else float("nan")}
