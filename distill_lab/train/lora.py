"""Low-rank adapters on a frozen student (LoRA, Hu et al. 2021; on 4-bit weights QLoRA, Dettmers et al. 2023).

A frozen model -> the model with adapters, the only weights that are trained; trained adapters -> a plain model that has
them merged in.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from distill_lab import activity
from distill_lab.config import LoraConfig, ModelConfig
from distill_lab.errors import UserError
from distill_lab.files.outputs import PARTIAL, remove_output, remove_work, work_folder
from distill_lab.models.loading import load_model, load_tokenizer, quiet_peft, with_fp32_on_cpu
from distill_lab.models.names import base_of, is_adapter, resolve
from distill_lab.models.tied_head import untie_for
from distill_lab.train.loss_module import causal_model
from distill_lab.train.merge import can_write_merged, write_merged
from distill_lab.train.portable import ADAPTER, make_portable
from distill_lab.train.targets import adapter_targets


def add_adapters(
    model: PreTrainedModel, config: LoraConfig, *, name: str, seed: int, revision: str | None = None
) -> PeftModel:
    """`model` with fp32 adapters on `config.targets`, everything else frozen, in training mode.

    seed: of the adapters' first weights. name, revision: the base model that the adapters record (hub id, directory or
    tiny: name). Raises UserError if a target is not a linear layer of the model, is its output head, or belongs to the
    experts or the router of a mixture.
    """
    targets = adapter_targets(model, config.targets, name=name)
    for layer in model.modules():
        # bitsandbytes repacks weights for inference at the first pass in evaluation mode, and gradients end at those.
        if _is_quantized(layer):
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010 - bitsandbytes', unknown to types
    settings = PeftLoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with quiet_peft():
        adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.peft_config["default"].revision = revision
    # Embeddings are never trained; left to itself peft would ask the hub whether they have been resized.
    save = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    setattr(adapted, "save_pretrained", save)  # noqa: B010 - no method to types
    return adapted.train()


def merge_directory(adapter: ModelConfig, out: Path) -> None:
    """Put the adapters in the directory `adapter.model` onto their base and write the merged model to `out`.

    Raises UserError if the directory holds no adapters.
    """
    path = resolve(adapter.model)
    if not is_adapter(path):
        raise UserError(f"{adapter.model}: no adapters (adapter_config.json and no config.json); nothing to merge")
    partial = work_folder(out) / PARTIAL
    activity.report(f"merging the adapters into {out}")
    _merge(adapter.model_copy(update={"model": path}), partial)
    remove_output(out)
    partial.rename(out)
    remove_work(out)


def merge_beside(student: ModelConfig, folder: Path) -> None:
    """Merge the adapters in `folder`/adapter, which were trained on `student`, and write the model to `folder` itself."""
    adapter = folder / ADAPTER
    _merge(student.model_copy(update={"model": str(adapter)}), folder)
    for path in list(adapter.iterdir()):
        # What belongs to the whole model stands beside it now.
        if not path.name.startswith("adapter_"):
            path.unlink()


def _merge(adapter: ModelConfig, out: Path) -> None:
    base, tokenizer = load_model(with_fp32_on_cpu(base_of(adapter)))
    if (Path(adapter.model) / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(adapter)
    untie_for(adapter.model, base)
    with quiet_peft():
        adapted = PeftModel.from_pretrained(base, adapter.model)
    save_merged(adapted, out)
    make_portable(out, tokenizer, base.generation_config)


def save_merged(model: PeftModel, out: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the plain model that computes what `model` does to `out`, in `dtype` (None: as it computes). It is used up.

    Quantized weights are unpacked a layer at a time: the whole model in 16 bits need not fit the memory.
    """
    base = causal_model(model)
    if getattr(base, "is_quantized", False) and can_write_merged(model):
        write_merged(model, out, dtype=dtype or base.dtype)
        return
    plain = merged(model)
    if dtype:
        cast("nn.Module", plain).to(dtype)  # types take `to` of a PreTrainedModel for an unbound function
    plain.save_pretrained(out)


def merged(model: PeftModel) -> PreTrainedModel:
    """The plain model that computes what `model` does: quantized weights unpacked, adapters added. `model` is used up.

    Unpacked, not loaded again in full precision: the adapters were trained on what the 4 or 8 bits stand for.
    """
    if getattr(causal_model(model), "is_quantized", False):
        config = model.peft_config["default"]
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        config.base_model_name_or_path = None
        base = model.unload()
        with quiet_peft():
            model = get_peft_model(base.dequantize(), config)
        set_peft_model_state_dict(model, state)
    plain = model.merge_and_unload()
    assert isinstance(plain, PreTrainedModel)
    return plain


def _is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()
