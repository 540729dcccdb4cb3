"""What logits add to the written token, on a real language model: stories260K teaches a smaller student -> KL and agreement.

stories260K (MIT, 260,032 weights, 512 ids) writes stories by sampling. Students of one size, with the same first weights
for a seed, learn from the same rows for the same number of steps: from the written tokens (SFT), from the whole distribution
(logits), and from a sampled cache of it. Then the mean KL(p, q) to the teacher is taken on stories that nobody trained on.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill_lab.train import loss_module
from distill_lab.train.cached_teacher import CachedTeacher
from distill_lab.train.capture import capture
from distill_lab.train.objectives import LossBatch, load_objective
from distill_lab.train.packing import Row, collate
from distill_lab.train.teacher_cache import CacheIdentity, create
from distill_lab.train.teachers import LiveTeacher

V, LENGTH, BATCH = 512, 128, 16
"""Ids; tokens of a row; rows of a step."""
HELD_OUT = 64
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


def written(teacher: LlamaForCausalLM, number: int, seed: int) -> list[Row]:
    """Stories of the teacher, sampled at temperature 1; all but the first token is trained."""
    torch.manual_seed(seed)
    model: Any = teacher
    start = torch.ones(number, 1, dtype=torch.int64)
    ids = model.generate(
        start, do_sample=True, temperature=1.0, top_k=0, min_new_tokens=LENGTH, max_new_tokens=LENGTH, pad_token_id=2
    )
    rows = ids.numpy().astype(np.int32)
    return [Row(row[:-1], row[1:], np.ones(LENGTH, bool)) for row in rows]


def a_student(seed: int) -> LlamaForCausalLM:
    """Two layers of half the teacher's width."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        )
    )  # fmt: skip


def train(student: Any, rows: list[Row], *, steps: int, objective: str, teacher: Any = None) -> float:
    """Train in place; returns CPU seconds."""
    loss_module.install(student, load_objective(objective), teacher=teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3, weight_decay=0.0)
    start = time.process_time()
    for step in range(steps):
        part = [rows[index % len(rows)] for index in range(step * BATCH, (step + 1) * BATCH)]
        batch = collate([[row] for row in part])
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps)
        (student(batch).total / len(batch.labels_N)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    loss_module.uninstall(student)
    return time.process_time() - start


@torch.no_grad()
def distance(teacher: Any, student: Any, batch: LossBatch) -> tuple[float, float]:
    """Mean KL(p, q) in nats, and the share of tokens at which both have the same most likely id."""
    ids = batch.input_ids_BW
    log_p, log_q = (model(input_ids=ids).logits.log_softmax(-1) for model in (teacher, student))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    return kl, (log_p.argmax(-1) == log_q.argmax(-1)).float().mean().item()


def quality_part(data: Path, *, seeds: int, steps: int) -> dict[str, Any]:
    """KL to the teacher of students from each kind of target, over several seeds."""
    teacher = load_stories(data / "weights" / "stories260K" / "stories260K.bin")
    live = LiveTeacher(teacher, V)
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    nats, num_bytes = [], []
    for seed in range(seeds):
        rows = written(teacher, steps * BATCH, seed)
        test = collate([[row] for row in written(teacher, HELD_OUT, 1000 + seed)])
        targets: dict[str, Any] = {"sft": None, "logits": live}
        with tempfile.TemporaryDirectory() as folder:
            for draws in DRAWS:
                identity = CacheIdentity("sampled", draws, 1.0, seed, V, "stories260K", "stories260K", "stories260K")
                cache = create(Path(folder) / str(draws), identity, rows)
                capture(live, rows, cache, tokens_per_batch=4096)
                targets[f"cached {draws}"] = CachedTeacher(cache, V)
                stored = cache.read([row.id for row in rows])
                if draws == DRAWS[0]:
                    nats.append(float(stored.entropy_R.sum() / stored.positions_R.sum()))
                    num_bytes.append(len(stored.data) / int(stored.positions_R.sum()))
            for name, target in targets.items():
                student = a_student(seed)
                taken = train(
                    student,
                    rows,
                    steps=steps,
                    objective="cross_entropy" if target is None else "forward_kl",
                    teacher=target,
                )
                kl, alike = distance(teacher, student.eval(), test)
                found.setdefault(name, []).append(kl)
                seconds.setdefault(name, []).append(taken)
                print(f"seed {seed}, {name:10} KL {kl:.4f}, same best id {alike:.3f}, {taken:.0f} s", flush=True)
    gain = [left - right for left, right in zip(found["sft"], found["logits"], strict=True)]
    result: dict[str, Any] = {f"stories_kl_{name.replace(' ', '_')}": values for name, values in found.items()}
    result |= {
        "stories_entropy_nats": mean(nats),
        "stories_cache_bytes_per_token": mean(num_bytes),
        "stories_logits_gain_nats": mean(gain),
        "stories_logits_gain_t": mean(gain) / (stdev(gain) / len(gain) ** 0.5) if seeds > 1 else None,
    }
    for draws in DRAWS:
        apart = [left - right for left, right in zip(found[f"cached {draws}"], found["logits"], strict=True)]
        result[f"stories_cached_{draws}_distance_nats"] = apart
    return {
        name: [round(each, 4) for each in value] if isinstance(value, list) else value for name, value in result.items()
    }
