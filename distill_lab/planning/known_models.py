"""Configs of the models in presets and documents, so that memory can be estimated without a network.

A hub id -> the fields of its config.json that determine its size, as published by Qwen (Apache-2.0 or the Qwen licenses).
"""

from __future__ import annotations

from distill_lab.types import JsonObject

_QWEN25 = {"model_type": "qwen2", "vocab_size": 151_936, "max_position_embeddings": 32_768, "use_sliding_window": False}
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "head_dim": 128,
    "use_sliding_window": False,
}


def _sizes(
    family: JsonObject, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool, **more: object
) -> JsonObject:
    return {
        **family,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        **more,
    }


_BY_SIZE = {
    "Qwen2.5-0.5B": _sizes(_QWEN25, 896, 4864, 24, 14, 2, tied=True),
    "Qwen2.5-1.5B": _sizes(_QWEN25, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen2.5-3B": _sizes(_QWEN25, 2048, 11008, 36, 16, 2, tied=True),
    "Qwen2.5-7B": _sizes(_QWEN25, 3584, 18944, 28, 28, 4, tied=False, vocab_size=152_064),
    "Qwen2.5-14B": _sizes(_QWEN25, 5120, 13824, 48, 40, 8, tied=False, vocab_size=152_064),
    "Qwen2.5-32B": _sizes(_QWEN25, 5120, 27648, 64, 40, 8, tied=False, vocab_size=152_064),
    "Qwen2.5-72B": _sizes(_QWEN25, 8192, 29568, 80, 64, 8, tied=False, vocab_size=152_064),
    "Qwen3-0.6B": _sizes(_QWEN3, 1024, 3072, 28, 16, 8, tied=True),
    "Qwen3-1.7B": _sizes(_QWEN3, 2048, 6144, 28, 16, 8, tied=True),
    "Qwen3-4B": _sizes(_QWEN3, 2560, 9728, 36, 32, 8, tied=True),
    "Qwen3-8B": _sizes(_QWEN3, 4096, 12288, 36, 32, 8, tied=False),
    "Qwen3-14B": _sizes(_QWEN3, 5120, 17408, 40, 40, 8, tied=False),
    "Qwen3-32B": _sizes(_QWEN3, 5120, 25600, 64, 64, 8, tied=False),
    "Qwen3-30B-A3B": _sizes(
        _QWEN3, 2048, 6144, 48, 32, 4, tied=False,
        model_type="qwen3_moe", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
}  # fmt: skip
_LONG = {"max_position_embeddings": 262_144}
_CONFIGS: dict[str, JsonObject] = {
    **{
        f"Qwen/{size}{kind}": fields for size, fields in _BY_SIZE.items() for kind in ("", "-Instruct") if "2.5" in size
    },
    **{f"Qwen/{size}": fields for size, fields in _BY_SIZE.items() if "Qwen3" in size},
    "Qwen/Qwen2.5-Math-1.5B-Instruct": {**_BY_SIZE["Qwen2.5-1.5B"], "max_position_embeddings": 4096},
    "Qwen/Qwen2.5-Math-7B-Instruct": {**_BY_SIZE["Qwen2.5-7B"], "max_position_embeddings": 4096},
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": _BY_SIZE["Qwen2.5-0.5B"],
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": _BY_SIZE["Qwen2.5-1.5B"],
    "Qwen/Qwen2.5-Coder-7B-Instruct": _BY_SIZE["Qwen2.5-7B"],
    "Qwen/Qwen3-4B-Instruct-2507": {**_BY_SIZE["Qwen3-4B"], **_LONG},
    "Qwen/Qwen3-4B-Thinking-2507": {**_BY_SIZE["Qwen3-4B"], **_LONG},
    "Qwen/Qwen3-30B-A3B-Instruct-2507": {**_BY_SIZE["Qwen3-30B-A3B"], **_LONG},
    "Qwen/Qwen3-30B-A3B-Thinking-2507": {**_BY_SIZE["Qwen3-30B-A3B"], **_LONG},
}


def config_of(name: str) -> JsonObject | None:
    """The fields of a known model's config, including `model_type`; None for any other name."""
    found = _CONFIGS.get(name)
    return dict(found) if found is not None else None


def known_models() -> tuple[str, ...]:
    """The hub ids with a config here."""
    return tuple(_CONFIGS)
