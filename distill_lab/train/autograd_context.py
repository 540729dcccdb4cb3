"""What torch hands to the forward and backward passes of an autograd function, which torch's own types leave open."""

from __future__ import annotations

from typing import Protocol

import torch


class Context(Protocol):
    """The context of one call; a function that keeps more than tensors adds its attributes."""

    @property
    def saved_tensors(self) -> tuple[torch.Tensor, ...]:
        """What `save_for_backward` was given; its Nones, too."""
        ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Of each argument of the forward pass: whether its gradient is needed."""
        ...

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        """Keep tensors for the backward pass."""
