"""Load models and tokenizers: tiny:teacher, a local directory or a hub id -> (model, tokenizer), ready to use.

    model, tokenizer = load_model(ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct"))

Computes in bf16 or fp16 on a GPU, whichever it supports, and in fp32 or bf16 on a CPU, whichever is faster (`precision.py`).
Within seconds, errors tell an unreachable hub from a name that does not exist.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from distill_lab import activity
from distill_lab.config import Dtype, ModelConfig, Quantization
from distill_lab.device import best_device
from distill_lab.errors import ModelError
from distill_lab.files.system_errors import explain
from distill_lab.models.hub import GATED, hub_arguments
from distill_lab.models.names import api_engine, base_of, has_tokenizer, is_adapter, is_gguf, resolve
from distill_lab.models.packed_linear import num_packed
from distill_lab.models.precision import (
    DTYPES,
    MIN_QUANTIZED,
    Weights,
    choose_dtype,
    choose_quantization,
    count_weights,
    is_spread,
)
from distill_lab.types import Fields, JsonObject

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end token if it has none). Raises ModelError."""
    path = resolve(config.model)
    with _loading(config):
        return _tokenizer(path, config, hub_arguments(path, config))


def load_model(config: ModelConfig, *, training: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on its device and in evaluation mode, and its tokenizer.

    training: load full weights in fp32 in host memory, in training mode, so that the trainer can place and autocast them;
    quantized weights are placed right away. For a directory of adapters, loads the base model with the adapters merged
    or, if the base is quantized, attached. Raises ModelError with a remedy: unknown name, unreachable hub, weights that
    are damaged, incomplete or too big, or quantization that would apply to hardly any weights.
    """
    path = resolve(config.model)
    if is_adapter(path):
        return _with_adapters(Path(path), config, training=training)
    device = best_device()
    with activity.doing(f"loading {config.model}"), _loading(config):
        hub = hub_arguments(path, config)
        tokenizer = _tokenizer(path, config, hub)
        arguments: JsonObject = {**hub, "output_loading_info": True}
        skeleton = _skeleton(path, hub)
        weights = count_weights(skeleton)
        quantization = _quantization(config, path, weights, device)
        if quantization != "none":
            arguments["quantization_config"] = _bitsandbytes(config, quantization, skeleton)
        elif is_gguf(path):
            arguments |= _unpacked()
        full = training and quantization == "none"
        arguments["dtype"] = torch.float32 if full else DTYPES[_dtype(config, quantization, skeleton, device)]
        if not full:
            arguments["device_map"] = "auto" if is_spread(weights, quantization, device) else {"": device}
        # Not the model alone, which the type says, because of `output_loading_info`.
        loaded = AutoModelForCausalLM.from_pretrained(_place(path), **arguments)
        model, info = cast(tuple[PreTrainedModel, Mapping[str, Collection[str]]], loaded)
        _check_vocabulary(config, tokenizer, model)
        if is_gguf(path):
            _forget_packing(model)
    if info["missing_keys"]:
        missing = sorted(str(key) for key in info["missing_keys"])
        raise ModelError(config.model, f"{len(missing)} weights are missing ({missing[0]}, ...); download it again")
    if not training:
        model.requires_grad_(False)
    return model.train(training), tokenizer


def _with_adapters(
    path: Path, config: ModelConfig, *, training: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Like `load_model`, for the adapters in `path` and the base model that their config names."""
    from peft import PeftModel

    from distill_lab.models.tied_head import untie_for

    if not any((path / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ModelError(config.model, "its adapter weights are missing (no adapter_model.safetensors); copy it again")
    model, tokenizer = load_model(base_of(config), training=training)
    with _loading(config):
        untie_for(path, model)
        if (path / "tokenizer_config.json").is_file():
            tokenizer = _tokenizer(str(path), config, hub_arguments(str(path), config))
        adapted = PeftModel.from_pretrained(model, path)
        quantized = getattr(model, "is_quantized", False)
        plain = cast(PreTrainedModel, adapted.get_base_model() if quantized else adapted.merge_and_unload())
    return plain.requires_grad_(training and not quantized).train(training), tokenizer


def num_parameters(model: PreTrainedModel) -> int:
    """Number of weights; counts shared weights once and quantized weights individually, not as packed."""
    return model.num_parameters() + num_packed(model)


def resolve_precision(config: ModelConfig) -> ModelConfig:
    """`config` with `auto` replaced by the quantization and dtype for this model on this machine; a server's unchanged.

    Results depend on these values, so they are recorded and passed to other processes. Always returns the same. Reads the
    model's config, not its weights. Raises ModelError like `load_model`.
    """
    if api_engine(config.model) or (config.quantization != "auto" and config.dtype != "auto"):
        return config
    path = resolve(config.model)
    if is_adapter(path):
        base = resolve_precision(base_of(config))
        return config.model_copy(update={"quantization": base.quantization, "dtype": base.dtype})
    device = best_device()
    with _loading(config):
        skeleton = _skeleton(path, hub_arguments(path, config))
        quantization = _quantization(config, path, count_weights(skeleton), device)
        dtype = _dtype(config, quantization, skeleton, device)
    return config.model_copy(update={"quantization": quantization, "dtype": dtype})


def with_fp32_on_cpu(config: ModelConfig) -> ModelConfig:
    """`config` for weights to train or save: on a CPU, dtype auto becomes fp32, so that weights are not rounded."""
    keep = config.dtype != "auto" or best_device().type != "cpu"
    return config if keep else config.model_copy(update={"dtype": "fp32"})


def _quantization(config: ModelConfig, path: str, weights: Weights, device: torch.device) -> Quantization:
    """The quantization to load the weights in; none for a GGUF file, which transformers dequantizes."""
    if not is_gguf(path):
        return choose_quantization(config.quantization, weights, device)
    if config.quantization in ("8bit", "4bit"):
        remedy = "use quantization none, or the model as a directory"
        raise ModelError(config.model, f"a GGUF file cannot be loaded in {config.quantization}; {remedy}")
    return "none"


def _unpacked() -> JsonObject:
    """Arguments that make transformers dequantize a GGUF file; versions before 5.23 always do."""
    from transformers.utils import quantization_config

    kind = getattr(quantization_config, "GgufConfig", None)
    return {"quantization_config": kind(dequantize=True)} if kind else {}


def _forget_packing(model: PreTrainedModel) -> None:
    """Remove the marks of quantization: dequantized weights can be trained, saved and adapted like any others."""
    marks = [(model, name) for name in ("is_quantized", "hf_quantizer", "quantization_method")]
    for owner, name in (*marks, (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def _dtype(config: ModelConfig, quantization: Quantization, skeleton: PreTrainedModel, device: torch.device) -> Dtype:
    """The dtype to compute in; fp32 for quantized weights on a CPU, because the kernels there are made for it."""
    if config.dtype == "auto" and quantization != "none" and device.type == "cpu":
        return "fp32"
    return choose_dtype(config.dtype, skeleton, device)


def _tokenizer(path: str, config: ModelConfig, hub: Fields) -> PreTrainedTokenizerBase:
    if is_gguf(path) and has_tokenizer(Path(path).parent):
        hub = {name: value for name, value in hub.items() if name != "gguf_file"}
    tokenizer = AutoTokenizer.from_pretrained(_place(path), **hub)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(config.model, "its tokenizer has no padding token and no end token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _place(path: str) -> str:
    """Path for from_pretrained: for a GGUF file its directory, because the file is a separate argument."""
    return str(Path(path).parent) if is_gguf(path) else path


def _check_vocabulary(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            config.model,
            f"its tokenizer has {len(tokenizer)} tokens but the model only {rows}, so it belongs to another model. A "
            "tokenizer in a GGUF file's directory replaces the one in the file; move the file to a directory without one",
        )


def load_config(config: ModelConfig) -> PreTrainedConfig:
    """The model's config.json. Raises ModelError."""
    path = resolve(config.model)
    with _loading(config):
        return AutoConfig.from_pretrained(_place(path), **hub_arguments(path, config))


def _skeleton(path: str, hub: Fields) -> PreTrainedModel:
    """The model without weights, built from its config."""
    trust = {"trust_remote_code": hub["trust_remote_code"]}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(_place(path), **hub), **trust)


def without_weights(config: ModelConfig) -> PreTrainedModel:
    """The model without weights (on the meta device), built from its config; for adapters, their base model.

    Raises ModelError like `load_model`, including when the weights cannot be quantized as requested.
    """
    path = resolve(config.model)
    if is_adapter(path):
        return without_weights(base_of(config))
    with _loading(config):
        skeleton = _skeleton(path, hub_arguments(path, config))
        if config.quantization in ("4bit", "8bit"):
            _bitsandbytes(config, config.quantization, skeleton)
    return skeleton


def _bitsandbytes(config: ModelConfig, quantization: Quantization, skeleton: PreTrainedModel) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    if find_spec("bitsandbytes") is None:
        raise ModelError(config.model, f"{quantization} needs bitsandbytes; pip install bitsandbytes")
    _check_reach(config, quantization, count_weights(skeleton))
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    device, skipped = best_device(), None
    if device.type == "cpu":
        # On a CPU, bitsandbytes 0.50 fails or scales weights wrongly if blocks of 64 cross rows; see `fits_4bit`.
        layers = {name: layer for name, layer in skeleton.named_modules() if isinstance(layer, torch.nn.Linear)}
        skipped = get_keys_to_not_convert(skeleton)
        unfit = [name for name, layer in layers.items() if not fits_4bit(layer)]
        if set(layers) <= {*unfit, *skipped}:
            raise ModelError(config.model, "no layer has sizes that 4bit supports on a CPU; use 8bit or none")
        skipped += unfit
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[_dtype(config, quantization, skeleton, device)],
        llm_int8_skip_modules=skipped,
    )


def _check_reach(config: ModelConfig, quantization: Quantization, weights: Weights) -> None:
    """Raise ModelError if most weights would not be quantized: mixture-of-experts weights stored in one tensor."""
    if weights.share < MIN_QUANTIZED:
        raise ModelError(
            config.model,
            f"{quantization} would quantize only {weights.share:.0%} of its weights: bitsandbytes supports only linear "
            f"layers, and its experts are not. It would take {weights.bytes(quantization) / 1e9:.3g} GB instead of "
            f"{weights.bytes('none') / 1e9:.3g} GB; use quantization none, or a dense model",
        )


def fits_4bit(layer: torch.nn.Linear) -> bool:
    """Whether bitsandbytes' CPU kernels support a layer in 4 bits: inputs a multiple of 64, outputs of 32.

    Other layers are not quantized. All layers of the Qwen models fit; those of small models may not.
    """
    return layer.in_features % 64 == 0 and layer.out_features % 32 == 0


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide peft's warning about a name that transformers is about to change: users cannot fix it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Hide transformers' progress bar for dequantizing a GGUF file, which its own setting does not control."""
    names = vars(importlib.import_module("transformers.modeling_gguf_pytorch_utils"))
    before = names["tqdm"]
    names["tqdm"] = functools.partial(before, disable=True)
    try:
        yield
    finally:
        names["tqdm"] = before


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Hide progress bars (only the CLI prints) and turn loading errors into a ModelError with a remedy."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_peft(), _quiet_gguf() if is_gguf(config.model) else nullcontext():
            yield
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(
            config.model, "does not fit in memory; use --quantization 8bit or 4bit, or a smaller model"
        ) from None
    except Exception as error:  # a damaged file makes the libraries fail in any way, an assertion among them
        raise ModelError(config.model, _reason(error)) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    """Why a model cannot be loaded, and what to do."""
    text = " ".join(str(error).split())
    if "gated" in text.lower():
        return GATED
    if "trust_remote_code" in text:
        return "its repository contains its own code; read it, then pass --trust-remote-code"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return (
            "its weights are in a pickle file (.bin) that is damaged or contains code, which the lab never runs; use a "
            "model with .safetensors weights"
        )
    if full := explain(error):
        return full
    kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) and text else f"{type(error).__name__}: "
    return f"cannot be loaded: {kind}{text[:300]}".rstrip(": ") + "; download it again, or use another model"


def check_weights(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if a weight is NaN or infinite: training would fail at its first step, and not for its settings."""
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(name, f"its weights are damaged ({key} contains NaN or infinity); download it again")
