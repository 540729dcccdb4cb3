"""An objective's metrics on their way to the log: sums of micro-batches -> means per loss position over the logged steps.

sums.begin(); sums.add(output.metrics, num_positions); sums.keep()      a micro-batch, in one part or several
sums.take(num_steps, reduce)                                            {"entropy": 1.3}, and start again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class MetricSums:
    """Sums since the last log line. Nothing waits for the GPU before `take`."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}
        self._pending: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        """Forget what was added since `keep`: a micro-batch begins, or begins again after it ran out of memory."""
        self._pending = {}

    def add(self, metrics: Mapping[str, torch.Tensor], num_positions: torch.Tensor | int) -> None:
        """Add the sums of one forward pass. num_positions: loss positions of its whole step, of all processes."""
        _add_to(self._pending, {name: value.detach() / num_positions for name, value in metrics.items()})

    def keep(self) -> None:
        """The micro-batch is done."""
        _add_to(self._kept, self._pending)
        self._pending = {}

    def take(self, num_steps: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over the last `num_steps` steps of each metric per loss position. reduce: sum over all processes."""
        names = sorted(self._kept)
        if not names:
            return {}
        summed = reduce(torch.stack([self._kept[name].float() for name in names]))
        self._kept = {}
        return dict(zip(names, (summed / num_steps).tolist(), strict=True))


def _add_to(sums: dict[str, torch.Tensor], parts: Mapping[str, torch.Tensor]) -> None:
    for name, part in parts.items():
        sums[name] = sums[name] + part if name in sums else part
