"""Training steps that survive memory that runs out: micro-batches are split smaller, and the step is computed again.

A micro-batch -> its gradients, in one part or several. The loss is a sum, so the parts' gradients add up to the whole one's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.train.metric_sums import MetricSums
from distill_lab.train.objectives import LossBatch
from distill_lab.train.packing import Row, split_batch
from distill_lab.train.rounds import Rounds
from distill_lab.train.training_log import OnLog

SMALLER_PASSES = (
    "lower --train.tokens-per-batch or --train.max-length, or use --train.gradient-checkpointing, --train.lora.r 16, "
    "--student.quantization 4bit"
)


class ReplayingTrainer(Trainer):
    """`transformers.Trainer` whose micro-batches become smaller when the memory runs out."""

    config: TrainConfig
    rounds: Rounds
    on_log: OnLog
    metrics: MetricSums
    parts: int
    """Into how many parts each micro-batch is split; doubled when the memory runs out."""
    running: list[int]
    """Numbers of the micro-batches that the running step has come to."""
    in_optimizer: bool
    """Whether the optimizer is taking its step."""

    def collate(self, bins: list[list[Row]]) -> LossBatch:
        """The batch of these bins, on this process's device."""
        raise NotImplementedError

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, split smaller if the memory does not take it whole.

        A failed backward pass leaves gradients half added: the step's earlier micro-batches are computed again with it.
        """
        number = inputs["number"]
        self.running.append(number)
        batches = self.config.gradient_accumulation_steps
        activity.report(
            "training, micro-batch" if batches > 1 else "training, step",
            self.state.global_step * batches + len(self.running),
            self.rounds.num_steps * batches,
        )
        again: list[int] = []
        while True:
            try:
                for earlier in again[:-1]:
                    self._in_parts(model, earlier, num_items_in_batch)
                self.metrics.begin()
                if self.parts == 1 and not again:
                    loss = super().training_step(model, inputs, num_items_in_batch)
                else:
                    loss = self._in_parts(model, number, num_items_in_batch)
                self.metrics.keep()
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            inputs = {}
            self._halve()
            again = self.running

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: object = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As the base class; memory that runs out between the passes is a UserError that says what to do."""
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if not self.in_optimizer:
            raise self.out_of_memory("between the passes")
        number = sum(weight.numel() for weight in self._trained())
        raise self.out_of_memory(
            "in the optimizer's step",
            f"AdamW keeps 8 bytes for each of the {number:,} trained weights ({8 * number / 1e9:.2f} GB); use "
            "--train.optim adamw_8bit (a quarter of that), --train.lora.r 16 (adapters alone are trained) or "
            "--train.gradient-checkpointing (leaves more memory beside the passes)",
        )

    def out_of_memory(self, where: str, remedy: str = SMALLER_PASSES) -> UserError:
        """The error for memory that ran out in this step, if smaller micro-batches are no remedy."""
        return UserError(
            f"step {self.state.global_step + 1}: out of memory {where}; {remedy}. "
            f"Checkpoints of earlier steps are in {self.args.output_dir}"
        )

    def _in_parts(self, model: nn.Module, number: int, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for part in split_batch(self.rounds.batch(number), self.parts):
            total += super().training_step(model, {"batch": self.collate(part)}, num_items_in_batch)
        return total

    def _halve(self) -> None:
        """Split micro-batches into twice as many parts. Raises UserError if that does not help."""
        for weight in self._trained():
            weight.grad = None
        free_memory()
        rows = max(sum(len(bin_) for bin_ in self.rounds.batch(number)) for number in self.running)
        if self.parts >= rows:
            raise self.out_of_memory("even with one row at a time")
        if self.accelerator.num_processes > 1:
            raise self.out_of_memory(f"with {self.config.tokens_per_batch} tokens")
        self.parts *= 2
        tokens = self.config.tokens_per_batch // self.parts
        self.on_log({"note": f"out of memory: micro-batches of {tokens} tokens, {self.parts} times as many to a step"})

    def _trained(self) -> list[nn.Parameter]:
        assert self.model is not None
        return [weight for weight in self.model.parameters() if weight.requires_grad]
