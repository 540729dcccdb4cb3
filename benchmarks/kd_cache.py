"""Bytes and decoding speed of a sampled teacher cache at given entropies: an n-gram model of real text -> figures.

The teacher is a bigram model with a unigram model under it, of the Qwen2.5 tokens of all texts in the shared data, sharpened
until its mean entropy on held-out text is as asked. It is not a language model: its tail is that of word counts. Labels are
drawn from it, as if it had written the text.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill_lab.train.cache_format import PAD, Counts, Vocabulary, decode_draws, encode_draws
from distill_lab.train.capture import systematic

V = 151_936
ENTROPIES = (0.3, 0.8, 1.5, 2.3)
NUM_DRAWS = 64
POSITIONS, ROW = 1500, 125
"""Held-out positions, and those of a row."""


def tokens_of(data: Path) -> np.ndarray:
    """The Qwen2.5 tokens of the texts in the shared data."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers" / "qwen2.5")
    texts = [(data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:400_000]]
    for path in sorted([*data.glob("math/*.jsonl"), *data.glob("instructions/*.jsonl"), *data.glob("cot/*.json*")]):
        texts.append(path.read_text(encoding="utf-8")[:400_000])
    return np.concatenate([np.array(tokenizer(text)["input_ids"], np.int64) for text in texts])


class Bigram:
    """Probabilities of the next token, given the last one."""

    def __init__(self, tokens: np.ndarray) -> None:
        pairs, counts = np.unique(tokens[:-1] * V + tokens[1:], return_counts=True)
        self.first, self.second, self.counts = pairs // V, pairs % V, counts.astype(np.float64)
        self.starts = np.searchsorted(self.first, np.arange(V + 1))
        self.unigram = torch.from_numpy(np.bincount(tokens, minlength=V) / len(tokens))

    def log_p(self, last: np.ndarray) -> torch.Tensor:
        """[P, V], fp64."""
        p_PV = 0.1 * self.unigram.repeat(len(last), 1)
        for row, token in enumerate(last.tolist()):
            inside = slice(self.starts[token], self.starts[token + 1])
            if inside.stop > inside.start:
                counts = torch.from_numpy(self.counts[inside])
                p_PV[row, torch.from_numpy(self.second[inside])] += 0.9 * counts / counts.sum()
        return p_PV.clamp_min_(1e-12).log_()


def sharpened(log_p_PV: torch.Tensor, power: float) -> torch.Tensor:
    """Probabilities, fp32."""
    return torch.softmax(log_p_PV * power, -1).float()


def entropy(p_PV: torch.Tensor) -> float:
    """Mean over the positions, in nats."""
    return torch.special.entr(p_PV).sum(1).mean().item()


def power_for(log_p_PV: torch.Tensor, nats: float) -> float:
    """The power whose mean entropy is `nats`."""
    low, high = 0.3, 30.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if entropy(sharpened(log_p_PV, middle)) > nats else (low, middle)
    return (low * high) ** 0.5


def cache_part(data: Path) -> dict[str, Any]:
    """Bytes per position, decoded positions per second and distinct ids at each entropy."""
    tokens = tokens_of(data)
    held_out, known = tokens[-20_000:], tokens[:-20_000]
    model = Bigram(known)
    vocabulary = Vocabulary.by_frequency(np.bincount(known, minlength=V))
    random = np.random.default_rng(0)
    last = held_out[random.integers(0, len(held_out), POSITIONS)]
    found: dict[str, Any] = {"cache_ngram_tokens": len(known)}
    sample = model.log_p(last[:64])
    for nats in ENTROPIES:
        power, blobs, parts, entropies = power_for(sample, nats), [], [], []
        for start in range(0, POSITIONS, ROW):
            p_PV = sharpened(model.log_p(last[start : start + ROW]), power)
            labels = torch.multinomial(p_PV, 1, generator=torch.Generator().manual_seed(start))[:, 0]
            uniform = torch.from_numpy(random.random(len(p_PV)))
            parts.append(systematic(p_PV, uniform, NUM_DRAWS, labels))
            blobs.append(encode_draws(parts[-1], vocabulary))
            entropies.append(entropy(p_PV))
        size = sum(map(len, blobs))
        speed = decoding_speed(blobs, vocabulary)
        ids = sum(len(part.ids_M) for part in parts) / POSITIONS
        name = f"{np.mean(entropies):.2f}"
        print(f"{name} nats: {size / POSITIONS:.2f} B/token, {ids:.2f} other ids, {speed / 1e6:.2f} M tokens/s")
        key = str(nats).replace(".", "_")
        found |= {f"cache_bytes_per_token_{key}_nats": size / POSITIONS, f"cache_tokens_per_s_{key}_nats": speed}
        check(parts, blobs, vocabulary)
    found["cache_tokens_per_s"] = found["cache_tokens_per_s_1_5_nats"]
    return json.loads(json.dumps(found))


def decoding_speed(blobs: list[bytes], vocabulary: Vocabulary) -> float:
    """Positions per CPU second, decoding about 8,000 at once as a training step does."""
    blobs = blobs * (8192 // POSITIONS)
    ends = np.cumsum([len(blob) for blob in blobs])
    data = np.frombuffer(b"".join(blobs) + bytes(PAD), np.uint8)
    starts, positions = ends - [len(blob) for blob in blobs], np.full(len(blobs), ROW)
    best = float("inf")
    for _ in range(12):
        start = time.process_time()
        decode_draws(data, starts, positions, vocabulary)
        best = min(best, time.process_time() - start)
    return int(positions.sum()) / best


def check(parts: list[Counts], blobs: list[bytes], vocabulary: Vocabulary) -> None:
    """What was written is what is read."""
    for part, blob in zip(parts, blobs, strict=True):
        data = np.frombuffer(blob + bytes(PAD), np.uint8)
        found = decode_draws(data, np.zeros(1, np.int64), np.array([len(part.sizes_P)]), vocabulary)
        assert (found.sizes_P == part.sizes_P).all()
        assert found.ids_M.sum() == part.ids_M.sum()
        assert found.counts_M.sum() == part.counts_M.sum()
