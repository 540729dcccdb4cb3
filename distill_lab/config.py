"""Settings that all recipes share: frozen pydantic models, a docstring under each field, each default written once.

YAML files and command-line flags both derive from these (`cli.py`); unknown keys are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    Field,
    FieldSerializationInfo,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from distill_lab.errors import UserError
from distill_lab.settings.address import check_base_url as check_base_url
from distill_lab.settings.base import AS_GIVEN as AS_GIVEN
from distill_lab.settings.base import Config, Seed
from distill_lab.settings.engine import EngineConfig as EngineConfig
from distill_lab.settings.overlap import OverlapWords
from distill_lab.settings.price import PriceConfig as PriceConfig
from distill_lab.settings.response_format import response_format
from distill_lab.settings.teacher_cache import TeacherCacheConfig as TeacherCacheConfig
from distill_lab.types import JsonObject

FULL_LEARNING_RATE, ADAPTER_LEARNING_RATE = 2e-5, 2e-4
Quantization = Literal["none", "8bit", "4bit", "auto"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class ModelConfig(Config):
    """Which model to load, and how."""

    model: str
    """Hugging Face id, local directory, GGUF file (FILE.gguf, dequantized on loading; pip install gguf), tiny:teacher or
    tiny:student for the embedded family, or, for a teacher, openai:NAME for model NAME on an OpenAI-compatible server
    (engine.base_url)."""
    revision: str | None = None
    """Branch, tag or commit on the Hugging Face hub."""
    quantization: Quantization = "none"
    """Load weights in 8 or 4 bits with bitsandbytes; auto: the first of none, 8bit and 4bit that fits in GPU memory."""
    dtype: Dtype = "auto"
    """Data type for generation and scoring (train.dtype is for training); auto: bf16 or fp16 on a GPU, whichever it
    supports; on a CPU bf16 if matrix products of the model's sizes, timed for some milliseconds, are clearly faster than
    in fp32."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Turn it on only if you have read that code."""


class DataConfig(Config):
    """Which rows to read, and how."""

    path: str
    """Hugging Face data set id; local .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file, also compressed (.gz,
    .zst); a folder of shards or of save_to_disk; tiny:instructions|problems|labels|traces; or
    prompts:instructions|reasoning|outside, the lab's test prompts. docs/formats.md shows them all."""
    split: str = "train"
    """Split and slice in Hugging Face syntax: train, train[:1000], train[10%:20%]."""
    adapter: str = "auto"
    """How to turn a row into a prompt: a file name in distill_lab/data/adapters; auto decides by the row's fields."""
    columns: str = ""
    """Which columns mean what, for rows that auto does not read: prompt=question,answer=gold. Targets: prompt, completion,
    answer, thinking, system, context, choices, tools, messages, chosen, rejected; ignore=a+b leaves columns out. Several
    columns are joined: prompt=title+body; a dot goes into an object: answer=result.text."""
    delimiter: str = ""
    """What separates the values of a CSV file; empty: found from its first lines. tab is a tab."""
    encoding: str = ""
    """Encoding of a text file, such as cp1252; empty: UTF-8, or UTF-16 if its first bytes show it."""
    skip_invalid: bool = False
    """Skip malformed rows instead of stopping at the first one; counts them by reason and names the first of each."""

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_as_text(cls, value: object) -> object:
        """A mapping, as YAML has it, is the same as the text."""
        return (
            ",".join(f"{target}={column}" for target, column in value.items()) if isinstance(value, Mapping) else value
        )


class SamplingConfig(Config):
    """How to sample completions."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum tokens per completion, including thinking."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: keep the most likely tokens whose cumulative probability reaches this value."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from this many most likely tokens; 0: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens whose probability is below this fraction of the most likely token's."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Values above 1 penalize tokens already in the prompt or completion (Keskar et al. 2019, eq. 1)."""
    from_model: bool = False
    """Take temperature, top_p, top_k, min_p and repetition_penalty from the model's generation_config, except those set
    to other than their default here. Off: all engines ignore generation_config. For a server's model, the server's
    settings apply."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of it."""
    num_samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Completions per prompt."""
    thinking: bool | None = None
    """Turn thinking on or off in the chat template (enable_thinking); None keeps the template's default."""
    seed: Seed = 0
    """Random seed. In fp32 on a CPU, a prompt's completion does not depend on the other prompts in the batch."""
    response_format: str = ""
    """Structured answers of a server's model: a file with a JSON schema, its text, or json for any JSON object."""

    @field_validator("response_format", mode="before")
    @classmethod
    def _read_response_format(cls, given: object) -> str:
        return response_format(given)

    @model_serializer(mode="wrap")
    def _leave_out_no_format(self, write: SerializerFunctionWrapHandler) -> JsonObject:
        """Results from before there was a choice still count."""
        return _without(write(self), self, "response_format")


