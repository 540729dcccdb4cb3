"""The validation loss: held-out rows -> nats per loss position, each counted once on however many processes.

Shapes: N loss positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.train.packing import Row, collate, split_batch
from distill_lab.train.plan import make_plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Validation:
    """The held-out rows in batches, taken through the loss that the student is trained with."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        self.batches: list[list[list[Row]]] = []
        if rows:
            once = config.model_copy(update={"num_epochs": 1.0, "max_steps": -1})
            plan = make_plan([len(row) for row in rows], once)
            self.batches = [[[rows[index] for index in bin_] for bin_ in batch] for batch in plan.batches]
        self._parts = 1
        """Into how many parts each batch is split; doubled when the memory runs out."""

    @torch.no_grad()
    def loss(
        self, model: nn.Module, accelerator: Accelerator, *, flat: bool, error: Callable[[str], UserError]
    ) -> float:
        """Nats per loss position over all rows; every process must call it at the same time.

        flat: as in `collate`. error: makes the error for memory that runs out even so, from where it did.
        """
        rank, world = accelerator.process_index, accelerator.num_processes
        was_training = model.training
        model.eval()
        totals = torch.zeros(2, device=accelerator.device)
        for first in range(0, len(self.batches), world):
            index = first + rank
            activity.report("validation loss, batch", first + 1, len(self.batches))
            batch = self.batches[min(index, len(self.batches) - 1)]
            try:
                sums = self._sums(model, batch, accelerator.device, flat=flat, halve=world == 1)
            except (RuntimeError, MemoryError) as failure:
                if not is_out_of_memory(failure):
                    raise
                one_row = self._parts >= sum(map(len, batch))
                raise error(f"in the validation{' even with one row at a time' if one_row else ''}") from None
            # Sharded models need every process to run; a batch beyond the last one only keeps them in step.
            if index < len(self.batches):
                totals += sums
        model.train(was_training)
        summed = accelerator.reduce(totals, "sum")
        assert isinstance(summed, torch.Tensor)
        nats, positions = summed.tolist()
        return nats / positions

    def _sums(
        self, model: nn.Module, batch: list[list[Row]], device: torch.device, *, flat: bool, halve: bool
    ) -> torch.Tensor:
        """Nats and loss positions of one batch, [2]; with `halve` split smaller if the memory does not take it whole."""
        while True:
            sums = torch.zeros(2, device=device)
            try:
                for part in split_batch(batch, self._parts):
                    inputs = collate(part, flat=flat).to(device)
                    loss = model(inputs).total.float()
                    sums += torch.stack([loss, loss.new_tensor(len(inputs.labels_N))])
                return sums
            except (RuntimeError, MemoryError) as failure:
                if not is_out_of_memory(failure) or not halve or self._parts >= sum(map(len, batch)):
                    raise
            sums = inputs = loss = None
            free_memory()
            self._parts *= 2
