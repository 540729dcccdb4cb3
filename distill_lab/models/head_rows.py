"""A model whose head and embeddings have as many rows as another's: directory in, directory out.

    write_with_rows(ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct"), 152_064, Path("draft-base"))

Qwen2.5's models have 151,936 or 152,064 rows for one and the same tokenizer. Speculative decoding, in vLLM as in
transformers, needs both models to have the same number.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.models.loading import load_model


@torch.no_grad()
def write_with_rows(config: ModelConfig, num_rows: int, path: Path) -> None:
    """Write the model with `num_rows` rows, its weights in fp32, and its tokenizer.

    New rows are the mean of the others, so their logits are the mean logit, far below those of any likely token. Raises
    UserError if the tokenizer has tokens beyond `num_rows`.
    """
    model, tokenizer = load_model(config.model_copy(update={"quantization": "none"}), training=True)
    if len(tokenizer) > num_rows:
        raise UserError(
            f"{config.model}: its tokenizer has {len(tokenizer):,} tokens, but the target's head has {num_rows:,} rows; "
            "choose a draft with the target's tokenizer"
        )
    before = model.get_input_embeddings().get_parameter("weight").shape[0]
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    for layer in {id(each): each for each in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        for values in (getattr(layer, name, None) for name in ("weight", "bias")):
            if values is not None:
                values[before:] = values[:before].mean(0)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
