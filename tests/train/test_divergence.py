"""Objectives that compare with a teacher: against float64 autograd and finite differences, at every form of signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from distill_lab.errors import UserError
from distill_lab.train.objectives import (
    ChunkTargets,
    Draws,
    SeveralTopK,
    TopK,
    load_objective,
    objective_names,
    signals_of,
)
from distill_lab.train.objectives._chunked_head import head_loss
from distill_lab.train.objectives._contract import ChunkFunction
from distill_lab.train.objectives._divergence import blocks

C, V = 7, 23
ALL = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "entropy_aware", "acceptance"]


def tv(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    return 1 - torch.minimum(log_q.exp(), log_p.exp()).sum(-1)


def kl(log_left: torch.Tensor, log_right: torch.Tensor) -> torch.Tensor:
    return (log_left.exp() * (log_left - log_right)).sum(-1)


def mixed(weight: float, log_left: torch.Tensor, log_right: torch.Tensor) -> torch.Tensor:
    return (weight * log_left.exp() + (1 - weight) * log_right.exp()).log()


def plain(name: str, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """The definitions, with nothing in common with the code."""
    if name == "forward_kl":
        return kl(log_p, log_q)
    if name == "reverse_kl":
        return kl(log_q, log_p)
    if name == "jsd":
        m = mixed(0.3, log_p, log_q)
        return 0.3 * kl(log_p, m) + 0.7 * kl(log_q, m)
    if name == "skew_kl":
        return kl(log_p, mixed(0.2, log_p, log_q))
    if name == "skew_reverse_kl":
        return kl(log_q, mixed(0.8, log_p, log_q))
    if name == "entropy_aware":
        unsure = -(log_p.exp() * log_p).sum(-1) > 1.2
        return kl(log_q, log_p) + torch.where(unsure, kl(log_p, log_q), 0.0)
    weight = torch.exp(-3 * (1 - tv(log_q, log_p))).detach()
    return weight * kl(log_p, log_q) + (1 - weight) * tv(log_q, log_p)


SETTINGS = {
    "jsd": ["beta=0.3"],
    "skew_kl": ["alpha=0.2"],
    "skew_reverse_kl": ["alpha=0.2"],
    "entropy_aware": ["threshold=1.2"],
}


def chunk_function(name: str, **settings: float) -> ChunkFunction:
    given = SETTINGS.get(name, []) + [f"{key}={value}" for key, value in settings.items()]
    objective: Any = load_objective(name, given)
    return objective.keywords["chunk_loss"]


def inputs(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (scale * torch.randn(C, V, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(V, (C,), generator=generator)


def reference(
    name: str, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, weight: float,
    buckets: Callable[[torch.Tensor], torch.Tensor] = lambda log_probs: log_probs,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Loss, its gradient for the student's logits, divergence and cross-entropy, in float64 by autograd."""
    logits = student.clone().requires_grad_()
    log_q, log_p = ((each / temperature).log_softmax(-1) for each in (logits, teacher))
    kd = temperature**2 * plain(name, buckets(log_q), buckets(log_p)).sum()
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    total = (1 - weight) * kd + weight * ce
    return total, torch.autograd.grad(total, logits)[0], kd, ce


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_are_those_of_the_definition(name: str, temperature: float, weight: float) -> None:
    student, teacher, labels = inputs()
    total, grad, kd, ce = reference(name, student, teacher, labels, temperature, weight)
    chunk_loss = chunk_function(name, temperature=temperature, ce_weight=weight)
    found = chunk_loss(student.float(), ChunkTargets(labels, teacher.float()))
    torch.testing.assert_close(found.total.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad_CV.double(), grad, rtol=1e-4, atol=2e-6 * temperature)
    torch.testing.assert_close(found.metrics["kd"].double(), kd, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.metrics["ce"].double(), ce, rtol=1e-5, atol=1e-5)
    assert kd.item() > 0.1


@pytest.mark.parametrize("name", ALL)
def test_logits_far_apart_stay_finite_and_equal_ones_give_zero(name: str) -> None:
    student, teacher, labels = inputs(scale=150.0)
    far = chunk_function(name)(student.float(), ChunkTargets(labels, teacher.float()))
    assert torch.isfinite(far.total)
    assert torch.isfinite(far.grad_CV).all()
    torch.testing.assert_close(
        far.grad_CV.double(), reference(name, student, teacher, labels, 1.0, 0.0)[1], rtol=1e-3, atol=1e-3
    ) if name not in ("jsd", "skew_kl", "skew_reverse_kl") else None  # float64's own mixture is 0 there
    same = chunk_function(name)(teacher.float(), ChunkTargets(labels, teacher.float()))
    assert same.total.item() == pytest.approx(0, abs=1e-4)
    assert same.grad_CV.abs().max() < 1e-5


