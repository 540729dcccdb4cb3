"""Objectives by name: a file in this folder that has `chunk_loss` is an objective of the file's name.

    objective = load_objective("cross_entropy")
    output = objective(hidden_NH, head, batch)      # LossOutput(total, metrics)

`chunk_loss(logits_CV, targets) -> ChunkLoss(total, grad_CV, metrics)` is the math of one chunk of loss positions: a *sum*
in nats over the positions it is given, and its gradient for the logits. `_chunked_head` does the rest. Only the trainer
divides, by the loss positions of the whole optimizer step, so that the loss does not depend on how the step was split into
micro-batches. Keyword-only arguments of `chunk_loss` are the objective's settings, numbers with a default, and with a range
if they are `Annotated[float, Field(ge=0)]`. An objective that compares with a teacher has `SIGNALS`, the forms of the
teacher's signal that it reads (`Signal.at`). Files that begin with an underscore are shared parts.

Nothing here imports from train/ but `gradients`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from pydantic import ValidationError, create_model

from distill_lab.config import Config
from distill_lab.errors import UserError
from distill_lab.train.objectives._chunked_head import batch_loss
from distill_lab.train.objectives._contract import (
    ChunkFunction,
    ChunkLoss,
    Chunks,
    ChunkTargets,
    Draws,
    GroupedSignal,
    Head,
    LossBatch,
    LossOutput,
    Objective,
    Scored,
    SeveralTopK,
    Signal,
    TopK,
    refuse_unread,
)

__all__ = [
    "ChunkFunction",
    "ChunkLoss",
    "ChunkTargets",
    "Chunks",
    "Draws",
    "GroupedSignal",
    "Head",
    "LossBatch",
    "LossOutput",
    "Objective",
    "Scored",
    "SeveralTopK",
    "Signal",
    "TopK",
    "load_objective",
    "objective_names",
    "over_chunks",
    "refuse_unread",
    "signals_of",
]


def objective_names() -> list[str]:
    """The objectives there are, sorted: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_objective(name: str, settings: Sequence[str] = ()) -> Objective:
    """The objective of this name. settings: its own, as `name=number` (`TrainConfig.objective_settings`).

    Raises UserError for an unknown name or setting, with those there are, and for a setting outside of its range.
    """
    if name not in objective_names():
        raise UserError(f"no objective {name!r}; there are {', '.join(objective_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return over_chunks(functools.partial(module.chunk_loss, **_checked(name, module, settings)))


def signals_of(name: str) -> tuple[str, ...]:
    """The forms of a teacher's signal that the objective reads: logits, top_k, draws, scored, chunks; empty if it needs
    no teacher.

    Raises UserError for an unknown name.
    """
    load_objective(name)
    return getattr(importlib.import_module(f"{__name__}.{name}"), "SIGNALS", ())


def over_chunks(chunk_loss: ChunkFunction) -> Objective:
    """The objective whose math for one chunk is `chunk_loss`."""
    return functools.partial(batch_loss, chunk_loss=chunk_loss)


def _checked(name: str, module: ModuleType, settings: Sequence[str]) -> dict[str, float]:
    """All settings of the objective, the given ones over the defaults."""
    hints = typing.get_type_hints(module.chunk_loss, include_extras=True)
    known: dict[str, Any] = {
        each.name: (hints[each.name], each.default)
        for each in inspect.signature(module.chunk_loss).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    given = dict(each.split("=", 1) for each in settings)
    if unknown := sorted(given.keys() - known.keys()):
        there_are = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"objective {name}: no setting {', '.join(unknown)}; {there_are}")
    try:
        return create_model("Settings", __base__=Config, **known)(**given).model_dump()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError(f"objective {name}: {'; '.join(problems)}") from None
