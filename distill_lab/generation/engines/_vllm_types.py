"""What the engine vllm uses of vLLM's objects, as protocols: vLLM is seldom installed where the lab's types are checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from distill_lab.types import Fields, JsonObject


class Platform(Protocol):
    """`vllm.platforms.current_platform`."""

    def is_cpu(self) -> bool: ...
    def has_device_capability(self, capability: int) -> bool:
        """Whether a GPU has at least this compute capability, as 80 for 8.0."""
        ...

    def get_device_total_memory(self) -> int:
        """In bytes."""
        ...


class SchedulerSettings(Protocol):
    """How requests are batched."""

    max_num_seqs: int


class ParallelSettings(Protocol):
    """How the model is spread."""

    data_parallel_size: int


class EngineSettings(Protocol):
    """`VllmConfig`."""

    scheduler_config: SchedulerSettings
    parallel_config: ParallelSettings


class ModelSettings(Protocol):
    """vLLM's `ModelConfig`."""

    max_model_len: int

    def try_get_generation_config(self) -> JsonObject:
        """The model's generation_config.json; {} if it has none."""
        ...


class Output(Protocol):
    """`CompletionOutput`: one sample of a prompt."""

    token_ids: Sequence[int]
    finish_reason: str | None


class RequestOutput(Protocol):
    """The samples of a prompt."""

    outputs: Sequence[Output]


class Llm(Protocol):
    """`AsyncLLM`. All of its coroutines must run in the same event loop."""

    model_config: ModelSettings
    vllm_config: EngineSettings
    shutdown: Callable[[], None]

    async def add_lora(self, request: object) -> bool: ...
    def generate(
        self, prompt: Fields, parameters: object, request_id: str, *, lora_request: object
    ) -> AsyncIterator[RequestOutput]: ...
