"""White-box distillation: what the head, a training step and the teacher cache cost, and what a cache loses.

    OMP_NUM_THREADS=1 nice -n 5 python -m benchmarks.kd --part head          the head over bare matrix products, and TRL's
    OMP_NUM_THREADS=1 nice -n 5 python -m benchmarks.kd --part step          a step with the cache over one with the teacher
    OMP_NUM_THREADS=1 nice -n 5 python -m benchmarks.kd --part on_policy     a step on the student's own text, and TRL's
    OMP_NUM_THREADS=1 nice -n 5 python -m benchmarks.kd --part cache --data ../shared/data
    OMP_NUM_THREADS=1 nice -n 5 python -m benchmarks.kd --part quality --data ../shared/data

Seconds are CPU seconds of this process; every ratio is of two figures of one run, in turns, because a machine may be busy.
Without TRL (`pip install trl==1.16.0`) its columns are left out. The last line is one JSON object.

Shapes: N positions, V ids, H the student's hidden size, T the teacher's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from distill_lab.train.objectives import Draws, Head, load_objective
from distill_lab.train.objectives._chunked_head import head_loss
from distill_lab.train.teachers import HeadSignal

V, H, T = 151_936, 896, 1536
"""Qwen2.5-0.5B learns from Qwen2.5-1.5B."""


def cpu_seconds(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, taken in turns after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if turn:
                taken[name].append(time.process_time() - start)
    return {name: median(seconds) for name, seconds in taken.items()}


def head_part(num_positions: int, rounds: int) -> dict[str, float]:
    """Head forward and backward of every objective over the products it cannot do without, and over TRL's."""
    torch.manual_seed(0)
    hidden_NH, hidden_NT = torch.randn(num_positions, H), torch.randn(num_positions, T)
    weight_VH, linear = nn.Parameter(torch.randn(V, H) * 0.05), nn.Linear(T, V, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(V, T) * 0.05)
    labels_N = torch.randint(V, (num_positions,))
    logits_NV, grad_NV = torch.empty(num_positions, V), torch.randn(num_positions, V) * 1e-3
    grad_VH, grad_NH = torch.zeros(V, H), torch.empty(num_positions, H)
    weight_VH.grad = grad_VH

    def products(teacher: bool) -> None:
        with torch.no_grad():
            for _ in range(1 + teacher):
                torch.mm(hidden_NH if not _ else hidden_NT, (weight_VH if not _ else linear.weight).T, out=logits_NV)
            torch.mm(grad_NV, weight_VH, out=grad_NH)
            grad_VH.addmm_(grad_NV.T, hidden_NH)

    def ours(name: str, signal: Any) -> None:
        objective: Any = load_objective(name)
        hidden = hidden_NH.clone().requires_grad_()
        head_loss(
            hidden, weight_VH, labels_N, objective.keywords["chunk_loss"], signal=signal, head_grad_scale=1.0
        ).total.backward()

    def online(name: str) -> None:
        ours(name, HeadSignal(hidden_NT, Head(linear), V, torch.device("cpu")))

    draws = _Draws(num_positions, 12)
    works: dict[str, Callable[[], Any]] = {
        "products": lambda: products(True),
        "products without a teacher": lambda: products(False),
        "forward_kl": lambda: online("forward_kl"),
        "reverse_kl": lambda: online("reverse_kl"),
        "jsd": lambda: online("jsd"),
        "cached": lambda: ours("forward_kl", draws),
    }
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # pyright: ignore[reportMissingImports]

        def theirs(beta: float) -> None:
            hidden, weight = hidden_NH.clone().requires_grad_(), weight_VH.detach().requires_grad_()
            found, _ = ChunkedDivergenceFunction.apply(
                hidden, weight, None, hidden_NT, linear.weight.detach(), None, beta
            )
            found.sum().backward()

        works |= {f"trl {name}": lambda beta=beta: theirs(beta) for name, beta in TRL.items()}
        agree(hidden_NH[:8], weight_VH, hidden_NT[:8], linear, ChunkedDivergenceFunction)
    except ImportError as error:
        print(f"without TRL: {error}")
    seconds = cpu_seconds(works, rounds)
    for name, value in seconds.items():
        print(f"{name:30} {value:7.2f} s")
    whole, short = seconds["products"], seconds["products without a teacher"]
    found = {f"head_{name}_vs_gemm": seconds[name] / whole for name in ("forward_kl", "reverse_kl", "jsd")}
    found["head_cached_vs_gemm"] = seconds["cached"] / short
    if "trl jsd" in seconds:
        found |= {f"head_{name}_vs_trl": seconds[f"trl {name}"] / seconds[name] for name in TRL}
    return found


TRL = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
"""TRL's beta for each."""


