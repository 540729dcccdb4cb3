"""The chunked loss against torch's own on whole logits: values and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distill_lab.train.objectives import ChunkLoss, ChunkTargets, Head, LossBatch, cross_entropy, load_objective
from distill_lab.train.objectives import _chunked_head as chunked_head
from distill_lab.train.objectives._chunked_head import head_loss

N, H, V = 37, 16, 101


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_()
    head_VH = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator, dtype=dtype).requires_grad_()
    return hidden_NH, head_VH, bias_V, torch.randint(V, (N,), generator=generator)


def loss(hidden_NH: torch.Tensor, weight_VH: torch.Tensor, labels_N: torch.Tensor, **settings: Any) -> torch.Tensor:
    return head_loss(hidden_NH, weight_VH, labels_N, cross_entropy.chunk_loss, **settings).total


def reference(hidden_NH, head_VH, labels_N, bias_V=None, softcap=None, scale=1.0) -> torch.Tensor:
    logits_NV = scale * F.linear(hidden_NH, head_VH, bias_V).float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    return F.cross_entropy(logits_NV, labels_N, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 8, 37, 1000, None])
@pytest.mark.parametrize(("softcap", "scale", "with_bias"), [(None, 1.0, False), (5.0, 0.5, True), (None, 2.0, True)])
def test_loss_and_every_gradient_equal_torch(
    chunk: int | None, softcap: float | None, scale: float, with_bias: bool
) -> None:
    hidden_NH, head_VH, bias_V, labels_N = inputs()
    weights = [hidden_NH, head_VH, *([bias_V] if with_bias else [])]
    bias = bias_V if with_bias else None
    expected = reference(hidden_NH, head_VH, labels_N, bias, softcap, scale)
    expected_grads = torch.autograd.grad(expected / 7, weights)
    actual = loss(hidden_NH, head_VH, labels_N, bias=bias, softcap=softcap, scale=scale, chunk=chunk)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(torch.autograd.grad(actual / 7, weights), expected_grads, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("softcap", "with_bias"), [(None, False), (5.0, True)])
def test_the_heads_gradient_may_be_added_at_once(softcap: float | None, with_bias: bool) -> None:
    hidden_NH, head_VH, bias_V, labels_N = inputs()
    bias = bias_V if with_bias else None
    reference(hidden_NH, head_VH, labels_N, bias, softcap).div(7).backward()
    wanted = [weight.grad for weight in (hidden_NH, head_VH, bias) if weight is not None]
    before = torch.randn(V, H, generator=torch.Generator().manual_seed(1))
    for first in (None, before):
        hidden_NH, head_VH, bias_V, labels_N = inputs()
        head_VH.grad = None if first is None else first.clone()
        bias = bias_V if with_bias else None
        total = loss(hidden_NH, head_VH, labels_N, bias=bias, softcap=softcap, chunk=8, head_grad_scale=1 / 7)
        assert head_VH.grad is not None
        total.div(7).backward()
        found = [weight.grad for weight in (hidden_NH, head_VH, bias) if weight is not None]
        if first is not None:
            found[1] = head_VH.grad - first
        for gradient, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5)


def test_a_label_whose_probability_underflows_has_a_loss() -> None:
    hidden_NH, head_VH = torch.tensor([[200.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    for label, nats in ((0, 0.0), (1, 200.0), (2, 400.0)):
        assert loss(hidden_NH, head_VH, torch.tensor([label])).item() == pytest.approx(nats)


def test_by_hand() -> None:
    # Logits (0, ln 3): probabilities 1/4 and 3/4.
    hidden_NH = torch.tensor([[1.0], [1.0]])
    head_VH = torch.tensor([[1.0], [3.0]]).log()
    total = loss(hidden_NH, head_VH, torch.tensor([0, 1]))
    assert total.item() == pytest.approx(torch.tensor([4.0, 4 / 3]).log().sum().item(), abs=1e-6)


def test_gradients_only_for_what_requires_them() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    total = loss(hidden_NH, head_VH.detach(), labels_N)
    total.backward()
    assert hidden_NH.grad is not None
    assert head_VH.grad is None
    with torch.no_grad():
        assert not loss(hidden_NH, head_VH, labels_N).requires_grad


def test_a_tied_head_gets_both_gradients() -> None:
    _, table_VH, _, labels_N = inputs()
    ids = torch.arange(N)
    expected = torch.autograd.grad(reference(table_VH[ids].tanh(), table_VH, labels_N), table_VH)[0]
    actual = torch.autograd.grad(loss(table_VH[ids].tanh(), table_VH, labels_N, chunk=5), table_VH)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_autocast_computes_products_in_its_type_and_sums_in_fp32() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    exact = loss(hidden_NH, head_VH, labels_N)
    exact_grad = torch.autograd.grad(exact, head_VH)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(hidden_NH, head_VH, labels_N, chunk=8)
    gradient = torch.autograd.grad(total, head_VH)[0]
    assert total.dtype == gradient.dtype == torch.float32
    assert total.item() != exact.item()
    torch.testing.assert_close(total, exact, rtol=1e-2, atol=0)
    assert (gradient - exact_grad).norm() < 2e-2 * exact_grad.norm()


def test_no_positions() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    total = loss(hidden_NH[:0], head_VH, labels_N[:0])
    total.backward()
    assert total.item() == 0
    assert head_VH.grad is not None
    assert not head_VH.grad.any()


def test_a_second_backward_is_refused_rather_than_wrong() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    total = loss(hidden_NH, head_VH, labels_N)
    (total / 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_never_more_than_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = torch.softmax
    monkeypatch.setattr(
        torch, "softmax", lambda logits, *rest, **kwargs: sizes.append(len(logits)) or original(logits, *rest, **kwargs)
    )
    hidden_NH, head_VH, _, labels_N = inputs()
    loss(hidden_NH, head_VH, labels_N, chunk=8).backward()
    assert sizes == [8, 8, 8, 8, 5]


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize(
    ("vocabulary", "positions", "copied", "chunks"),
    [
        (151_936, 500, False, [220, 220, 60]),  # 2**25 logits
        (151_936, 500, True, [441, 59]),  # 2**26 with the head's copy
        (101, 5000, False, [4096, 904]),
    ],
)
def test_the_default_chunk_bounds_what_exists_at_once(
    vocabulary: int, positions: int, copied: bool, chunks: list[int]
) -> None:
    """At Qwen's vocabulary 128 MiB of logits in fp32, however many positions there are. No number comes from the code."""
    hidden_NH = torch.randn(positions, 1).requires_grad_()
    weight_VH = torch.randn(vocabulary, 1)
    labels_N = torch.randint(vocabulary, (positions,))
    sizes: list[int] = []

    def counted(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
        sizes.append(len(logits_CV))
        return cross_entropy.chunk_loss(logits_CV, targets)

    copy = weight_VH.bfloat16() if copied else None
    with Largest() as largest, torch.autocast("cpu", torch.bfloat16, enabled=copied):
        total = head_loss(hidden_NH, weight_VH, labels_N, counted, head_copy_VH=copy).total
    total.backward()
    assert sizes == chunks
    bound = 2**26 if copied else 2**25
    assert chunks[0] * vocabulary <= largest.elements <= bound


def test_a_loss_without_gradients_computes_none() -> None:
    """A validation would otherwise pay for products and a gradient of the head's size that nobody takes."""
    hidden_NH, head_VH, bias_V, labels_N = inputs()
    products: list[int] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.append("mm" in str(func))
            return func(*args, **(kwargs or {}))

    expected = loss(hidden_NH, head_VH, labels_N, bias=bias_V)
    with torch.no_grad(), Products():
        found = loss(hidden_NH, head_VH, labels_N, bias=bias_V, head_grad_scale=1.0)
    assert found.item() == expected.item()
    assert sum(products) == 1
    assert head_VH.grad is None


def test_an_objective_uses_all_that_the_head_has() -> None:
    hidden_NH, _, _, labels_N = inputs()
    torch.manual_seed(0)
    linear = torch.nn.Linear(H, V)
    ids = torch.zeros(1, N, dtype=torch.int64)
    batch = LossBatch(ids, ids, None, None, torch.arange(N), labels_N, ())
    objective = load_objective("cross_entropy")
    expected = reference(hidden_NH, linear.weight, labels_N, linear.bias, 5.0, 0.5)
    wanted = torch.autograd.grad(0.25 * expected, (linear.weight, hidden_NH, linear.bias))
    total = objective(hidden_NH, Head(linear, scale=0.5, softcap=5.0, grad_scale=0.25), batch).total
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert linear.weight.grad is not None  # added in the forward pass
    (0.25 * total).backward()
    for found, right in zip((linear.weight.grad, hidden_NH.grad, linear.bias.grad), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    # A copy of the weights is used in its type and in no other.
    doubled = (2 * linear.weight).bfloat16()
    exact = reference(hidden_NH, linear.weight, labels_N, linear.bias)
    assert objective(hidden_NH, Head(linear, copy=doubled), batch).total.item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        total = objective(hidden_NH, Head(linear, copy=doubled), batch).total
    far = reference(hidden_NH, 2 * linear.weight, labels_N, linear.bias)
    assert total.item() == pytest.approx(far.item(), rel=1e-2) != pytest.approx(exact.item(), rel=5e-2)


def test_a_frozen_heads_gradient_is_not_added_either() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    head_VH = head_VH.detach()
    loss(hidden_NH, head_VH, labels_N, head_grad_scale=0.5).backward()
    assert head_VH.grad is None
    assert hidden_NH.grad is not None


def test_weights_in_half_precision_get_gradients_in_their_type() -> None:
    exact = inputs()
    wanted = torch.autograd.grad(reference(exact[0], exact[1], exact[3], exact[2]), exact[:3])
    half = [each.detach().bfloat16().requires_grad_() for each in exact[:3]]
    total = loss(half[0], half[1], exact[3], bias=half[2], chunk=8)
    assert total.dtype == torch.float32
    for found, right in zip(torch.autograd.grad(total, half), wanted, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - right).norm() < 2e-2 * right.norm()


def test_metrics_are_summed_over_the_chunks() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()

    def counted(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
        found = cross_entropy.chunk_loss(logits_CV, targets)
        return found._replace(metrics={"nats": found.total, "positions": found.total.new_tensor(len(logits_CV))})

    output = head_loss(hidden_NH, head_VH, labels_N, counted, chunk=8)
    assert output.metrics["positions"] == N
    torch.testing.assert_close(output.metrics["nats"], output.total.detach())


def test_a_chunk_is_never_smaller_than_64_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_head, "CHUNK_ELEMENTS", V)
    sizes: list[int] = []

    def counted(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
        sizes.append(len(logits_CV))
        return cross_entropy.chunk_loss(logits_CV, targets)

    head_loss(torch.zeros(150, H), torch.zeros(V, H), torch.zeros(150, dtype=torch.int64), counted)
    assert sizes == [64, 64, 22]


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden_NH, head_VH, _, labels_N = inputs()
    total = loss(hidden_NH, head_VH, labels_N)
    (gradient,) = torch.autograd.grad(total**2, hidden_NH, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
