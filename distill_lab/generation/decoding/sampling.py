"""Sample a token from next-token logits: penalty, temperature, filters, and a draw that does not depend on the batch.

Data in: logits_BV (B rows of a batch, V vocabulary), a SamplingConfig and one uniform number per row. Data out: next_B.
The filters match the logits processors of transformers, in its order: repetition penalty, temperature, top_k, top_p,
min_p. The draw inverts the cumulative distribution at a number determined only by (seed, prompt id, sample, step), so a
prompt gets the same completion alone, in any batch, and after a resume.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from distill_lab.config import SamplingConfig

BLOCK = 256
"""Number of uniform numbers generated at once for a row."""
HEAD = 128
"""top_p looks at this many most likely tokens first, then at eight times as many if their probability is too low."""

MAX_LOGITS = 1 << 24
"""Maximum number of logits to filter and sample from at once."""


def uniforms(seed: int, prompt_id: str, sample: int, *, block: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for steps block*BLOCK .. (block+1)*BLOCK-1 of one completion, float64 [BLOCK].

    Philox (Salmon et al. 2011) keyed by a hash of the arguments, so there is no random state to restore.
    """
    name = json.dumps([seed, prompt_id, sample, block]).encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(BLOCK)


def penalize(logits_BV: torch.Tensor, seen_BV: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive logits of seen tokens by `penalty`, multiply negative ones by it (Keskar et al. 2019)."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def filter_logits(logits_BV: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Logits after temperature (above 0), top_k, top_p and min_p; -inf for removed tokens."""
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[1]:
        logits_BV = _cut(logits_BV, logits_BV.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p < 1:
        logits_BV = _cut(logits_BV, _top_p_floor(logits_BV, sampling.top_p, size=sampling.top_k or HEAD))
    if sampling.min_p > 0:
        logits_BV = _cut(logits_BV, logits_BV.amax(1, keepdim=True) + float(np.log(sampling.min_p)))
    return logits_BV


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token of each row at its uniform number: smallest v whose cumulative probability exceeds it. int64 [B].

    In vocabulary order and float64: a difference in the last bits of the logits changes the token only with a
    probability of the same size, while sorting by probability would swap nearly equal tokens.
    """
    mass_BV = logits_BV.softmax(1, dtype=torch.float32).double().cumsum(1)
    # Below the total, so that rounding cannot select anything after the last possible token.
    target_B1 = uniform_B[:, None].clamp(max=1 - 1e-12) * mass_BV[:, -1:]
    return torch.searchsorted(mass_BV, target_B1, right=True)[:, 0]


def next_tokens(logits_BV: torch.Tensor, sampling: SamplingConfig, uniform_B: torch.Tensor | None) -> torch.Tensor:
    """The most likely token of each row at temperature 0, otherwise a draw at `uniform_B`. int64 [B]."""
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    assert uniform_B is not None
    if logits_BV.device.type == "mps":  # has no float64
        return draw(filter_logits(logits_BV.float().cpu(), sampling), uniform_B.cpu()).to(logits_BV.device)
    # Some rows at a time: filters and draws use several fp64 tensors of this size, 1.2 GB each for 1,024 rows of a Qwen.
    size = max(1, MAX_LOGITS // logits_BV.shape[1])
    parts = zip(logits_BV.split(size), uniform_B.split(size), strict=True)
    return torch.cat([draw(filter_logits(part_BV.float(), sampling), part_B) for part_BV, part_B in parts])


def _cut(logits_BV: torch.Tensor, floor_B1: torch.Tensor) -> torch.Tensor:
    return logits_BV.masked_fill(logits_BV < floor_B1, -torch.inf)


def _top_p_floor(logits_BV: torch.Tensor, top_p: float, *, size: int) -> torch.Tensor:
    """The logit of the last token kept: a token is kept while those above it have not reached `top_p`. [B, 1].

    size: how many of the most likely tokens to look at first. Sorting the whole vocabulary would cost more than the model.
    """
    # float64: near 1, fp32 cumulative probabilities are coarser than the probabilities of the tokens in question.
    whole_B1 = logits_BV.double().logsumexp(1, keepdim=True)
    vocabulary = logits_BV.shape[1]
    while True:
        top_BK = logits_BV.topk(min(size, vocabulary)).values
        mass_BK = (top_BK - whole_B1).exp().cumsum(1)
        if size >= vocabulary or bool((mass_BK[:, -1] >= top_p).all()):
            break
        size *= 8
    num_kept_B1 = 1 + (mass_BK[:, :-1] < top_p).sum(1, keepdim=True)
    return top_BK.gather(1, num_kept_B1 - 1)
