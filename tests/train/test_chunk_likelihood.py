"""Chunk likelihood: against float64, finite differences and forward KL; chunks are never divided between two parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from distill_lab.errors import UserError
from distill_lab.train.aligned_teacher import AlignedSignal
from distill_lab.train.cached_teacher import check_cache
from distill_lab.train.objectives import Chunks, ChunkTargets, GroupedSignal, Head, load_objective, signals_of
from distill_lab.train.objectives import _divergence as divergence_module
from distill_lab.train.objectives._chunked_head import head_loss
from distill_lab.train.objectives._contract import ChunkFunction
from distill_lab.train.objectives.chunk_likelihood import binary_kl
from distill_lab.train.teachers import HeadSignal
from tests.helpers import teacher_settings

V, W = 23, 31
"""Ids of student and teacher."""
CHUNKS: list[tuple[int, int, bool]] = [
    (1, 1, True), (2, 1, False), (1, 1, True), (0, 0, False), (1, 3, False), (1, 1, False), (3, 2, False), (0, 0, False),
    (1, 1, True), (2, 2, False), (1, 1, True),
]  # fmt: skip
"""Tokens of student and teacher in each chunk, and whether they are the same one; (0, 0): a token that is not compared."""
SHARED = torch.tensor([[0, 2, 3, 5, 8, 9, 14, 20], [1, 0, 7, 5, 30, 12, 13, 2]])


def laid_out() -> dict[str, Any]:
    """Labels and chunk numbers of CHUNKS."""
    generator = torch.Generator().manual_seed(5)
    chunk_C, chunk_D, same_K, ours, theirs = [], [], [], [], []
    for student, teacher, same in CHUNKS:
        if not student:
            chunk_C.append(-1)
            ours.append(int(torch.randint(V, (), generator=generator)))
            continue
        chunk_C += [len(same_K)] * student
        chunk_D += [len(same_K)] * teacher
        pair = SHARED[:, int(torch.randint(SHARED.shape[1], (), generator=generator))].tolist()
        ours += [pair[0]] if same else torch.randint(V, (student,), generator=generator).tolist()
        theirs += [pair[1]] if same else torch.randint(W, (teacher,), generator=generator).tolist()
        same_K.append(same)
    return {
        "labels_C": torch.tensor(ours), "labels_D": torch.tensor(theirs), "chunk_C": torch.tensor(chunk_C),
        "chunk_D": torch.tensor(chunk_D), "same_K": torch.tensor(same_K),
    }  # fmt: skip


LAID_OUT = laid_out()
C, D, K = len(LAID_OUT["labels_C"]), len(LAID_OUT["labels_D"]), len(LAID_OUT["same_K"])


def inputs(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(scale * torch.randn(size, dtype=torch.float64, generator=generator) for size in ((C, V), (D, W)))  # pyright: ignore[reportReturnType]


def chunk_function(**settings: float) -> ChunkFunction:
    objective: Any = load_objective("chunk_likelihood", [f"{key}={value}" for key, value in settings.items()])
    return objective.keywords["chunk_loss"]


def signal(teacher: torch.Tensor, **changes: torch.Tensor) -> Chunks:
    given = {name: LAID_OUT[name] for name in ("labels_D", "chunk_C", "chunk_D", "same_K")} | {"shared": SHARED}
    return Chunks(logits_DW=teacher.float().clone(), **(given | changes))


def reference(
    student: torch.Tensor, teacher: torch.Tensor, *, tau: float, exact: float, temperature: float, ce_weight: float
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Loss, its gradient for the student's logits, kd and cross-entropy: by loops, with nothing in common with the code."""
    logits = student.clone().requires_grad_()
    log_q, log_p = ((each / temperature).log_softmax(-1) for each in (logits, teacher))
    kd = torch.zeros((), dtype=torch.float64)
    for number, same in enumerate(LAID_OUT["same_K"].tolist()):
        ours, theirs = (LAID_OUT[name].eq(number).nonzero()[:, 0].tolist() for name in ("chunk_C", "chunk_D"))
        nothing = torch.zeros((), dtype=torch.float64)
        a = -sum((log_p[place, LAID_OUT["labels_D"][place]] for place in theirs), nothing)
        b = -sum((log_q[place, LAID_OUT["labels_C"][place]] for place in ours), nothing)
        p, q = torch.exp(-a / tau), torch.exp(-b / tau)
        binary = tau * (p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q)))
        kl = torch.zeros((), dtype=torch.float64)
        if same:
            coins = []
            for log_probs, shared in ((log_p[theirs[0]], SHARED[1]), (log_q[ours[0]], SHARED[0])):
                probs = log_probs.exp()
                coins.append(torch.cat([probs[shared], (1 - probs[shared].sum())[None]]))
            kl = (coins[0] * (coins[0] / coins[1]).log()).sum()
        kd = kd + (exact * kl + (1 - exact) * binary if same else binary)
    kd = temperature**2 * kd
    ce = torch.nn.functional.cross_entropy(logits, LAID_OUT["labels_C"], reduction="sum")
    total = (1 - ce_weight) * kd + ce_weight * ce
    return total.detach(), torch.autograd.grad(total, logits)[0], kd.item(), ce.item()


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0, 2.5])
@pytest.mark.parametrize("exact", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_value_and_gradient_are_those_of_the_definition(
    tau: float, exact: float, temperature: float, ce_weight: float
) -> None:
    student, teacher = inputs()
    settings = {"tau": tau, "exact": exact, "temperature": temperature, "ce_weight": ce_weight}
    total, grad, kd, ce = reference(student, teacher, **settings)
    found = chunk_function(**settings)(student.float(), ChunkTargets(LAID_OUT["labels_C"], signal(teacher)))
    # MIN_NATS is added to what the definition has.
    torch.testing.assert_close(found.total.double(), total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.grad_CV.double(), grad, rtol=1e-3, atol=1e-4 * temperature)
    assert found.metrics["kd"].item() == pytest.approx(kd, rel=1e-4)
    assert found.metrics["ce"].item() == pytest.approx(ce, rel=1e-5)
    parts = found.metrics["kd_same"] + found.metrics["kd_chunks"]
    assert parts.item() == pytest.approx(found.metrics["kd"].item(), rel=1e-6)
    assert kd > (0.05 if temperature >= 1 else 0.005)
    assert (found.grad_CV[LAID_OUT["chunk_C"] < 0].abs().max() > 0) == bool(ce_weight)


def test_the_likelihoods_of_the_chunks_make_up_the_texts_and_equal_ones_cost_nothing() -> None:
    """With one tokenizer a chunk is a token, and the chunks' log-likelihoods sum up to the sequence's."""
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(9, V, generator=generator), torch.randint(V, (9,), generator=generator)
    log_probs = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    other = torch.randn(9, V, generator=generator).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    for tau in (1.0, 7.0, 1e5):
        value_K, slope_K = binary_kl(log_probs, log_probs, tau=tau)
        assert value_K.abs().max() < 1e-5
        assert slope_K.abs().max() < 1e-6
        value_K, _ = binary_kl(log_probs, other, tau=tau)
        assert (value_K > 0).all()
    number = torch.arange(9)
    every = torch.ones(9, dtype=torch.bool)
    same = Chunks(logits.clone(), labels, number, number, ~every, torch.arange(V).expand(2, -1))
    whole = replace(same, logits_DW=logits.clone(), chunk_C=number * 0, chunk_D=number * 0, same_K=~every[:1])
    for found in (same, whole):  # nine chunks of a token, one of nine: the same text, and no difference
        loss = chunk_function(exact=0.0)(logits.clone(), ChunkTargets(labels, found))
        assert loss.total.abs() < 1e-4
        assert loss.grad_CV.abs().max() < 1e-5
        assert loss.metrics["ce"].item() == pytest.approx(-log_probs.sum().item(), rel=1e-5)
    # One chunk of the whole text is compared by the exact likelihoods of the sequence.
    theirs = torch.randn(9, V, generator=generator)
    far = chunk_function(exact=0.0, tau=1e6)(
        logits.clone(), ChunkTargets(labels, replace(whole, logits_DW=theirs.clone()))
    )
    a, b = -theirs.log_softmax(-1).gather(1, labels[:, None]).sum(), -log_probs.sum()
    assert far.total.item() == pytest.approx((a * (a / b).log() - a + b).item(), rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_between_equal_tokenizers_it_is_forward_kl(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(11, V, generator=generator) for _ in range(2))
    labels, number = torch.randint(V, (11,), generator=generator), torch.arange(11)
    mixed = [f"temperature={temperature}", "ce_weight=0.25"]
    plain: Any = load_objective("forward_kl", mixed)
    expected = plain.keywords["chunk_loss"](student.clone(), ChunkTargets(labels, teacher.clone()))
    every = torch.ones(11, dtype=torch.bool)
    chunks = Chunks(teacher.clone(), labels, number, number, every, torch.arange(V).expand(2, -1))
    settings = {"temperature": temperature, "ce_weight": 0.25}
    found = chunk_function(**settings)(student.clone(), ChunkTargets(labels, chunks))
    torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.grad_CV, expected.grad_CV, rtol=1e-5, atol=1e-6)
    assert found.metrics["kd_chunks"] == 0


def test_far_apart_and_certain_models_stay_finite_and_blocks_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for scale in (0.0, 60.0, 400.0):
        student, teacher = inputs(scale)
        for settings in ({}, {"exact": 0.0}, {"tau": 1.0, "exact": 0.5}, {"tau": 1e6}):
            found = chunk_function(**settings)(student.float(), ChunkTargets(LAID_OUT["labels_C"], signal(teacher)))
            assert torch.isfinite(found.total)
            assert torch.isfinite(found.grad_CV).all()
    student, teacher = inputs()
    whole = chunk_function(exact=0.5)(student.float(), ChunkTargets(LAID_OUT["labels_C"], signal(teacher)))
    monkeypatch.setattr(divergence_module, "CPU_BLOCK", 2 * V)
    parts = chunk_function(exact=0.5)(student.float(), ChunkTargets(LAID_OUT["labels_C"], signal(teacher)))
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.grad_CV, whole.grad_CV)
    ids = torch.zeros(0, dtype=torch.int64)
    nothing = Chunks(
        logits_DW=torch.zeros(0, W), labels_D=ids, chunk_D=ids, chunk_C=ids, same_K=ids.bool(), shared=SHARED
    )
    empty = chunk_function()(torch.zeros(0, V), ChunkTargets(ids, nothing))
    assert empty.total == 0
    assert set(empty.metrics) == {"kd", "ce", "kd_same", "kd_chunks"}


