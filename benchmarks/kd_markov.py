"""What logits and own texts add where the true distribution is known: a random grammar of 48 ids teaches small students.

The next id depends on the last two: on the class of the one before last (8 classes) and on the last. Each of the 384
contexts has 6 likely successors, drawn at random, and little for all others. The grammar itself is the teacher: what it says
is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import kd_students as students
from distill_lab.train.objectives import LossBatch
from distill_lab.train.packing import Row, collate

V, CLASSES, SUCCESSORS, FLOOR = 48, 8, 6, 0.02


@dataclass
class _Exact:
    """The grammar's logits at the loss positions of a batch, [N, V]."""

    log_p_NV: torch.Tensor
    num_ids: int | None = None

    def at(self, part: slice) -> torch.Tensor:
        """A copy, which the objective may overwrite."""
        return self.log_p_NV[part].clone()


class Grammar:
    """A Markov chain of second order; an `Author` and a `SignalSource`."""

    num_ids, start = V, 0

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        p_CVV = np.full((CLASSES, V, V), FLOOR / V)
        for context in np.ndindex(CLASSES, V):
            likely = draw.choice(V, SUCCESSORS, replace=False)
            p_CVV[context][likely] += (1 - FLOOR) * draw.dirichlet(np.ones(SUCCESSORS))
        self._p_CVV = p_CVV
        self._log_p_CVV = torch.from_numpy(np.log(p_CVV)).float()
        self.source = self

    def write(self, number: int, seed: int) -> list[Row]:
        """Texts that begin with the id 0."""
        draw = np.random.default_rng(seed)
        ids_BW = np.zeros((number, students.LENGTH + 1), np.int64)
        before_B = np.zeros(number, np.int64)
        for place in range(students.LENGTH):
            last_B = ids_BW[:, place]
            bounds_BV = self._p_CVV[before_B % CLASSES, last_B].cumsum(1)
            ids_BW[:, place + 1] = (draw.random(number)[:, None] > bounds_BV).sum(1).clip(max=V - 1)
            before_B = last_B
        return students.rows_of(ids_BW)

    def log_p(self, ids_BW: torch.Tensor) -> torch.Tensor:
        """[B, W, V]"""
        before_BW = torch.nn.functional.pad(ids_BW, (1, 0))[:, :-1]
        return self._log_p_CVV[before_BW % CLASSES, ids_BW]

    def signal(self, batch: LossBatch) -> _Exact:
        """See `SignalSource`."""
        return _Exact(self.log_p(batch.input_ids_BW).flatten(0, 1)[batch.loss_positions_N])


def markov_part(*, seeds: int, steps: int) -> dict[str, Any]:
    """KL to the grammar at equal steps, and its nats at what students write at equal time."""
    kl: dict[str, list[float]] = {"sft": [], "logits": []}
    nats: dict[str, list[float]] = {"sft": [], "on_policy": []}
    for seed in range(seeds):
        grammar = Grammar(seed)
        rows = grammar.write(min(students.MAX_ROWS, steps * students.BATCH), seed)
        test = collate([[row] for row in grammar.write(students.HELD_OUT, 1000 + seed)])
        for name, objective, source in (("sft", "cross_entropy", None), ("logits", "forward_kl", grammar)):
            student = students.a_student(seed, V)
            students.train(student, students.given(rows), steps=steps, objective=objective, teacher=source)
            found, alike = students.distance(grammar, student.eval(), test)
            kl[name].append(found)
            print(f"grammar {seed}, {name:9} KL {found:.4f}, same best id {alike:.3f}", flush=True)
        own = students.on_policy_after(grammar, seed, rows, steps=steps)
        for name, values in nats.items():
            values.append(own[name])
        print(f"grammar {seed}, own text: {_shown(own)}", flush=True)
    return {
        **{f"markov_kl_{name}": _rounded(values) for name, values in kl.items()},
        **{f"markov_nats_{name}": _rounded(values) for name, values in nats.items()},
        **{f"markov_logits_{name}": value for name, value in students.paired(kl["logits"], kl["sft"]).items()},
        **{f"markov_on_policy_{key}": value for key, value in students.paired(nats["on_policy"], nats["sft"]).items()},
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _shown(own: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in own.items())