def agree(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, hidden_NT: torch.Tensor, linear: nn.Linear, trl: Any
) -> None:
    """Print the largest relative difference from TRL's values and gradients."""
    for name, beta in TRL.items():
        objective: Any = load_objective(name)
        results = []
        for mine in (True, False):
            hidden = hidden_NH.clone().requires_grad_()
            if mine:
                signal = HeadSignal(hidden_NT, Head(linear), V, torch.device("cpu"))
                labels_N = torch.zeros(len(hidden), dtype=torch.int64)
                value = head_loss(
                    hidden, weight_VH.detach(), labels_N, objective.keywords["chunk_loss"], signal=signal
                ).total
            else:
                value = trl.apply(hidden, weight_VH.detach(), None, hidden_NT, linear.weight.detach(), None, beta)[
                    0
                ].sum()
            value.backward()
            assert hidden.grad is not None
            results.append((value.item(), hidden.grad))
        (left, left_grad), (right, right_grad) = results
        apart = ((left_grad - right_grad).norm() / right_grad.norm()).item()
        print(f"{name}: {left:.5f}, TRL {right:.5f}; gradients differ by {apart:.1e}")
        assert abs(left - right) < 1e-4 * abs(right)
        assert apart < 1e-4


class _Draws:
    """Draws of `per` ids at each position."""

    num_ids = V

    def __init__(self, positions: int, per: int) -> None:
        self.per = per
        self.ids_M = torch.randint(V, (positions * per,))
        self.total_N, self.entropy_N = torch.ones(positions), torch.ones(positions)

    def at(self, part: slice) -> Draws:
        """Those of some positions."""
        total_C = self.total_N[part]
        ids_M = self.ids_M[part.start * self.per : part.start * self.per + len(total_C) * self.per]
        positions_M = torch.arange(len(total_C)).repeat_interleave(self.per)
        weights_M = torch.full((len(ids_M),), 1 / self.per)
        return Draws(positions_M, ids_M, weights_M, total_C, self.entropy_N[part], is_partial=False)


def step_part(rounds: int, shrink: int) -> dict[str, float]:
    """One step's forward and backward pass: with the teacher over with its cache, all weights and adapters.

    The models have Qwen2.5's widths, and a `shrink`th of their layers and of the vocabulary: the ratio stays the same.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from distill_lab.train import loss_module
    from distill_lab.train.objectives import LossBatch
    from distill_lab.train.packing import Row, collate
    from distill_lab.train.teachers import LiveTeacher

    vocabulary = V // shrink

    def model(hidden: int, inner: int, layers: int, heads: int) -> Any:
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers // shrink,
                num_attention_heads=heads, num_key_value_heads=2, tie_word_embeddings=True,
            )
        )  # fmt: skip

    random = np.random.default_rng(0)
    length, per_bin = 64, 1
    rows = []
    for _ in range(4):
        ids = random.integers(0, vocabulary, length + 1).astype(np.int32)
        rows.append(Row(ids[:-1], ids[1:], np.arange(length) >= 0.45 * length))
    batch = collate([rows[start : start + per_bin] for start in range(0, len(rows), per_bin)])
    live = LiveTeacher(model(T, 8960, 28, 12), vocabulary)
    sparse = _Draws(len(batch.labels_N), 12)
    sparse.ids_M %= vocabulary
    sparse.num_ids = vocabulary

    class Cached:
        def signal(self, batch: LossBatch) -> Any:
            return sparse

    student = model(H, 4864, 24, 14)
    found = {}
    for name in ("full", "lora"):
        if name == "lora":
            student = get_peft_model(
                student, LoraConfig(r=16, target_modules="all-linear")
            )  # fmt: skip
        works: dict[str, Callable[[], Any]] = {}
        for kind, teacher in (("online", live), ("cached", Cached())):

            def step(teacher: Any = teacher, trained: Any = student) -> None:
                loss_module.install(trained, load_objective("forward_kl"), teacher=teacher)
                trained(batch, head_grad_scale=1.0 / len(batch.labels_N)).total.backward()
                loss_module.uninstall(trained)

            works[kind] = step
        seconds = cpu_seconds(works, rounds)
        print(f"step, {name}: online {seconds['online']:.2f} s, cached {seconds['cached']:.2f} s")
        found[f"cached_vs_online_{name}"] = seconds["online"] / seconds["cached"]
    return found


PARTS = ("head", "step", "on_policy", "cache", "quality")


def main() -> None:
    """Run the parts and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=("head", "step"))
    parser.add_argument("--positions", type=int, default=220, help="positions of the head")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=4, help="divides layers and vocabulary of the step's models")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with tokenizers, texts, weights"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="steps of each training of the part quality")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if "head" in arguments.part:
        found |= head_part(arguments.positions, arguments.rounds)
    if "step" in arguments.part:
        found |= step_part(arguments.rounds, arguments.shrink)
    if "on_policy" in arguments.part:
        from benchmarks.kd_on_policy import CONTENDERS, Task, on_policy_part

        found |= on_policy_part(Task(rounds=arguments.rounds), list(CONTENDERS))
    if "cache" in arguments.part:
        from benchmarks.kd_cache import cache_part

        found |= cache_part(arguments.data)
    if "quality" in arguments.part:
        from benchmarks.kd_markov import markov_part
        from benchmarks.kd_stories import stories_part

        found |= markov_part(seeds=arguments.seeds, steps=arguments.steps)
        found |= stories_part(arguments.data, seeds=arguments.seeds, steps=arguments.steps)
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}))


if __name__ == "__main__":
    main()