def aligned_signal(hidden_DT: torch.Tensor, linear: torch.nn.Linear, copies: int = 1) -> AlignedSignal:
    """CHUNKS, several times one after the other, as a teacher with a head says it."""
    chunk_N, chunk_D = (LAID_OUT[name].numpy() for name in ("chunk_C", "chunk_D"))
    return AlignedSignal(
        head=HeadSignal(hidden_DT, Head(linear), linear.out_features, torch.device("cpu")),
        labels_D=np.tile(LAID_OUT["labels_D"].numpy(), copies),
        chunk_N=np.concatenate([np.where(chunk_N >= 0, chunk_N + copy * K, -1) for copy in range(copies)]),
        chunk_D=np.concatenate([chunk_D + copy * K for copy in range(copies)]),
        same_K=np.tile(LAID_OUT["same_K"].numpy(), copies),
        shared=SHARED,
    )


def test_parts_divide_no_chunk_and_hold_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_lab.train import aligned_teacher

    linear = torch.nn.Linear(4, W)
    found = aligned_signal(torch.zeros(6 * D, 4), linear, copies=6)
    assert isinstance(found, GroupedSignal)
    monkeypatch.setattr(aligned_teacher, "MIN_CHUNK", 1)
    for most, most_theirs in ((3, 1000), (7, 4), (1000, 9), (1000, 1000), (1, 1)):
        monkeypatch.setattr(aligned_teacher, "CHUNK_ELEMENTS", most_theirs * W)
        parts = found.parts(most)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == len(found.chunk_N) == 6 * C
        read = 0
        for part in parts:
            chunks = found.chunk_N[part]
            if part.stop < len(found.chunk_N):
                assert chunks[-1] == -1 or found.chunk_N[part.stop] != chunks[-1]
            said = found.at(part)
            one_chunk = len(set(chunks.tolist()) - {-1}) == 1
            assert len(chunks) <= most or (one_chunk and len(chunks) <= 3)
            assert len(said.labels_D) <= most_theirs or (one_chunk and len(said.labels_D) <= 3)
            assert said.labels_D.tolist() == found.labels_D[read : read + len(said.labels_D)].tolist()
            assert set(said.chunk_C.tolist()) - {-1} == set(said.chunk_D.tolist()) == set(range(len(said.same_K)))
            read += len(said.labels_D)
        assert read == 6 * D
    nothing = replace(
        found, **{name: getattr(found, name)[:0] for name in ("labels_D", "chunk_N", "chunk_D", "same_K")}
    )
    [empty] = nothing.parts(10)
    assert nothing.at(empty).logits_DW.shape == (0, W)


