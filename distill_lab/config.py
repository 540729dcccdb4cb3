"""The settings every recipe shares: frozen pydantic models, a docstring under each field, each default written once.

YAML files and command-line flags both derive from these (`cli.py`); unknown keys are refused.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from distill_lab.errors import UserError

FULL_LEARNING_RATE, ADAPTER_LEARNING_RATE = 2e-5, 2e-4
AS_GIVEN = "as given"
"""Context of `model_dump` that leaves defaults open which depend on other settings."""
Quantization = Literal["none", "8bit", "4bit", "auto"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Config):
    """Which model, and how it is loaded."""

    model: str
    """Hugging Face id, local directory, GGUF file (FILE.gguf, its weights unpacked; pip install gguf), tiny:teacher /
    tiny:student for the embedded family, or, for a teacher, openai:NAME for model NAME of an OpenAI-compatible server
    (engine.base_url)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    quantization: Quantization = "none"
    """Weights in 8 or 4 bits through bitsandbytes; auto: the first of none, 8bit and 4bit that the GPU's memory holds."""
    dtype: Dtype = "auto"
    """What generation and scoring compute in (train.dtype: training); auto: bf16 or fp16 on a GPU by what it has, on a CPU
    bf16 where products of the model's sizes, timed for some milliseconds, are clearly faster than in fp32."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off unless you have read that code."""


class DataConfig(Config):
    """Which rows, and how they are read."""

    path: str
    """Hugging Face data set id, local .json/.jsonl/.parquet/.csv file, or tiny:instructions|problems|labels."""
    split: str = "train"
    """Split and slice as Hugging Face writes them: train, train[:1000], train[10%:20%]."""
    adapter: str = "auto"
    """How a row becomes a prompt: a file name in distill_lab/data/adapters; auto recognises the row's fields."""
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
    from_model: bool = False
    """Use the model's own generation_config for temperature, top_p, top_k, min_p and repetition_penalty, each where it
    stands at its default here. Off: it is ignored, by every engine. A server's model: its server's settings apply."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; the text itself is left out."""
    num_samples: Annotated[int, Field(ge=1)] = 1
    """Completions per prompt."""
    thinking: bool | None = None
    """Ask the chat template for thinking (enable_thinking); None leaves the template's own default."""
    seed: int = 0
    """Seed of the sampling. In fp32 on a CPU, one prompt's completion does not depend on its neighbours in the batch."""


class EngineConfig(Config):
    """What generates, and how much at once."""

    # What was typed into an address may be a key: no error message repeats it.
    model_config = ConfigDict(hide_input_in_errors=True)

    engine: str = "auto"
    """A file name in distill_lab/generation/engines: transformers, vllm, ray; auto picks by what the machine has.
    Models named openai:NAME are always asked over the network (openai_api)."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Most prompts in one batch; 0 lets the engine choose. Halved by itself when memory runs out."""
    base_url: str = ""
    """Server of openai:NAME models, as in http://host:8000/v1; empty: OPENAI_BASE_URL. Its key is only ever read from
    OPENAI_API_KEY and written nowhere."""
    max_concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Most requests under way at a server; halved whenever it answers 429 (too many), raised again step by step."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a server may take for one whole answer before the request is given up and sent again."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """How often a failed request is sent again, after waits that double from 1 s up to 30 s or as the server says."""
    extra_body: str = ""
    """JSON object of fields that go into every request body, over what stands there; null takes a field out:
    {"max_tokens": null, "max_completion_tokens": 512}."""
    measure_budget_s: Annotated[float, Field(gt=0)] = 180.0
    """Seconds that a recipe may spend on timing each model, loading it left out: of a slow one fewer and shorter answers
    are timed. At least one answer of each kind is, however long it takes."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """vllm: GPUs that a model's weights are split over; for models that do not fit one."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """vllm: whole models side by side on this machine, each on GPUs of its own; the number of its GPUs for small models."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """vllm: share of each GPU's memory that weights and key-value cache may take."""
    max_model_len: Annotated[int, Field(ge=0)] = 0
    """vllm: most tokens of prompt and completion together; 0: the model's context, or less where the memory is too small."""
    enforce_eager: bool = False
    """vllm: neither compile nor capture CUDA graphs: starts a minute earlier, generates slower. Always on without a GPU."""
    ray_engine: str = "auto"
    """ray: the engine that each worker holds."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """ray: how many workers; 0: one for every GPU of the cluster (or every tensor_parallel_size * data_parallel_size of
    them), where it has none one for every two processor cores."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        return check_base_url(url) if url else url

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, text: str) -> str:
        try:
            fields = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"extra_body is not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise UserError(f'extra_body is a JSON {type(fields).__name__}; give an object: {{"name": value}}')
        return text


