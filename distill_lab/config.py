"""The settings every recipe shares: frozen pydantic models, a docstring under each field, each default written once.

YAML files and command-line flags both derive from these (`cli.py`); unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantization = Literal["none", "8bit", "4bit", "auto"]


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Config):
    """Which model, and how it is loaded."""

    model: str
    """Hugging Face id, local directory, or tiny:teacher / tiny:student for the embedded family."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    quantization: Quantization = "none"
    """Weights in 8 or 4 bits through bitsandbytes; auto: 8bit where the full weights would not fit the GPU."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off unless you have read that code."""


class DataConfig(Config):
    """Which rows, and how they are read."""

    path: str
    """Hugging Face data set id, local .json/.jsonl/.parquet/.csv file, or tiny:instructions|problems|labels."""
    split: str = "train"
    """Split and slice as Hugging Face writes them: train, train[:1000], train[10%:20%]."""
    adapter: str = "auto"
    """How a row becomes a prompt: a file name in distill_lab/adapters; auto recognises the row's fields."""
    skip_invalid: bool = False
    """Set malformed rows aside and count them, instead of stopping at the first one."""


class SamplingConfig(Config):
    """How completions are sampled."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one completion, thinking included."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens whose probabilities reach this sum."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among this many likeliest tokens; 0 is all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 makes tokens that already stand in prompt or completion less likely (Keskar et al. 2019, eq. 1)."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; the text itself is left out."""
    num_samples: Annotated[int, Field(ge=1)] = 1
    """Completions per prompt."""
    thinking: bool | None = None
    """Ask the chat template for thinking (enable_thinking); None leaves the template's own default."""
    seed: int = 0
    """Seed of the sampling; one prompt's completion does not depend on its neighbours in the batch."""


class EngineConfig(Config):
    """What generates, and how much at once."""

    engine: str = "auto"
    """A file name in distill_lab/engines: transformers, vllm, openai_api, ray; auto picks by what the machine has."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Most prompts in one batch; 0 lets the engine choose. Halved by itself when memory runs out."""


class TrainConfig(Config):
    """How the student is trained."""

    num_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: by epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "cosine"
    """Any scheduler name of transformers."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay (biases and norms excepted)."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0: never."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens; longer rows are dropped and counted, never cut."""
    tokens_per_batch: Annotated[int, Field(ge=8)] = 8192
    """Tokens of one packed micro-batch: rows are packed to about this many."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per optimizer step."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the rows held out for the validation loss."""
    eval_steps: Annotated[float, Field(ge=0)] = 0.0
    """Steps (or, below 1, share of all steps) between validation losses; 0: before the first and after the last step."""
    save_steps: Annotated[float, Field(gt=0)] = 0.25
    """Steps (or, below 1, share of all steps) between checkpoints."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between log lines."""
    report_to: tuple[str, ...] = ()
    """Trackers: trackio, wandb, tensorboard. None by default; nothing leaves the machine unasked."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: int = 42
    """Seed of the row order, the split and dropout."""


STEP_BY_STEP = "Please think step by step and explain your reasoning before giving the final answer."
"""What System 2 adds to a question, for teacher and student alike."""
