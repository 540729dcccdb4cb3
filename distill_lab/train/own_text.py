"""What a student writes by itself, and what the teacher thinks of it: held-out prompts -> nats per token.

    found = measure_own_text(model, engine, prompts, sampling, scorer)
    found.teacher_nats, found.divergence

Shapes: N loss positions, C of a chunk, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from distill_lab import activity
from distill_lab.config import SamplingConfig, TrainConfig
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.train.objectives import LossBatch, Scored, Signal
from distill_lab.train.packing import Row
from distill_lab.train.plan import make_plan
from distill_lab.train.rollout_stats import OwnText
from distill_lab.train.rollouts import AskedPrompt, RowMaker, sample
from distill_lab.train.teachers import ReadingTeacher, Teacher

MAX_PROMPTS = 64
"""Prompts that own text is measured on."""
CHUNK = 256
"""Positions whose teacher logits exist at once."""


@dataclass(frozen=True)
class Scorer:
    """How texts are scored: as the trainer would train on them."""

    teacher: Teacher
    maker: RowMaker
    collate: Callable[[list[list[Row]]], LossBatch]
    config: TrainConfig
    pack_rows: bool


@torch.no_grad()
def measure_own_text(
    model: nn.Module,
    engine: TransformersEngine,
    prompts: Sequence[AskedPrompt],
    sampling: SamplingConfig,
    scorer: Scorer,
) -> OwnText | None:
    """Let the student write one text for each prompt and score it; None if no text can be scored.

    model: the student with its loss installed. engine: of the same student.
    """
    requests = [(place, replace(each.prompt, id=f"own/{each.prompt.id}")) for place, each in enumerate(prompts)]
    rollouts, _ = sample(engine, requests, sampling.model_copy(update={"num_samples": 1}))
    made = [(rollout, scorer.maker.row(prompts[rollout.prompt], rollout)) for rollout in rollouts]
    rows = [pair for _, pair in made if not isinstance(pair, str)]
    if not rows:
        return None
    if isinstance(scorer.teacher, ReadingTeacher):
        scorer.teacher.read(rows, "own")
    once = {"num_epochs": 1.0, "max_steps": -1, "gradient_accumulation_steps": 1}
    config = scorer.config.model_copy(update=once)
    plan = make_plan([len(row) for row, _ in rows], config, pack_rows=scorer.pack_rows)
    was_training = model.training
    model.eval()
    totals = [0.0, 0.0, 0.0]
    tokens = 0
    for number, indexed in enumerate(plan.batches):
        activity.report("scoring own text, batch", number + 1, len(plan.batches))
        batch = scorer.collate([[rows[index][0] for index in bin_] for bin_ in indexed])
        signal = scorer.teacher.signal(batch)
        metrics = model(replace(batch, targets=signal)).metrics
        sums = (teacher_nats(signal, batch.labels_N), metrics["ce"], metrics["kd"])
        totals = [total + float(each) for total, each in zip(totals, sums, strict=True)]
        tokens += len(batch.labels_N)
    model.train(was_training)
    kept = [rollout for rollout, pair in made if not isinstance(pair, str)]
    truncated = sum(rollout.finish_reason == "length" for rollout in kept)
    return OwnText(len(kept), tokens, truncated, *(round(total / tokens, 6) for total in totals))


def teacher_nats(signal: Signal, labels_N: torch.Tensor) -> torch.Tensor:
    """Sum over N of -log p of the labels, the teacher's, at temperature 1."""
    total = torch.zeros((), dtype=torch.float32, device=labels_N.device)
    for start in range(0, len(labels_N), CHUNK):
        part = slice(start, start + CHUNK)
        said = signal.at(part)
        if isinstance(said, Scored):
            total -= said.log_p_C.sum()
        else:
            assert isinstance(said, torch.Tensor), "a teacher beside the student says whole distributions"
            total -= torch.log_softmax(said, -1).gather(1, labels_N[part, None]).sum()
    return total