def check_base_url(url: str) -> str:
    """`url` of a server's API without slashes at its end. Raises UserError for what is none, and for a key in it."""
    remedy = "give it as http://host:8000/v1"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"the server's address is malformed; {remedy}") from None
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise UserError(f"the server's address holds more than host and path; {remedy}, a key goes in OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"the server's address does not begin with http://host or https://host; {remedy}")
    return url.strip().rstrip("/").removesuffix("/chat/completions")


class LoraConfig(Config):
    """Low-rank adapters instead of a full fine-tune; on a student in 4 bits this is QLoRA."""

    r: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters, 8 to 64 as a rule; 0: no adapters, all weights are trained."""
    alpha: Annotated[int, Field(gt=0)] = 32
    """Adapters count alpha / r times; 32, or twice the rank, is usual."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs set to 0 while training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get adapters (q_proj, v_proj, ...); all-linear: every one but the output head and, in a mixture of
    experts, the experts and their router."""
    merge: bool = False
    """Save a plain model with the adapters merged in, and the adapters in its folder adapter/; off: the adapters alone."""


class TrainConfig(Config):
    """How the student is trained."""

    method: Literal["auto", "full", "lora", "qlora"] = "auto"
    """Train all weights (full), adapters (lora), or adapters on 4-bit weights (qlora); auto: the first that fits the
    memory, where need be with gradient checkpointing, 8-bit AdamW and smaller micro-batches. lora.r alone means lora."""
    num_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: by epochs."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW; None: 2e-5 where all weights are trained, 2e-4 for adapters, which learn best at about
    ten times the rate of a full fine-tune."""
    lr_scheduler_type: str = "cosine"
    """Any scheduler name of transformers."""
    min_lr_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the learning rate that is left at the end, for the schedulers that stop above 0 (cosine_with_min_lr)."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay (biases and norms excepted)."""
    optim: str = "adamw_torch_fused"
    """Any optimizer name of transformers; adamw_8bit (a GPU, bitsandbytes) keeps its state in a quarter of the memory."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0: never."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens; longer rows are dropped and counted, never cut."""
    tokens_per_batch: Annotated[int, Field(ge=8)] = 8192
    """Tokens of one packed micro-batch: rows are packed to about this many. An optimizer step takes this many times
    gradient_accumulation_steps, on one process or on many."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches per optimizer step, over all processes."""
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
    lora: LoraConfig = LoraConfig()
    """Train adapters instead of all weights."""
    num_processes: Annotated[int, Field(ge=1)] = 1
    """Processes that train together on this machine: the number of its GPUs. They share the tokens of a step among them;
    where the micro-batches of a step are fewer than the processes, each takes a part of one."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """Of several processes: ddp: each holds the whole student; fsdp2: weights and optimizer state are split among them."""
    dtype: Dtype = "auto"
    """What the passes compute in, weights trained in fp32 either way; auto: bf16 or fp16 on a GPU by what it has, on a CPU
    bf16 where products of the model's sizes, timed for some milliseconds, are clearly faster than in fp32."""
    compile: bool = False
    """Compile the layers with torch.compile: minutes at first, then faster steps on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: int = 42
    """Seed of the row order, the split and dropout."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the default for what is trained.

        Sources of the adapters' ten times higher rate: Schulman et al. 2025, LoRA Without Regret
        (thinkingmachines.ai/blog/lora); TRL's and Unsloth's documentation have the same default.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return ADAPTER_LEARNING_RATE if self.lora.r else FULL_LEARNING_RATE

    @field_serializer("learning_rate")
    def _write_learning_rate(self, value: float | None, info: FieldSerializationInfo) -> float | None:
        """Records and keys of results have the rate that is used; what more settings will be put on has None."""
        return value if info.context == AS_GIVEN else self.peak_learning_rate


QWEN3_THINKING = SamplingConfig(max_new_tokens=16384, temperature=0.6, top_p=0.95, top_k=20)
"""As Qwen3's model card has it for thinking, which it forbids to sample greedily (endless repetition). The card's budget is
32,768 tokens; half of that is hardly ever reached by questions of school mathematics."""
QWEN3_AT_ONCE = SamplingConfig(max_new_tokens=2048, temperature=0.7, top_p=0.8, top_k=20, thinking=False)
"""As Qwen3's model card has it without thinking."""
STEP_BY_STEP = "Please think step by step and explain your reasoning before giving the final answer."
"""What System 2 adds to a question, for teacher and student alike."""


class RecipeConfig(Config):
    """The settings every recipe has; a recipe adds its own and gives its defaults."""

    teacher: ModelConfig
    """The model to learn from."""
    student: ModelConfig
    """The model to train; before training it is the base student."""
    data: DataConfig
    """The prompts, and their answers if the recipe uses the data set's own."""
    sampling: SamplingConfig
    """How the teacher samples the answers to learn from."""
    test: DataConfig = DataConfig(path="")
    """Prompts the scores are taken on; without a path, num_test rows of the data are held out."""
    num_test: Annotated[int, Field(ge=0)] = 100
    """Held-out rows if no test data is given (at most a tenth of the rows); 0: no scores."""
    test_sampling: SamplingConfig
    """How the models answer the test, greedy unless said otherwise."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric if all gold answers are numbers, else math."""
    engine: EngineConfig = EngineConfig()
    """What generates."""
    train: TrainConfig = TrainConfig()
    """How the student is trained."""
    measure: bool = True
    """Measure the speed of teacher and student on the test prompts."""
    out: str = ""
    """Where the student goes; empty: student/ in the run directory."""

    @model_validator(mode="before")
    @classmethod
    def _hold_out_of_given_data(cls, values: Any) -> Any:
        """The default test belongs to the default data: other data is tested on rows held out of it, or as given."""
        if isinstance(values, dict) and "data" in values and not values.get("test"):
            data, default = values["data"], cls.model_fields["data"].default
            path = data.get("path") if isinstance(data, dict) else getattr(data, "path", None)
            if path != default.path:
                return {**values, "test": {"path": ""}}
        return values