def _without(values: JsonObject, config: Config, *names: str) -> JsonObject:
    """A dump without the fields of these names that have their default."""
    fields = type(config).model_fields
    return {
        key: value for key, value in values.items() if key not in names or getattr(config, key) != fields[key].default
    }


class LoraConfig(Config):
    """Low-rank adapters (LoRA) instead of full fine-tuning; on a 4-bit student this is QLoRA."""

    r: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Rank of the adapters, usually 8 to 64; 0: no adapters, train all weights."""
    alpha: Annotated[int, Field(gt=0)] = 32
    """The adapters' output is scaled by alpha / r; common values are 32 or twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of an adapter's inputs set to 0 during training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get adapters (q_proj, v_proj, ...); all-linear: all linear layers except the output head and, in a
    mixture of experts, the experts and their router."""
    merge: bool = False
    """Save a plain model with the adapters merged, plus the adapters in its folder adapter/; off: save only the adapters."""


class TrainConfig(Config):
    """How to train the student."""

    method: Literal["auto", "full", "lora", "qlora"] = "auto"
    """Train all weights (full), adapters (lora), or adapters on 4-bit weights (qlora); auto: the first that fits in
    memory, if needed with gradient checkpointing, 8-bit AdamW and smaller micro-batches. Setting only lora.r means lora."""
    objective: str = "cross_entropy"
    """What training minimizes: a file name in distill_lab/train/objectives."""
    objective_settings: tuple[str, ...] = ()
    """Settings of the objective, as NAME=NUMBER; its file lists them. In YAML also a mapping."""
    teacher: ModelConfig = ModelConfig(model="")
    """For an objective that compares with a teacher, such as forward_kl: the teacher, which stays in memory, frozen,
    beside the student. Its tokenizer must be the student's, except for chunk_likelihood."""
    teacher_cache: TeacherCacheConfig = TeacherCacheConfig()
    """Capture the teacher's distributions before training instead of keeping the teacher in memory."""
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(le=10_000_000)] = -1
    """Stop after this many optimizer steps; -1: after num_epochs."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW; None: 2e-5 for full fine-tuning, 2e-4 for adapters, which learn best at about ten
    times the full fine-tuning rate."""
    lr_scheduler_type: str = "cosine"
    """Any scheduler name from transformers."""
    min_lr_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final fraction of the learning rate, for schedulers that do not end at 0 (cosine_with_min_lr)."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the steps during which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay (not applied to biases and norms)."""
    optim: str = "adamw_torch_fused"
    """Any optimizer name from transformers; adamw_8bit (needs a GPU and bitsandbytes) uses a quarter of the memory."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip gradients to this norm; 0: no clipping."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Maximum tokens per row; longer rows are dropped and counted, never truncated."""
    tokens_per_batch: Annotated[int, Field(ge=8)] = 8192
    """Approximate tokens per packed micro-batch. An optimizer step takes gradient_accumulation_steps times as many, on
    any number of processes."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Micro-batches per optimizer step, summed over all processes."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the rows held out for the validation loss."""
    eval_steps: Annotated[float, Field(ge=0)] = 0.0
    """Steps (below 1: fraction of all steps) between validation losses; 0: only before the first and after the last step."""
    save_steps: Annotated[float, Field(gt=0)] = 0.25
    """Steps (below 1: fraction of all steps) between checkpoints."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between log lines."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers: trackio, wandb, tensorboard. None by default, so that no data leaves the machine."""
    lora: LoraConfig = LoraConfig()
    """Train adapters instead of all weights."""
    num_processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Training processes on this machine; use one per GPU. They share the tokens of each step; if a step has fewer
    micro-batches than there are processes, each process takes part of one."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """With several processes: ddp copies the whole student to each; fsdp2 splits weights and optimizer state among them."""
    dtype: Dtype = "auto"
    """Data type of the forward and backward pass; trained weights are always fp32. auto: bf16 or fp16 on a GPU, whichever
    it supports; on a CPU bf16 if matrix products of the model's sizes, timed for some milliseconds, are clearly faster
    than in fp32."""
    compile: bool = False
    """Compile the layers with torch.compile: takes minutes at the start, then steps are faster on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: uses less memory, about a third slower."""
    seed: Seed = 42
    """Random seed for row order, validation split and dropout."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the default for full fine-tuning or adapters.

        Sources for the ten times higher rate of adapters: Schulman et al. 2025, LoRA Without Regret
        (thinkingmachines.ai/blog/lora); the documentation of TRL and Unsloth has the same default.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return ADAPTER_LEARNING_RATE if self.lora.r else FULL_LEARNING_RATE

    @field_validator("max_steps")
    @classmethod
    def _check_max_steps(cls, steps: int) -> int:
        if steps == 0 or steps < -1:
            raise UserError(f"{steps} trains nothing; give a number of steps, or -1 to train for num_epochs")
        return steps

    @field_validator("objective_settings", mode="before")
    @classmethod
    def _read_objective_settings(cls, given: object) -> object:
        """NAME=NUMBER, each name once, in the order of the names: the same settings are written in one way."""
        if not isinstance(given, (Mapping, list, tuple)):
            return given
        pairs = given.items() if isinstance(given, Mapping) else (str(each).partition("=")[::2] for each in given)
        settings: dict[str, float] = {}
        for name, value in pairs:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise UserError(f"objective_settings: {name}={value} is not NAME=NUMBER")
            if settings.setdefault(str(name), number) != number:
                raise UserError(f"objective_settings: {name} is given twice")
        return tuple(f"{name}={settings[name]!r}" for name in sorted(settings))

    @model_serializer(mode="wrap")
    def _leave_out_the_default_objective(self, write: SerializerFunctionWrapHandler) -> JsonObject:
        """Records without an objective mean the default one, so that results from before there was a choice still count."""
        values = write(self)
        if not self.teacher.model:
            values.pop("teacher", None)
        if self.teacher_cache.mode == "off":
            values.pop("teacher_cache", None)
        if self.objective == type(self).model_fields["objective"].default and not self.objective_settings:
            for name in ("objective", "objective_settings"):
                values.pop(name, None)
        return values

    @field_serializer("learning_rate")
    def _write_learning_rate(self, value: float | None, info: FieldSerializationInfo) -> float | None:
        """Records and result keys store the rate in use; settings that others will be merged into (AS_GIVEN) keep None."""
        return value if info.context == AS_GIVEN else self.peak_learning_rate


