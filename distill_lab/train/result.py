"""What a training did: rows, steps, tokens, losses, seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training did."""

    num_rows: int
    """Rows used, those held out for validation included."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens the student read while training, prompts included, padding not."""
    train_loss: float
    """Mean over the steps of the loss, in nats per trained token."""
    validation_loss_before: float | None
    """In nats per trained token; None if no rows were held out."""
    validation_loss_after: float | None
    seconds: float
    """Of this call; an interrupted call before it is not counted."""
    num_trained: int
    """Weights that were trained."""
    learning_rate: float
    """At its peak."""
    resumed_from: int = 0
    """The step this call went on from."""
    skipped_checkpoints: dict[str, str] | None = None
    """Damaged checkpoints that were passed over: name -> what was wrong."""
    dtype: str = "fp32"
    """What the passes computed in; weights, loss and optimizer states are in fp32 in any case."""