def best_of(teacher: torch.Tensor, known_C: torch.Tensor | None = None) -> TopK:
    """Its five most likely ids."""
    found = teacher.softmax(-1).topk(5, -1)
    rest = 1 - found.values.sum(1, keepdim=True)
    return TopK(found.indices, torch.cat([found.values, rest], 1).log().float(), known_C)


@pytest.mark.parametrize("name", ALL)
def test_several_blocks_of_a_chunk_are_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_lab.train.objectives import _divergence

    student, teacher, labels = inputs()
    top = best_of(teacher, torch.arange(C) != 3)
    for signal in (teacher.float(), top, SeveralTopK((top, best_of(teacher.flip(0))))):
        found = []
        for size in (C * V, 2 * V):
            monkeypatch.setattr(_divergence, "CPU_BLOCK", size)
            said = signal.clone() if isinstance(signal, torch.Tensor) else signal
            found.append(chunk_function(name)(student.float(), ChunkTargets(labels, said)))
        torch.testing.assert_close(found[1].total, found[0].total)
        torch.testing.assert_close(found[1].grad_CV, found[0].grad_CV)


def test_a_cpu_works_on_blocks_and_other_devices_on_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_lab.train.objectives import _divergence

    def ends(rows: int, device: str = "cpu") -> list[tuple[int, int]]:
        return [(part.start, part.stop) for part in blocks(torch.empty(rows, V, device=device))]

    monkeypatch.setattr(_divergence, "CPU_BLOCK", 3 * V - 1)
    assert ends(5) == [(0, 2), (2, 4), (4, 6)]
    assert ends(5, "meta") == [(0, 5)]
    assert ends(0) == ends(0, "meta") == []
    monkeypatch.setattr(_divergence, "CPU_BLOCK", V - 1)
    assert ends(2) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("name", ALL)
def test_a_student_that_is_certain_of_what_the_teacher_names_has_a_finite_loss(name: str) -> None:
    _, teacher, labels = inputs()
    top = best_of(teacher)
    before = top.log_p_CB.clone()
    student = torch.zeros(C, V).scatter(1, top.ids_CK, 1000.0)
    for signal in (top, SeveralTopK((top, top))):
        found = chunk_function(name)(student.clone(), ChunkTargets(labels, signal))
        assert torch.isfinite(found.total)
        assert torch.isfinite(found.grad_CV).all()
    # What a teacher says is read again: it stays as it is.
    assert torch.equal(top.log_p_CB, before)


@pytest.mark.parametrize("name", ALL)
def test_where_a_teacher_says_nothing_value_and_gradient_are_zero(name: str) -> None:
    student, teacher, labels = inputs()
    known = torch.arange(C) % 2 == 0
    found, whole = (
        chunk_function(name)(student.float(), ChunkTargets(labels, best_of(teacher, known_C)))
        for known_C in (known, None)
    )
    alone = chunk_function(name)(student.float()[known], ChunkTargets(labels[known], best_of(teacher[known])))
    assert found.total.item() == pytest.approx(alone.total.item(), rel=1e-5)
    assert 0 < found.total < whole.total
    assert not found.grad_CV[~known].any()
    torch.testing.assert_close(found.grad_CV[known], alone.grad_CV)


def test_forward_kl_counts_only_where_the_entropy_is_above_the_threshold() -> None:
    student, _, labels = inputs()
    teacher = torch.zeros(C, V).scatter(1, labels[:, None], 1000.0)  # certain: an entropy of exactly 0
    objective: Any = load_objective("entropy_aware", ["threshold=0"])
    found = objective.keywords["chunk_loss"](student.float(), ChunkTargets(labels, teacher.clone()))
    reverse = chunk_function("reverse_kl")(student.float(), ChunkTargets(labels, teacher.clone()))
    assert found.total == reverse.total > 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_is_the_divergence_of_k_ids_and_one_bucket(name: str, temperature: float) -> None:
    student, teacher, labels = inputs()
    ids = teacher.topk(5, -1).indices

    def buckets(log_probs: torch.Tensor) -> torch.Tensor:
        rest = torch.ones_like(log_probs).scatter(1, ids, 0.0)
        return torch.cat([log_probs.gather(1, ids), (log_probs.exp() * rest).sum(1, keepdim=True).log()], 1)

    total, grad, kd, _ = reference(name, student, teacher, labels, temperature, 0.2, buckets)
    signal = TopK(ids, buckets((teacher / temperature).log_softmax(-1)).float())
    found = chunk_function(name, temperature=temperature, ce_weight=0.2)(student.float(), ChunkTargets(labels, signal))
    torch.testing.assert_close(found.total.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad_CV.double(), grad, rtol=1e-4, atol=5e-6)
    assert kd <= reference(name, student, teacher, labels, temperature, 0.2)[2] + 1e-9 or name == "acceptance"


