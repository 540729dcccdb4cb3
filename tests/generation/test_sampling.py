"""decoding/sampling.py: filters and penalties as transformers has them, draws by their exact probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from distill_lab.config import SamplingConfig
from distill_lab.generation.decoding import sampling as sampling_module
from distill_lab.generation.decoding.sampling import BLOCK, draw, filter_logits, penalize, uniforms


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.999},
        {"temperature": 0.5, "min_p": 0.2},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.05},
    ],
)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_filters_equal_those_of_transformers(fields: dict[str, float], scale: float) -> None:
    logits_BV = scale * torch.randn(32, 3000, generator=torch.Generator().manual_seed(0))
    sampling = SamplingConfig.model_validate(fields)
    reference = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        reference.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        reference.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        reference.append(MinPLogitsWarper(sampling.min_p))
    expected_BV = reference(torch.zeros(32, 1, dtype=torch.long), logits_BV)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(filter_logits(logits_BV, sampling), expected_BV)


def test_repetition_penalty_equals_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(4, 50, generator=generator)
    ids: Any = torch.randint(0, 50, (4, 20), generator=generator)
    seen_BV = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected_BV = RepetitionPenaltyLogitsProcessor(1.4)(ids, logits_BV.clone())  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(penalize(logits_BV, seen_BV, 1.4), expected_BV)


def test_draws_follow_the_exact_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    numbers = torch.cat([torch.from_numpy(uniforms(0, f"p{row}", 0, block=0)) for row in range(80)])
    tokens = draw(probabilities.log().expand(len(numbers), -1), numbers)
    counts = tokens.bincount(minlength=6)
    assert counts[1] == counts[5] == 0
    kept = probabilities > 0
    expected = probabilities[kept].double() / probabilities.double().sum() * len(numbers)
    assert stats.chisquare(counts[kept].numpy(), expected.numpy()).pvalue > 0.01
    # Successive steps are independent too: pairs follow the products.
    pairs = (tokens[:-1] * 6 + tokens[1:]).bincount(minlength=36).view(6, 6)[kept][:, kept]
    contingency: Any = stats.chi2_contingency(pairs.numpy())
    assert contingency.pvalue > 0.01


def test_many_rows_are_drawn_in_parts_with_the_same_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_BV = 3 * torch.randn(50, 2000, generator=torch.Generator().manual_seed(0))
    uniform_B = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes: list[int] = []

    def counted(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
        sizes.append(logits_BV.numel())
        return draw(logits_BV, uniform_B)

    monkeypatch.setattr(sampling_module, "draw", counted)
    for fields in ({"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "top_k": 20, "top_p": 0.8}):
        sampling = SamplingConfig.model_validate(fields)
        whole = sampling_module.next_tokens(logits_BV, sampling, uniform_B)
        monkeypatch.setattr(sampling_module, "MAX_LOGITS", 14_000)
        sizes.clear()
        assert torch.equal(sampling_module.next_tokens(logits_BV, sampling, uniform_B), whole)
        assert max(sizes) <= 14_000
        assert len(sizes) == 8
        monkeypatch.setattr(sampling_module, "MAX_LOGITS", 1 << 24)


def test_draws_at_the_ends_of_the_interval_have_a_probability() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(3, -1)
    last = 1 - 2**-53
    assert draw(logits_BV, torch.tensor([0.0, 1 / (1 + 2.718), last], dtype=torch.float64)).tolist() == [1, 2, 2]


def test_uniforms_differ_by_every_argument() -> None:
    base = uniforms(0, "a", 0, block=0)
    assert base.shape == (BLOCK,)
    assert (base == uniforms(0, "a", 0, block=0)).all()
    for other in (uniforms(1, "a", 0, block=0), uniforms(0, "b", 0, block=0), uniforms(0, "a", 1, block=0)):
        assert (base != other).all()
    assert (base != uniforms(0, "a", 0, block=1)).all()
