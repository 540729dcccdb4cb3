"""Make a smaller student by leaving out layers: a model and the numbers of the layers that stay -> a model directory.

cut_model(ModelConfig(model="tiny:student"), (0,), Path("runs/experiments/models/tiny-student-0"))

What stays is the model's own weights, as in Sajjad et al. 2023 ("On the effect of dropping layers of pre-trained
transformer models"). Until it is trained, such a model answers badly.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError


def cut_name(model: str, layers: Sequence[int]) -> str:
    """The directory's name: tiny-student-layers-0-2."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-')}-layers-{'-'.join(map(str, layers))}"


def cut_model(model: ModelConfig, layers: Sequence[int], out: Path) -> None:
    """Write `model` with these layers only, in their order, and its tokenizer to `out`; leave an existing `out` as it is.

    Raises ModelError if the model does not have them, or if its layers are not a plain list.
    """
    if (out / "config.json").is_file():
        return
    from torch import nn

    from distill_lab.models.loading import load_model

    loaded, tokenizer = load_model(model, training=True)
    decoder = loaded.base_model
    found = getattr(decoder, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise ModelError(model.model, "has no plain list of layers, so none can be left out; choose another student")
    wrong = [number for number in layers if not 0 <= number < len(found)]
    if wrong or len(set(layers)) < len(layers):
        raise ModelError(model.model, f"has layers 0 to {len(found) - 1}; {list(layers)} cannot be taken from it")
    kept = [found[number] for number in layers]
    for place, layer in enumerate(kept):
        attention = getattr(layer, "self_attn", None)
        if attention is not None and hasattr(attention, "layer_idx"):
            attention.layer_idx = place
    decoder.layers = nn.ModuleList(kept)
    config = loaded.config
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(kept)
    if types:
        config.layer_types = [types[number] for number in layers]
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    loaded.save_pretrained(work)
    tokenizer.save_pretrained(work)
    work.rename(out)