def test_finite_differences_through_head_softcap_bias_and_scale_in_parts() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(2 * C, 5, generator=generator), torch.randn(V, 5, generator=generator)
    bias, labels = torch.randn(V, generator=generator), LAID_OUT["labels_C"].repeat(2)
    linear = torch.nn.Linear(4, W)
    teacher = aligned_signal(2 * torch.randn(2 * D, 4, generator=generator), linear, copies=2)
    settings = {"exact": 0.6, "temperature": 1.5, "ce_weight": 0.25}

    def loss(*tensors: torch.Tensor, chunk: int = 4) -> torch.Tensor:
        return head_loss(
            tensors[0], tensors[1], labels, chunk_function(**settings), signal=teacher, bias=tensors[2], softcap=4.0,
            scale=0.7, chunk=chunk,
        ).total  # fmt: skip

    given = [each.requires_grad_() for each in (hidden, weight, bias)]
    total = loss(*given)
    grads = torch.autograd.grad(total, given)
    torch.testing.assert_close(loss(*given, chunk=1000), total)  # in one part
    for number, (tensor, grad) in enumerate(zip(given, grads, strict=True)):
        direction = torch.randn(tensor.shape, generator=generator)
        ends = []
        for sign in (1, -1):
            moved = [each.detach() for each in given]
            moved[number] = moved[number] + sign * 1e-2 * direction
            ends.append(loss(*moved).item())
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx((grad * direction).sum().item(), rel=2e-2, abs=5e-2)
    assert all(weight.grad is None for weight in linear.parameters())


