"""objectives/sampled_reverse_kl.py: over all tokens a draw may give, its gradient and value are the exact ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill_lab.train.objectives import ChunkTargets, Scored, TopK, load_objective

C, V, K = 4, 13, 3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_mean_over_all_tokens_is_the_exact_gradient_and_value(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(C, V, generator=generator, dtype=torch.float64) for _ in range(2))
    log_p = teacher.log_softmax(-1)
    top = log_p.topk(K)
    rest = (1 - top.values.exp().sum(-1, keepdim=True)).log()
    named = TopK(top.indices, torch.cat([top.values, rest], 1).float())
    logits = student.clone().requires_grad_()
    log_q = logits.log_softmax(-1)
    exact = (log_q.exp() * (log_q - log_p)).sum()
    (wanted,) = torch.autograd.grad(exact, logits)
    q = log_q.detach().exp()
    objective: Any = load_objective("sampled_reverse_kl")
    chunk_loss = objective.keywords["chunk_loss"]
    value, grad = torch.zeros(()), torch.zeros(C, V)
    for token in range(V):
        labels = torch.full((C,), token)
        # One position at a time, so that each value can be weighed.
        for place in range(C):
            part = slice(place, place + 1)
            scored = Scored(log_p[part, token].float(), named.at(part))
            found = chunk_loss(student[part].float(), ChunkTargets(labels[part], scored))
            weight = q[place, token].float()
            value += weight * found.total
            grad[part] += weight * found.grad_CV
            assert found.metrics["kd"] == found.total
            assert found.metrics["ce"].item() == pytest.approx(-log_q[place, token].item(), abs=1e-4)
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    torch.testing.assert_close(grad, wanted.float(), rtol=1e-3, atol=1e-5)


def test_positions_of_a_chunk_do_not_touch_one_another() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (2 * torch.randn(C, V, generator=generator) for _ in range(2))
    log_p, labels = teacher.log_softmax(-1), torch.tensor([0, 5, 5, 12])
    top = log_p.topk(K)
    rest = (1 - top.values.exp().sum(-1, keepdim=True)).log()
    scored = Scored(log_p.gather(1, labels[:, None])[:, 0], TopK(top.indices, torch.cat([top.values, rest], 1)))
    objective: Any = load_objective("sampled_reverse_kl")

    def of(part: slice) -> Any:
        targets = ChunkTargets(labels[part], Scored(scored.log_p_C[part], scored.top.at(part)))
        return objective.keywords["chunk_loss"](student[part].clone(), targets)

    together, alone = of(slice(None)), [of(slice(place, place + 1)) for place in range(C)]
    assert together.grad_CV.shape == (C, V)
    torch.testing.assert_close(together.grad_CV, torch.cat([each.grad_CV for each in alone]))
    torch.testing.assert_close(together.total, torch.stack([each.total for each in alone]).sum())


def test_what_the_teacher_names_adds_no_noise() -> None:
    """With all ids named, every token gives the exact gradient; with fewer, the noise is that of the rest."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (2 * torch.randn(1, V, generator=generator) for _ in range(2))
    log_p, q = teacher.log_softmax(-1), student.softmax(-1)
    objective: Any = load_objective("sampled_reverse_kl")
    chunk_loss = objective.keywords["chunk_loss"]

    def spread(size: int) -> float:
        top = log_p.topk(size)
        rest = (1 - top.values.exp().sum(-1, keepdim=True)).clamp_min(1e-38).log()
        named = TopK(top.indices, torch.cat([top.values, rest], 1))
        grads = torch.stack([
            chunk_loss(student.clone(), ChunkTargets(torch.tensor([token]), Scored(log_p[:, token], named))).grad_CV[0]
            for token in range(V)
        ])  # fmt: skip
        mean = (q[0, :, None] * grads).sum(0)
        return (q[0, :, None] * (grads - mean) ** 2).sum().item()

    spreads = [spread(size) for size in (1, 6, 10, V)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 1e-8


def test_the_baseline_is_the_divergence_over_the_named_ids_and_one_bucket() -> None:
    """Any baseline leaves the mean as it is; this one keeps the noise small."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (2 * torch.randn(V, generator=generator, dtype=torch.float64) for _ in range(2))
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
    top = teacher.topk(K).indices
    rest_p, rest_q = 1 - p[top].sum(), 1 - q[top].sum()
    baseline = (q[top] * ratio[top]).sum() + rest_q * (rest_q / rest_p).log()
    named = TopK(top[None], torch.cat([log_p[top], rest_p.log()[None]])[None].float())
    objective: Any = load_objective("sampled_reverse_kl")
    for token in range(V):
        wanted = sum((q[each] * (ratio[each] - baseline) * one_hot_less(q, int(each)) for each in top), torch.zeros(V))
        if token not in top:
            wanted = wanted + (ratio[token] - baseline) * one_hot_less(q, token)
        scored = Scored(log_p[token, None].float(), named)
        targets = ChunkTargets(torch.tensor([token]), scored)
        found = objective.keywords["chunk_loss"](student[None].float(), targets)
        torch.testing.assert_close(found.grad_CV[0].double(), wanted, rtol=1e-4, atol=1e-5)


def one_hot_less(q: torch.Tensor, token: int) -> torch.Tensor:
    """The gradient of log q(token) for the logits."""
    return torch.nn.functional.one_hot(torch.tensor(token), V) - q
