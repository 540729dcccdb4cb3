"""GPU checks of generation: the same tokens on every path, limits of memory, int8, and the figures of speed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.control_tokens import split_thinking
from distill_lab.device import free_memory
from distill_lab.generation.decoding.sampling import filter_logits, next_tokens
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model, resolve_precision
from distill_lab.types import Completion, Prompt
from tests.gpu import shapes
from tests.gpu.checks import Setting, check


def by_id(rows: Sequence[Completion]) -> dict[str, Completion]:
    """Completions by prompt; every prompt once."""
    found = {row.id: row for row in rows}
    assert len(found) == len(rows), "a prompt was answered twice"
    return found


def timed(setting: Setting, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the result of `run`."""
    if setting.on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if setting.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@check("dtype")
def dtype(setting: Setting) -> dict[str, Any]:
    """The dtype of the device, and `distill doctor` without a GPU that torch can see."""
    expected = {"cuda": (torch.bfloat16, torch.float16), "cpu": (torch.float32,)}[setting.device.type]
    assert setting.dtype in expected
    command = [sys.executable, "-m", "distill_lab.cli", "doctor"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert ("torch sees none, the driver sees" in said) == setting.on_gpu
    return {"dtype": str(setting.dtype)}


def _hugging_face(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int, size: int) -> list[list[int]]:
    """What transformers' own `generate` makes, `size` prompts padded to one length at a time."""
    tokenizer: Any = engine.tokenizer
    model: Any = engine.model
    made = []
    for first in range(0, len(prompts), size):
        part = [row.messages for row in prompts[first : first + size]]
        texts = tokenizer.apply_chat_template(part, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            rows = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
            )
        made += rows[:, inputs["input_ids"].shape[1] :].tolist()
    return made


def _first_difference(one: Sequence[int], two: Sequence[int]) -> bool:
    return list(one) != list(two)


@check("flat-vs-generate")
def flat_vs_generate(setting: Setting) -> dict[str, Any]:
    """Greedy tokens without padding differ from those of one row at a time no more often than a padded batch's do."""
    number, tokens = (8, 12) if setting.small else (64, 64)
    model = shapes.build("qwen2.5-0.5b", small=setting.small, device=setting.device, dtype=setting.dtype)
    engine = TransformersEngine(model, shapes.load_tokenizer())
    rows = shapes.prompts(number, most_words=30 if setting.small else 200)
    alone = _hugging_face(engine, rows, tokens, 1)
    batched = _hugging_face(engine, rows, tokens, 16)
    found = by_id(_exactly(engine, rows, tokens))
    flat = 0
    for row, expected in zip(rows, alone, strict=True):
        text = split_thinking(engine.io.text(expected))
        flat += (found[row.id].thinking, found[row.id].content) != text
    padded = sum(one != other for one, other in zip(alone, batched, strict=True))
    assert flat <= max(padded, 0.02 * number), f"{flat} of {number} differ, {padded} in padded batches"
    return {"differ_flat": flat, "differ_padded": padded, "prompts": number}


@check("padded-batches")
def padded_batches(setting: Setting) -> dict[str, Any]:
    """Models that cannot be decoded without padding answer every prompt, however small the batches."""
    tokenizer = shapes.load_tokenizer()
    common: dict[str, Any] = {
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        **{"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id},
    }
    linear: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    experts: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
    made: dict[str, Any] = {
        "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=16)),
        "qwen 3.5": lambda: Qwen3_5ForCausalLM(Qwen3_5TextConfig(**common, **linear)),
        "qwen 3 next": lambda: Qwen3NextForCausalLM(
            Qwen3NextConfig(**common, **linear, **experts, num_experts=4, shared_expert_intermediate_size=16)
        ),
        "gpt-oss": lambda: GptOssForCausalLM(
            GptOssConfig(**common, num_experts_per_tok=2, num_local_experts=4, sliding_window=16)
        ),
    }
    found = {}
    for name, build in made.items():
        torch.manual_seed(0)
        engine = TransformersEngine(build().eval().to(setting.device), tokenizer, batch_size=2)
        rows = shapes.prompts(9, most_words=12)
        found[name] = len(by_id(list(engine.generate(rows, SamplingConfig(max_new_tokens=6)))))
    assert found == dict.fromkeys(made, 9)
    return found


@check("spread")
def spread(setting: Setting) -> dict[str, Any]:
    """A model spread over several GPUs answers every prompt."""
    if torch.cuda.device_count() < 2:
        return {"skipped": f"{torch.cuda.device_count()} GPUs, two are needed"}
    from transformers import AutoModelForCausalLM

    path = shapes.folder("qwen2.5-0.5b", setting.scratch, small=True, device=setting.device, dtype=setting.dtype)
    limits = {0: "200KB", 1: "10GB"}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=setting.dtype, device_map="auto", max_memory=limits)
    engine = TransformersEngine(model.eval(), shapes.load_tokenizer(), batch_size=2)
    found = by_id(list(engine.generate(shapes.prompts(9), SamplingConfig(max_new_tokens=8))))
    assert len(found) == 9
    return {"answers": len(found)}


def _exactly(engine: TransformersEngine, rows: Sequence[Prompt], tokens: int) -> list[Completion]:
    """Answers of so many tokens each."""
    return list(engine.generate(rows, SamplingConfig(max_new_tokens=tokens), min_new_tokens=tokens))


@check("decode-speed")
def decode_speed(setting: Setting) -> dict[str, Any]:
    """Milliseconds a token takes at several batch sizes, and how the two ends of a distillation compare."""
    sizes, tokens = ((1, 4), 4) if setting.small else ((1, 8, 64, 256, 1024), 128)
    table: dict[str, Any] = {}
    engine = None
    for shape in ("qwen2.5-7b", "qwen2.5-0.5b"):
        model = shapes.build(shape, small=setting.small, device=setting.device, dtype=setting.dtype)
        for size in sizes:
            engine = TransformersEngine(model, shapes.load_tokenizer(), batch_size=size)
            rows = shapes.prompts(size, most_words=40)
            list(engine.generate(rows[:1], SamplingConfig(max_new_tokens=2), min_new_tokens=2))
            seconds, made = timed(setting, partial(_exactly, engine, rows, tokens))
            assert all(row.num_tokens == tokens for row in made)
            table[f"{shape}, {size} rows"] = round(1e3 * seconds / tokens, 2)
        del model
        engine = None
        free_memory()
    return {"ms_per_step": table}


@check("top-p")
def top_p(setting: Setting) -> dict[str, Any]:
    """Nucleus sampling over a whole batch: tokens of the nucleus only, and what it takes beside greedy."""
    size = (8, 1280) if setting.small else (1024, shapes.VOCABULARY)
    torch.manual_seed(0)
    logits_BV = 3 * torch.randn(size, device=setting.device)
    uniform_B = torch.rand(size[0], dtype=torch.float64, device=setting.device)
    nucleus, greedy = SamplingConfig(temperature=1.0, top_p=0.9), SamplingConfig()
    seconds, token_B = {}, torch.empty(0)
    for name, sampling, numbers in (("greedy", greedy, None), ("top-p", nucleus, uniform_B)):
        next_tokens(logits_BV, sampling, numbers)
        seconds[name], token_B = timed(
            setting, lambda sampling=sampling, numbers=numbers: next_tokens(logits_BV, sampling, numbers)
        )
    kept_BV = filter_logits(logits_BV, nucleus)
    assert bool(torch.isfinite(kept_BV.gather(1, token_B[:, None])).all())
    return {"ms": {name: round(1e3 * each, 2) for name, each in seconds.items()}}


@check("prefix-speed")
def prefix_speed(setting: Setting) -> dict[str, Any]:
    """A long beginning that all prompts share is computed once: the same answers as without sharing, and sooner."""
    number, words, tokens = (6, 60, 6) if setting.small else (512, 1200, 16)
    model = shapes.build("qwen2.5-0.5b", small=setting.small, device=setting.device, dtype=setting.dtype)
    engine = TransformersEngine(model, shapes.load_tokenizer())
    rules = {"role": "system", "content": " ".join(shapes.WORDS[place % 11] for place in range(words))}
    rows = [Prompt(row.id, [rules, *row.messages]) for row in shapes.prompts(number, most_words=8)]
    shared_s, shared = timed(setting, lambda: by_id(_exactly(engine, rows, tokens)))
    engine.__dict__["_in_order"] = deque
    apart_s, apart = timed(setting, lambda: by_id(_exactly(engine, rows, tokens)))
    differ = sum(shared[row.id].content != apart[row.id].content for row in rows)
    assert differ <= 0.1 * number
    return {"seconds_shared": round(shared_s, 2), "seconds_apart": round(apart_s, 2), "differ": differ}


@check("kv-oom")
def kv_oom(setting: Setting) -> dict[str, Any]:
    """In little memory batches shrink: every prompt is answered once, with the tokens it has in much memory."""
    number, tokens = (4, 16) if setting.small else (96, 1024)
    model = shapes.build("qwen2.5-0.5b", small=setting.small, device=setting.device, dtype=setting.dtype)
    rows = shapes.prompts(number, most_words=20)

    def answers() -> dict[str, Completion]:
        return by_id(_exactly(TransformersEngine(model, shapes.load_tokenizer()), rows, tokens))

    free = answers()
    free_memory()
    with setting.limited(3_000_000_000):
        little = answers()
    assert little.keys() == free.keys() == {row.id for row in rows}
    assert all(row.num_tokens == tokens for row in little.values())
    return {"differ": sum(little[name].content != free[name].content for name in free)}


@check("int8-7b")
def int8(setting: Setting) -> dict[str, Any]:
    """A 7B in 8 bits takes half the memory while and after it is loaded, and is decoded without padding."""
    path = shapes.folder("qwen2.5-7b", setting.scratch, small=setting.small, device=setting.device, dtype=setting.dtype)
    setting.reset_peak()
    model, tokenizer = load_model(ModelConfig(model=str(path), quantization="8bit"))
    loading, held = setting.peak_bytes(), torch.cuda.memory_allocated() if setting.on_gpu else 0
    engine = TransformersEngine(model, tokenizer)
    number = 4 if setting.small else 64
    seconds, made = timed(
        setting, lambda: list(engine.generate(shapes.prompts(number), SamplingConfig(max_new_tokens=16)))
    )
    assert len(by_id(made)) == number
    if setting.on_gpu:
        assert loading < 1.25 * held, (loading, held)
        assert held < 1.3 * model.num_parameters()
    return {
        "held_gb": held / 1e9,
        "loading_gb": loading / 1e9,
        "tokens_per_s": sum(r.num_tokens for r in made) / seconds,
    }


@check("auto-stable")
def auto_stable(setting: Setting) -> dict[str, Any]:
    """What `auto` means does not depend on what torch keeps of memory that was freed."""
    path = shapes.folder(
        "qwen2.5-1.5b", setting.scratch, small=setting.small, device=setting.device, dtype=setting.dtype
    )
    model = ModelConfig(model=str(path))
    before = resolve_precision(model)
    if setting.on_gpu:
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(int(0.9 * free), dtype=torch.uint8, device=setting.device)
        during = resolve_precision(model)
        del held
        assert during == before
    assert resolve_precision(model) == before
    return {"quantization": before.quantization, "dtype": before.dtype}