QWEN3_THINKING = SamplingConfig(max_new_tokens=16384, temperature=0.6, top_p=0.95, top_k=20)
"""From Qwen3's model card for thinking mode, which warns against greedy decoding (endless repetition). The card allows
32,768 tokens; school math questions hardly ever need half of that."""
QWEN3_AT_ONCE = SamplingConfig(max_new_tokens=2048, temperature=0.7, top_p=0.8, top_k=20, thinking=False)
"""From Qwen3's model card for non-thinking mode."""
STEP_BY_STEP = "Please think step by step and explain your reasoning before giving the final answer."
"""The instruction that System 2 adds to each question, for teacher and student alike."""


class Asked(NamedTuple):
    """A model that a recipe's proof lets answer the test prompts."""

    stage: str
    """As a forecast names it."""
    role: Literal["teacher", "base", "student"]
    sampling: SamplingConfig


class RecipeConfig(Config):
    """Settings of every recipe; a recipe adds its own and sets the defaults."""

    teacher: ModelConfig
    """The model to learn from."""
    student: ModelConfig
    """The model to train; before training it is the base student."""
    data: DataConfig
    """The prompts, and their answers if the recipe uses the data set's own."""
    sampling: SamplingConfig
    """How the teacher samples the answers to learn from."""
    test: DataConfig = DataConfig(path="")
    """Test prompts for the scores; without a path (--test.path ""), num_test rows of the data are held out."""
    num_test: Annotated[int, Field(ge=0)] = 100
    """Number of held-out rows if no test data is given (at most a tenth of the rows); 0: no scores."""
    overlap_words: OverlapWords = 8
    """Leave out training prompts that share this many words in a row with a test prompt, or are near duplicates of one;
    phrases that many training prompts have do not count. 0: leave out only the same conversations."""
    test_sampling: SamplingConfig
    """How the models sample the test answers; greedy by default."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric if all gold answers are numbers, else math."""
    engine: EngineConfig = EngineConfig()
    """Which engine generates."""
    train: TrainConfig = TrainConfig()
    """How to train the student."""
    measure: bool = True
    """Measure the speed of teacher and student on the test prompts."""
    out: str = ""
    """Output directory for the student; empty: student/ in the run directory."""

    def train_settings(self, teacher: ModelConfig) -> TrainConfig:
        """How the student is trained, with what a recipe adds to `train`. teacher: as it is on this machine."""
        return self.train

    def proof(self) -> tuple[Asked, ...]:
        """Who answers the test prompts in the recipe's proof."""
        return (
            Asked("test of the teacher", "teacher", self.test_sampling),
            Asked("test of the base student", "base", self.test_sampling),
            Asked("test of the student", "student", self.test_sampling),
        )

    @model_validator(mode="before")
    @classmethod
    def _hold_out_of_given_data(cls, values: object) -> object:
        """The default test set goes with the default data; without a test set, other data is tested on held-out rows."""
        if isinstance(values, dict) and values.get("test", {}) in ("", None):
            values = {**values, "test": {"path": ""}}
        if isinstance(values, dict) and "data" in values and not values.get("test"):
            data, default = values["data"], cls.model_fields["data"].default
            path = data.get("path") if isinstance(data, dict) else getattr(data, "path", None)
            if path != default.path:
                return {**values, "test": {"path": ""}}
        return values
