"""Qwen2 and Qwen3 as GGUF: a Hugging Face model directory -> FILE.gguf in F16 or Q8_0, one tensor in memory at a time.

    write_gguf(Path("student"), Path("student-Q8_0.gguf"), "Q8_0", name="student")

The names of the tensors are the gguf package's own table. Vectors (norms, biases) stay in fp32; matrices are written in the
type that was requested. Matrices whose rows a type cannot divide into blocks are written in F16, as llama.cpp does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from distill_lab import activity
from distill_lab.errors import UserError
from distill_lab.files.outputs import writing
from distill_lab.types import JsonObject

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

ARCHITECTURES = {"qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type of a config -> the architecture's name in the gguf package."""
TYPES = ("F16", "Q8_0")
"""Types that are written here; others are made from F16 by llama.cpp's quantizer."""
Q8_BLOCK = 32
"""Weights that share a scale in Q8_0."""


class RopeFields(TypedDict, total=False):
    """A rotary embedding in a config.json; `type` in older versions."""

    rope_type: str
    type: str
    rope_theta: float
    factor: float
    original_max_position_embeddings: int


class _Sizes(TypedDict):
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float


class ModelFields(_Sizes, total=False):
    """A config.json of Qwen2 or Qwen3, as far as it is read here."""

    head_dim: int | None
    num_key_value_heads: int | None
    tie_word_embeddings: bool
    rope_theta: float
    rope_parameters: RopeFields | None
    rope_scaling: RopeFields | None
    use_sliding_window: bool
    attention_bias: bool
    hidden_act: str
    quantization_config: JsonObject


def check_convertible(folder: Path) -> ModelFields:
    """The config of the model in `folder`. Raises UserError, with the remedy, for a model that is not converted here."""
    config: ModelFields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    rope = _rope(config)
    reasons = {
        f"it is a {kind} model, and the lab converts {' and '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
        "its weights are quantized": "quantization_config" in config,
        "it uses a sliding window": bool(config.get("use_sliding_window")),
        "its attention has biases that GGUF has no place for": kind == "qwen3" and bool(config.get("attention_bias")),
        f"its rotary embedding is scaled by {rope.type}": rope.type not in ("default", "linear", "yarn"),
        f"its rotary embedding is scaled ({rope.type}) by no factor": rope.type != "default" and rope.factor is None,
        f"its activation is {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(
                f"{folder}: {reason}; export it with `--to safetensors` and convert that directory with "
                "convert_hf_to_gguf.py of llama.cpp"
            )
    return config


def write_gguf(folder: Path, path: Path, kind: str, *, name: str) -> None:
    """Write the model in `folder` to `path`. kind: one of TYPES. name: what programs show. Raises UserError."""
    import gguf
    from transformers import AutoTokenizer, GenerationConfig

    from distill_lab.export._gguf_vocab import add_vocabulary

    config = check_convertible(folder)
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture.lower())
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = None
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    add_vocabulary(writer, tokenizer, generation, size=config["vocab_size"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], config["num_hidden_layers"])
    places: dict[str, str] = {}
    for tensor, shape in _shapes(folder).items():
        if tensor == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue  # the embedding's own weights
        place = table.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise UserError(f"{folder}: {tensor} has no place in a GGUF file of this architecture")
        places[tensor] = place
        raw = _type_of(shape, kind)
        nbytes = _num_bytes(shape, raw)
        writer.add_tensor_info(place, shape, _numpy_type(raw), nbytes, raw_dtype=raw)
    _check_complete(folder, config, set(places.values()))
    with writing(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, (tensor, weight) in enumerate(_weights(folder, places), 1):
            activity.report(f"writing {path.name}, tensors:", number, len(places))
            writer.write_tensor_data(_packed(weight, _type_of(weight.shape, kind), f"{folder}: {tensor}"))
        writer.close()


def unpacked(path: Path, folder: Path) -> PreTrainedModel:
    """The model in fp32 that the weights in a file written here stand for. folder: the model it was made from.

    Raises UserError if the file lacks weights, or has others.
    """
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]], config.num_hidden_layers)
    names = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in model.state_dict()}
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        state[names.get(tensor.name, tensor.name)] = torch.from_numpy(weight.copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        raise UserError(f"{path}: it lacks {missing[:1]} or has {unexpected[:1]}, which the model has not")
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval().requires_grad_(False)


def _add_sizes(writer: GGUFWriter, config: ModelFields) -> None:
    import gguf

    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = _rope(config)
    writer.add_rope_freq_base(rope.theta)
    if rope.type != "default":
        assert rope.factor is not None, "check_convertible refuses it"
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.type))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_length or config["max_position_embeddings"])


@dataclass(frozen=True, slots=True)
class _Rope:
    """A rotary embedding."""

    type: str
    theta: float
    factor: float | None
    """By which it is scaled; None if its type is default."""
    original_length: int | None


def _rope(config: ModelFields) -> _Rope:
    """The rotary embedding, whichever version of transformers wrote the config."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or RopeFields()
    return _Rope(
        found.get("rope_type", found.get("type", "default")),
        found.get("rope_theta", config.get("rope_theta", 10_000.0)),
        found.get("factor"),
        found.get("original_max_position_embeddings"),
    )


def _check_complete(folder: Path, config: ModelFields, places: set[str]) -> None:
    """Raise UserError if weights are missing: llama.cpp would say so only when somebody opens the file."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"]
    needed = {f"blk.{layer}.{name}.weight" for layer in range(config["num_hidden_layers"]) for name in names}
    needed |= {"token_embd.weight", "output_norm.weight"}
    needed |= set() if config.get("tie_word_embeddings") else {"output.weight"}
    if missing := sorted(needed - places):
        raise UserError(f"{folder}: {len(missing)} weights are missing ({missing[0]}, ...); save the model again")


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: it has no .safetensors files; export it with `--to safetensors` first")
    return files


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in _files(folder):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    return found


def _weights(folder: Path, names: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in fp32, in the order of `names`, which is that of the files."""
    from safetensors import safe_open

    for file in _files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name in names:
                    yield name, tensors.get_tensor(name).float().numpy()


def _type_of(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if kind == "Q8_0" and shape[-1] % Q8_BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[kind]


def _numpy_type(raw: GGMLQuantizationType) -> np.dtype:
    import numpy as np

    return np.dtype({"F32": np.float32, "F16": np.float16}.get(raw.name, np.int8))


def _num_bytes(shape: tuple[int, ...], raw: GGMLQuantizationType) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[raw]
    number = 1
    for length in shape:
        number *= length
    return number // block * size


def _packed(weight: np.ndarray, raw: GGMLQuantizationType, name: str) -> np.ndarray:
    import gguf
    import numpy as np

    limit = np.finfo(np.float16 if raw.name != "F32" else np.float32).max
    if not np.isfinite(weight).all() or np.abs(weight).max(initial=0) > limit:
        raise UserError(f"{name} holds values that {raw.name} cannot: infinite, not a number, or beyond {limit:g}")
    return weight if raw.name == "F32" else gguf.quants.quantize(weight, raw)
