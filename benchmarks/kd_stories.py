"""What logits add to the written token, on a real language model: stories260K teaches a smaller student -> KL and agreement.

stories260K (MIT, 260,032 weights, 512 ids) writes stories by sampling. Students of one size, with the same first weights
for a seed, learn from the same rows for the same number of steps: from the written tokens (SFT), from the whole distribution
(logits), and from a sampled cache of it. Then the mean KL(p, q) to the teacher is taken on stories that nobody trained on.
For the same time, SFT alone is set beside SFT followed by the student's own stories, which the teacher reads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import kd_students as students
from distill_lab.train.cached_teacher import CachedTeacher
from distill_lab.train.capture import capture
from distill_lab.train.loss_module import SignalSource
from distill_lab.train.packing import Row, collate
from distill_lab.train.teacher_cache import CacheIdentity, create
from distill_lab.train.teachers import LiveTeacher

V = 512
"""Ids."""
DRAWS = (64, 12)


def load_stories(path: Path) -> LlamaForCausalLM:
    """stories260K.bin, in llama2.c's first format: 7 int32 (sizes), then fp32 weights kind by kind."""
    dim, inner, layers, heads, kv_heads, vocabulary, context = np.fromfile(path, np.int32, 7).tolist()
    weights, place = np.fromfile(path, np.float32, offset=28), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = int(np.prod(shape))
        found = torch.from_numpy(weights[place : place + size].reshape(shape).copy())
        place += size
        return found

    def rotated(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
        """llama2.c turns neighbors, transformers turns halves: the rows of each head in another order."""
        size = dim // heads
        return weight.view(num_heads, size // 2, 2, dim).transpose(1, 2).reshape(num_heads * size, dim)

    key = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": take(abs(vocabulary), dim)}
    kinds = (
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (key, dim)),
        ("self_attn.v_proj", (key, dim)), ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (inner, dim)), ("mlp.down_proj", (dim, inner)), ("mlp.up_proj", (inner, dim)),
    )  # fmt: skip
    for name, shape in kinds:
        for layer in range(layers):
            weight = take(*shape)
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = rotated(weight, heads if "q_" in name else kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=abs(vocabulary), hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    return model.eval().requires_grad_(False)


class Stories:
    """The teacher as an `Author`."""

    num_ids, start = V, 1

    def __init__(self, path: Path) -> None:
        self._model = load_stories(path)
        self.source = self.live = LiveTeacher(self._model, V)

    def write(self, number: int, seed: int) -> list[Row]:
        """Stories, sampled at temperature 1."""
        torch.manual_seed(seed)
        return students.sample(self._model, number, self.start)

    @torch.no_grad()
    def log_p(self, ids_BW: torch.Tensor) -> torch.Tensor:
        """[B, W, V]"""
        return self._model(input_ids=ids_BW).logits.log_softmax(-1)


def stories_part(data: Path, *, seeds: int, steps: int) -> dict[str, Any]:
    """KL to the teacher from each kind of target at equal steps, and its nats at what students write at equal time."""
    author = Stories(data / "weights" / "stories260K" / "stories260K.bin")
    found: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {"sft": [], "on_policy": []}
    entropies, num_bytes = [], []
    for seed in range(seeds):
        rows = author.write(min(students.MAX_ROWS, steps * students.BATCH), seed)
        test = collate([[row] for row in author.write(students.HELD_OUT, 1000 + seed)])
        targets: dict[str, SignalSource | None] = {"sft": None, "logits": author.live}
        with tempfile.TemporaryDirectory() as folder:
            for draws in DRAWS:
                identity = CacheIdentity("sampled", draws, 1.0, seed, V, "stories260K", "stories260K", "stories260K")
                cache = create(Path(folder) / str(draws), identity, rows)
                capture(author.live, rows, cache, tokens_per_batch=4096)
                targets[f"cached {draws}"] = CachedTeacher(cache, V)
                stored = cache.read([row.id for row in rows])
                if draws == DRAWS[0]:
                    entropies.append(float(stored.entropy_R.sum() / stored.positions_R.sum()))
                    num_bytes.append(len(stored.data) / int(stored.positions_R.sum()))
            for name, target in targets.items():
                student = students.a_student(seed, V)
                objective = "cross_entropy" if target is None else "forward_kl"
                taken = students.train(student, students.given(rows), steps=steps, objective=objective, teacher=target)
                kl, alike = students.distance(author, student.eval(), test)
                found.setdefault(name, []).append(kl)
                print(f"seed {seed}, {name:10} KL {kl:.4f}, same best id {alike:.3f}, {taken:.0f} s", flush=True)
        nats = students.on_policy_after(author, seed, rows, steps=steps)
        print(f"seed {seed}, own text: {', '.join(f'{name} {value:.4g}' for name, value in nats.items())}", flush=True)
        for name, values in own.items():
            values.append(nats[name])
    result: dict[str, Any] = {f"stories_kl_{name.replace(' ', '_')}": values for name, values in found.items()}
    result |= {f"stories_nats_{name}": values for name, values in own.items()}
    result |= {"stories_entropy_nats": mean(entropies), "stories_cache_bytes_per_token": mean(num_bytes)}
    result |= {f"stories_logits_{key}": value for key, value in students.paired(found["logits"], found["sft"]).items()}
    result |= {
        f"stories_on_policy_{key}": value for key, value in students.paired(own["on_policy"], own["sft"]).items()
    }
    for draws in DRAWS:
        apart = [left - right for left, right in zip(found[f"cached {draws}"], found["logits"], strict=True)]
        result[f"stories_cached_{draws}_distance_nats"] = apart
    return {
        name: [round(each, 4) for each in value] if isinstance(value, list) else value for name, value in result.items()
    }
