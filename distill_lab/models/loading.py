"""Models and tokenizers by name: tiny:teacher, a local directory or a hub id -> (model, tokenizer), ready to use.

    model, tokenizer = load_model(ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct"))

Computes in bf16 or fp16 on a GPU, whichever it has, and on a CPU in fp32 or bf16, whichever its products are faster in
(`precision.py`). A hub that does not answer is told apart from a name that does not exist, within seconds.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
from distill_lab.models.names import api_engine, base_of, has_tokenizer, is_adapter, is_gguf, resolve
from distill_lab.models.precision import (
    DTYPES,
    MIN_QUANTIZED,
    Weights,
    choose_dtype,
    choose_quantization,
    count_weights,
    is_spread,
)

HUB_TIMEOUT_S = 10.0
"""How long the hub may take to answer whether it has a model."""
GATED = "gated; accept its terms on its hub page, then run hf auth login"


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end token where it has none). Raises ModelError."""
    path = resolve(config.model)
    with _loading(config):
        return _tokenizer(path, config, _hub_arguments(path, config))


def load_model(config: ModelConfig, *, training: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, placed and in evaluation mode, and its tokenizer.

    training: full weights come in fp32 in host memory, in training mode, for the trainer to place and autocast;
    quantized weights are placed at once. A directory of adapters gives its base model with the adapters merged in, or,
    where the base is quantized, attached. Raises ModelError with a remedy: unknown name, unreachable hub, weights that
    are damaged, incomplete or too big, quantization that would reach hardly any of them.
    """
    path = resolve(config.model)
    if is_adapter(path):
        return _with_adapters(Path(path), config, training=training)
    device = best_device()
    with activity.doing(f"loading {config.model}"), _loading(config):
        hub = _hub_arguments(path, config)
        tokenizer = _tokenizer(path, config, hub)
        arguments: dict[str, Any] = {**hub, "output_loading_info": True}
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
        loaded: Any = AutoModelForCausalLM.from_pretrained(_place(path), **arguments)
        model, info = loaded
        _check_vocabulary(config, tokenizer, model)
        if is_gguf(path):
            _forget_packing(model)
    if info["missing_keys"]:
        missing = sorted(str(key) for key in info["missing_keys"])
        raise ModelError(config.model, f"{len(missing)} weights are missing ({missing[0]}, ...); download it again")
    if not training:
        model.requires_grad_(False)
    return model.train(training), tokenizer


def _with_adapters(path: Path, config: ModelConfig, *, training: bool) -> tuple[Any, PreTrainedTokenizerBase]:
    """As `load_model`, for the adapters in `path` and the base model that their config names."""
    from peft import PeftModel

    from distill_lab.models.tied_head import untie_for

    model, tokenizer = load_model(base_of(config), training=training)
    with _loading(config):
        untie_for(path, model)
        if (path / "tokenizer_config.json").is_file():
            tokenizer = _tokenizer(str(path), config, _hub_arguments(str(path), config))
        adapted: Any = PeftModel.from_pretrained(model, path)
        quantized = getattr(model, "is_quantized", False)
        plain: Any = adapted.get_base_model() if quantized else adapted.merge_and_unload()
    return plain.requires_grad_(training and not quantized).train(training), tokenizer


def num_parameters(model: PreTrainedModel) -> int:
    """How many weights the model has, shared ones once, quantized ones at their unpacked number."""
    return model.num_parameters()


def settled(config: ModelConfig) -> ModelConfig:
    """`config` with what `auto` means for this model on this machine, the same at every call; a server's as it is.

    What a result depends on, to be recorded and passed to other processes. Reads the model's config, not its weights.
    Raises ModelError as `load_model` does.
    """
    if api_engine(config.model) or (config.quantization != "auto" and config.dtype != "auto"):
        return config
    path = resolve(config.model)
    if is_adapter(path):
        base = settled(base_of(config))
        return config.model_copy(update={"quantization": base.quantization, "dtype": base.dtype})
    device = best_device()
    with _loading(config):
        skeleton = _skeleton(path, _hub_arguments(path, config))
        quantization = _quantization(config, path, count_weights(skeleton), device)
        dtype = _dtype(config, quantization, skeleton, device)
    return config.model_copy(update={"quantization": quantization, "dtype": dtype})


def unrounded(config: ModelConfig) -> ModelConfig:
    """`config` for weights that are trained on or saved: a CPU holds them in fp32 where nothing else is asked for."""
    asked = config.dtype != "auto" or best_device().type != "cpu"
    return config if asked else config.model_copy(update={"dtype": "fp32"})


def _quantization(config: ModelConfig, path: str, weights: Weights, device: torch.device) -> Quantization:
    """What the weights are quantized to; those of a GGUF file never: transformers unpacks them."""
    if not is_gguf(path):
        return choose_quantization(config.quantization, weights, device)
    if config.quantization in ("8bit", "4bit"):
        remedy = "use quantization none, or the model as a directory"
        raise ModelError(config.model, f"{config.quantization} weights cannot be made of a GGUF file's; {remedy}")
    return "none"


def _unpacked() -> dict[str, Any]:
    """Ask for a GGUF file's weights as plain tensors; transformers before 5.23 knows no other way."""
    from transformers.utils import quantization_config

    kind = getattr(quantization_config, "GgufConfig", None)
    return {"quantization_config": kind(dequantize=True)} if kind else {}


def _forget_packing(model: PreTrainedModel) -> None:
    """Unpacked weights are ordinary ones: to be trained, saved and adapted as those of any directory."""
    places: list[tuple[Any, str]] = [(model, name) for name in ("is_quantized", "hf_quantizer", "quantization_method")]
    for place, name in [*places, (model.config, "quantization_config")]:
        if hasattr(place, name):
            delattr(place, name)


def _dtype(config: ModelConfig, quantization: Quantization, skeleton: PreTrainedModel, device: torch.device) -> Dtype:
    """What to compute in; quantized weights on a CPU in fp32, which its kernels are made for."""
    if config.dtype == "auto" and quantization != "none" and device.type == "cpu":
        return "fp32"
    return choose_dtype(config.dtype, skeleton, device)


def _tokenizer(path: str, config: ModelConfig, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    if is_gguf(path) and has_tokenizer(Path(path).parent):
        hub = {name: value for name, value in hub.items() if name != "gguf_file"}
    tokenizer = AutoTokenizer.from_pretrained(_place(path), **hub)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(config.model, "its tokenizer has no padding and no end token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _place(path: str) -> str:
    """What from_pretrained takes: of a GGUF file its directory, the file is an argument of its own."""
    return str(Path(path).parent) if is_gguf(path) else path


def _check_vocabulary(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            config.model,
            f"its tokenizer has {len(tokenizer)} tokens and the model {rows}: it is another model's. Of a GGUF file the "
            "tokenizer in its directory is taken: put the file into a directory without one to use the file's own",
        )


def load_config(config: ModelConfig) -> PreTrainedConfig:
    """What a model's config.json says. Raises ModelError."""
    path = resolve(config.model)
    with _loading(config):
        return AutoConfig.from_pretrained(_place(path), **_hub_arguments(path, config))


def _skeleton(path: str, hub: dict[str, Any]) -> PreTrainedModel:
    """The model its config describes, without weights."""
    trust = {"trust_remote_code": hub["trust_remote_code"]}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(_place(path), **hub), **trust)


def without_weights(config: ModelConfig) -> PreTrainedModel:
    """The model that a config describes, on no device; of adapters, their base. Raises ModelError.

    Also where its weights cannot be held in the bits that are asked for, as `load_model` would.
    """
    path = resolve(config.model)
    if is_adapter(path):
        return without_weights(base_of(config))
    with _loading(config):
        skeleton = _skeleton(path, _hub_arguments(path, config))
        if config.quantization in ("4bit", "8bit"):
            _bitsandbytes(config, config.quantization, skeleton)
    return skeleton


def _bitsandbytes(config: ModelConfig, quantization: Quantization, skeleton: PreTrainedModel) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    if find_spec("bitsandbytes") is None:
        raise ModelError(config.model, f"{quantization} needs bitsandbytes; pip install bitsandbytes")
    _check_reach(config, quantization, count_weights(skeleton))
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    device, skipped = best_device(), None
    if device.type == "cpu":
        # On a CPU bitsandbytes 0.50 fails, or scales weights wrongly, where blocks of 64 cross rows; see `fits_4bit`.
        layers = {name: layer for name, layer in skeleton.named_modules() if isinstance(layer, torch.nn.Linear)}
        skipped = get_keys_to_not_convert(skeleton)
        unfit = [name for name, layer in layers.items() if not fits_4bit(layer)]
        if set(layers) <= {*unfit, *skipped}:
            raise ModelError(config.model, "no layer has the sizes that 4bit takes on a CPU; use 8bit or none")
        skipped += unfit
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[_dtype(config, quantization, skeleton, device)],
        llm_int8_skip_modules=skipped,
    )


def _check_reach(config: ModelConfig, quantization: Quantization, weights: Weights) -> None:
    """Raise ModelError where most weights would stay as they are: experts of a mixture that are held in one tensor."""
    if weights.share < MIN_QUANTIZED:
        raise ModelError(
            config.model,
            f"{quantization} would reach only {weights.share:.0%} of its weights: its experts are no linear layers, which "
            f"is all that bitsandbytes takes. It would still have {weights.bytes(quantization) / 1e9:.3g} GB, "
            f"{weights.bytes('none') / 1e9:.3g} GB without; use quantization none, or a dense model",
        )


def fits_4bit(layer: torch.nn.Linear) -> bool:
    """Whether bitsandbytes' CPU kernels take a layer in 4 bits: inputs a multiple of 64, outputs of 32. Others stay full.

    All layers of the Qwen models do; small models may have others.
    """
    return layer.in_features % 64 == 0 and layer.out_features % 32 == 0


def _hub_arguments(path: str, config: ModelConfig) -> dict[str, Any]:
    """What every from_pretrained call gets. Asks the hub once, briefly, whether it has the model; see HUB_TIMEOUT_S."""
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if Path(path).is_dir():
        return arguments
    if is_gguf(path):
        if find_spec("gguf") is None:
            raise ModelError(config.model, "GGUF files need the package gguf; pip install gguf")
        return {**arguments, "gguf_file": Path(path).name}
    from huggingface_hub import constants, model_info, try_to_load_from_cache

    # Taken from the hub's client because that client has moved from one HTTP library to another between versions.
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cached = isinstance(try_to_load_from_cache(path, "config.json", revision=config.revision), str)
    remedy = f"give a local directory, or run `hf download {path}` where there is a network"
    offline = constants.HF_HUB_OFFLINE
    if offline and not cached:
        raise ModelError(config.model, f"no such directory and not in the cache, and HF_HUB_OFFLINE is set; {remedy}")
    reason = ""
    try:
        if not offline:
            model_info(path, revision=config.revision, timeout=HUB_TIMEOUT_S)
    except RevisionNotFoundError:
        reason = f"has no revision {config.revision!r}; use a branch, tag or commit it has"
    except GatedRepoError:
        reason = GATED
    except RepositoryNotFoundError:
        reason = "no such directory and no such model on the hub; check the name (private: hf auth login)"
    except (HTTPError, OSError) as error:
        offline = True
        if not cached:
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            reason = f"no such directory, and the hub does not answer ({cause}); check the network, or {remedy}"
    if reason:
        raise ModelError(config.model, reason)
    return {**arguments, "revision": config.revision, "local_files_only": offline}


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft asks transformers for a name it is about to change: no user can mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Without the bar that transformers draws while it unpacks a GGUF file, which its own setting does not reach."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = functools.partial(before, disable=True)
    try:
        yield
    finally:
        reader.tqdm = before


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Without progress bars (only faces print); what goes wrong while loading becomes a ModelError with a remedy."""
    from safetensors import SafetensorError

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_peft(), _quiet_gguf() if is_gguf(config.model) else nullcontext():
            yield
    except ModelError:
        raise
    except torch.OutOfMemoryError:
        raise ModelError(
            config.model, "does not fit the memory; use --quantization 8bit or 4bit, or a smaller model"
        ) from None
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "gated" in str(error).lower():
            raise ModelError(config.model, GATED) from error
        if "trust_remote_code" in str(error):
            remedy = "its repository ships its own code; read it, then pass --trust-remote-code"
            raise ModelError(config.model, remedy) from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(config.model, f"cannot be loaded: {reason}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