def test_what_it_cannot_learn_from_is_refused() -> None:
    student, teacher = inputs()
    assert signals_of("chunk_likelihood") == ("chunks",)
    for said in (None, teacher.float()):
        with pytest.raises(UserError, match="compares with a teacher that reads the text itself"):
            chunk_function()(student.float(), ChunkTargets(LAID_OUT["labels_C"], said))
    for setting in ("tau=0.5", "exact=1.1", "temperature=0", "ce_weight=2"):
        with pytest.raises(UserError, match=rf"objective chunk_likelihood: {setting.split('=')[0]}: "):
            load_objective("chunk_likelihood", [setting])
    for mode in ("sampled", "top_k", "hidden"):
        from distill_lab.config import ModelConfig

        config = teacher_settings(ModelConfig(model="x"), mode, objective="chunk_likelihood")
        with pytest.raises(
            UserError, match=rf"train.teacher-cache.mode {mode}: a cache holds .*; use --cache-mode off"
        ):
            check_cache(config)


@dataclass(frozen=True)
class _Dense:
    logits_NV: torch.Tensor
    num_ids: int | None = None

    def at(self, part: slice) -> torch.Tensor:
        return self.logits_NV[part].clone()


def test_other_objectives_are_not_walked_in_groups() -> None:
    assert not isinstance(_Dense(torch.zeros(1, V)), GroupedSignal)