def drawn(weights: torch.Tensor, entropy: torch.Tensor) -> Draws:
    positions, ids = weights.nonzero(as_tuple=True)
    total = weights.sum(1)
    return Draws(
        positions, ids, weights[positions, ids].float(), total.float(), entropy.float(), bool((total == 0).any())
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("partial", [False, True])
def test_forward_kl_from_draws(weight: float, temperature: float, partial: bool) -> None:
    student, teacher, labels = inputs()
    probs = (teacher / temperature).softmax(-1)
    counts = torch.stack([torch.bincount(torch.multinomial(row, 8, True), minlength=V) for row in probs]).double() / 8
    if partial:
        counts[2] = 0
    entropy = -(probs * probs.log()).sum(-1)
    logits = student.clone().requires_grad_()
    log_q = (logits / temperature).log_softmax(-1)
    kd = temperature**2 * (-(counts * log_q).sum() - entropy.sum())
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    total = (1 - weight) * kd + weight * ce
    grad = torch.autograd.grad(total, logits)[0]
    chunk_loss = chunk_function("forward_kl", temperature=temperature, ce_weight=weight)
    found = chunk_loss(student.float(), ChunkTargets(labels, drawn(counts, entropy)))
    torch.testing.assert_close(found.total.double(), total.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.grad_CV.double(), grad, rtol=1e-4, atol=5e-6)
    torch.testing.assert_close(found.metrics["kd"].double(), kd.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.metrics["ce"].double(), ce.detach(), rtol=1e-5, atol=1e-4)


def test_the_whole_distribution_as_draws_is_forward_kl() -> None:
    student, teacher, labels = inputs()
    probs = teacher.softmax(-1)
    dense = chunk_function("forward_kl")(student.float(), ChunkTargets(labels, teacher.float()))
    sparse = chunk_function("forward_kl")(
        student.float(), ChunkTargets(labels, drawn(probs, -(probs * probs.log()).sum(-1)))
    )
    torch.testing.assert_close(sparse.total, dense.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.grad_CV, dense.grad_CV, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Linear:
    """A teacher that is a head on hidden states."""

    logits_NV: torch.Tensor
    num_ids: int | None = None

    def at(self, part: slice) -> torch.Tensor:
        return self.logits_NV[part, : self.num_ids].clone()


@pytest.mark.parametrize("name", ALL)
def test_finite_differences_through_head_softcap_bias_and_scale(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(C, 5, generator=generator)
    weight, bias = torch.randn(V, 5, generator=generator), torch.randn(V, generator=generator)
    labels, teacher = torch.randint(V, (C,), generator=generator), Linear(2 * torch.randn(C, V, generator=generator))
    settings = {} if name == "acceptance" else {"temperature": 1.5}
    # The weight between the two parts of `acceptance` is not differentiated: with eta 0 it is constant.
    settings |= {"ce_weight": 0.25} | ({"eta": 0.0} if name == "acceptance" else {})

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        return head_loss(
            tensors[0], tensors[1], labels, chunk_function(name, **settings), signal=teacher, bias=tensors[2],
            softcap=4.0, scale=0.7, chunk=3,
        ).total  # fmt: skip

    given = [each.requires_grad_() for each in (hidden, weight, bias)]
    grads = torch.autograd.grad(loss(*given), given)
    for number, (tensor, grad) in enumerate(zip(given, grads, strict=True)):
        direction = torch.randn(tensor.shape, generator=generator)
        ends = []
        for sign in (1, -1):
            moved = [each.detach() for each in given]
            moved[number] = moved[number] + sign * 1e-2 * direction
            ends.append(loss(*moved).item())
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx((grad * direction).sum().item(), rel=2e-3, abs=2e-2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("frozen", [False, True])
def test_heads_of_different_size_are_compared_on_the_ids_they_share(name: str, frozen: bool) -> None:
    """A teacher of 23 ids, a student of 31: the loss is that of a student without the last 8, whose rows get exactly 0."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(C, 5, generator=generator).requires_grad_()
    weight, bias = torch.randn(V + 8, 5, generator=generator), torch.randn(V + 8, generator=generator)
    weight.requires_grad_(not frozen)
    bias.requires_grad_(not frozen)
    labels, teacher = torch.randint(V, (C,), generator=generator), Linear(torch.randn(C, V, generator=generator), V)
    wide = head_loss(hidden, weight, labels, chunk_function(name), signal=teacher, bias=bias, num_ids=V, chunk=4).total
    narrow_weight, narrow_bias = weight[:V].detach().requires_grad_(), bias[:V].detach().requires_grad_()
    narrow = head_loss(hidden, narrow_weight, labels, chunk_function(name), signal=teacher, bias=narrow_bias).total
    torch.testing.assert_close(wide, narrow)
    wanted = torch.autograd.grad(narrow, (hidden, narrow_weight, narrow_bias))
    if frozen:
        torch.testing.assert_close(torch.autograd.grad(wide, hidden)[0], wanted[0])
        return
    found = torch.autograd.grad(wide, (hidden, weight, bias))
    torch.testing.assert_close(found[0], wanted[0])
    for whole, part in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(whole[:V], part)
        assert (whole[V:] == 0).all()
    # In place, as one process does it: the same, and nothing but zeros beyond.
    own = weight.detach().clone().requires_grad_()
    loss = head_loss(hidden, own, labels, chunk_function(name), signal=teacher, num_ids=V, head_grad_scale=0.5).total
    loss.backward()
    assert own.grad is not None
    assert (own.grad[V:] == 0).all()
    assert own.grad[:V].abs().max() > 0


def test_what_an_objective_cannot_read_is_refused() -> None:
    student, teacher, labels = inputs()
    probs = teacher.softmax(-1)
    draws = drawn(probs, torch.zeros(C))
    for name in ALL:
        assert signals_of(name) == (("logits", "top_k", "draws") if name == "forward_kl" else ("logits", "top_k"))
        with pytest.raises(UserError, match=r"compares with a teacher, and there is none; give --train\.teacher"):
            chunk_function(name)(student.float(), ChunkTargets(labels))
        if name != "forward_kl":
            with pytest.raises(UserError, match="a sampled cache has draws only; use forward_kl"):
                chunk_function(name)(student.float(), ChunkTargets(labels, draws))
    assert signals_of("cross_entropy") == ()
    assert signals_of("sampled_reverse_kl") == ("scored",)
    assert set(objective_names()) == {"cross_entropy", "sampled_reverse_kl", "chunk_likelihood", *ALL}
    with pytest.raises(UserError, match="no objective 'kl'; there are acceptance, "):
        signals_of("kl")
    with pytest.raises(UserError, match=r"jsd: no setting a, b; it has beta, temperature, ce_weight$"):
        load_objective("jsd", ["b=1", "a=2=3"])
    with pytest.raises(UserError, match=r"objective jsd: beta: .* less than 1; temperature: .* greater than 0$"):
        load_objective("jsd", ["beta=1", "temperature=0"])
    objective: Any = load_objective("sampled_reverse_kl")
    with pytest.raises(UserError, match="learns from a teacher on a server; use reverse_kl"):
        objective.keywords["chunk_loss"](student.float(), ChunkTargets(labels, teacher.float()))


OWN: dict[str, dict[str, float]] = {
    "acceptance": {"eta": 3.0}, "chunk_likelihood": {"tau": 100.0, "exact": 1.0}, "entropy_aware": {"threshold": 0.8},
    "forward_kl": {}, "jsd": {"beta": 0.5}, "reverse_kl": {}, "skew_kl": {"alpha": 0.1}, "skew_reverse_kl": {"alpha": 0.1},
}  # fmt: skip
"""What each objective has besides temperature and ce_weight, with the default."""


@pytest.mark.parametrize("name", OWN)
def test_the_defaults_compare_the_distributions_themselves_without_cross_entropy(name: str) -> None:
    objective: Any = load_objective(name)
    assert objective.keywords["chunk_loss"].keywords == OWN[name] | {"temperature": 1.0, "ce_weight": 0.0}


ENDS = [
    ("acceptance", "eta", (0, 1e9), (-0.5,)),
    ("chunk_likelihood", "tau", (1, 1e6), (0.5, 1e6 + 0.5)),
    ("chunk_likelihood", "exact", (0, 1), (-0.5, 1.5)),
    ("entropy_aware", "threshold", (0, 1e9), (-0.5,)),
    ("jsd", "beta", (0.01, 0.99), (0, 1)),
    ("skew_kl", "alpha", (0.01, 0.99), (0, 1)),
    ("skew_reverse_kl", "alpha", (0.01, 0.99), (0, 1)),
    ("forward_kl", "temperature", (0.01, 100), (0, 100.5)),
    ("forward_kl", "ce_weight", (0, 1), (-0.5, 1.5)),
]


@pytest.mark.parametrize(("name", "setting", "inside", "outside"), ENDS)
def test_a_setting_is_taken_up_to_the_ends_of_its_range(
    name: str, setting: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    for value in inside:
        objective: Any = load_objective(name, [f"{setting}={value}"])
        assert objective.keywords["chunk_loss"].keywords[setting] == value
    for value in outside:
        with pytest.raises(UserError, match=f"objective {name}: {setting}: "):
            load_objective(name, [f"{setting}={value}"])
