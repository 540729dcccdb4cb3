"""Settings of engines: which one generates, how much at once, and how a server is asked."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import ConfigDict, Field, FieldSerializationInfo, field_serializer, field_validator, model_validator

from distill_lab.errors import UserError
from distill_lab.settings.address import check_base_url
from distill_lab.settings.base import AS_GIVEN, Config
from distill_lab.settings.price import PriceConfig
from distill_lab.settings.secrets import secrets_in, without_secrets
from distill_lab.types import JsonObject


class EngineConfig(Config):
    """Which engine generates, and how much at once."""

    # A user may have typed a key into the address, so no error message repeats it.
    model_config = ConfigDict(hide_input_in_errors=True)

    engine: str = "auto"
    """A file name in distill_lab/generation/engines: transformers, vllm, ray; auto chooses by what the machine has.
    Models named openai:NAME always use openai_api."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Maximum prompts per batch; 0 lets the engine choose. It is halved automatically when memory runs out."""
    base_url: str = ""
    """Address of the server for openai:NAME models, such as http://host:8000/v1; empty: OPENAI_BASE_URL. The API key is
    read only from OPENAI_API_KEY and is never written anywhere."""
    max_concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Maximum concurrent requests; halved on HTTP 429, then raised gradually."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds to wait for a complete answer from a server before sending the request again."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """Maximum retries of a failed request; the wait doubles from 1 s up to 30 s, or is what the server asks for."""
    extra_body: str = ""
    """JSON object of fields to add to every request body, replacing fields of the same name; null removes a field:
    {"max_tokens": null, "max_completion_tokens": 512}. Keys and passwords in it are written to no file."""
    price: PriceConfig = PriceConfig()
    """What the server of openai:NAME models charges."""
    batch: bool = False
    """Ask openai:NAME models through the server's Batch API (/files and /batches), which takes up to a day and costs half.
    Interrupt and run the same command again at any time: it continues the batches that it began."""
    batch_poll_s: Annotated[float, Field(gt=0)] = 30.0
    """Maximum seconds between looks at the state of a batch."""
    measure_budget_s: Annotated[float, Field(gt=0)] = 180.0
    """Seconds that a recipe may spend timing each model, without loading. Slow models are timed on fewer and shorter
    answers, but on at least one answer of each kind, however long it takes."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """vllm: number of GPUs to split a model's weights across, for models too large for one GPU."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """vllm: number of copies of the model on this machine, each on separate GPUs; for small models, the number of GPUs."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """vllm: fraction of each GPU's memory for weights and KV cache."""
    max_model_len: Annotated[int, Field(ge=0)] = 0
    """vllm: maximum tokens of prompt plus completion; 0: the model's context length, or less if memory is too small."""
    enforce_eager: bool = False
    """vllm: skip compilation and CUDA graphs: starts a minute sooner, generates more slowly. Always on without a GPU."""
    ray_engine: str = "auto"
    """ray: the engine that each worker uses."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """ray: number of workers; 0: one for each GPU in the cluster (or for each group of tensor_parallel_size *
    data_parallel_size GPUs); without GPUs, one for every two CPU cores."""

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

    @model_validator(mode="after")
    def _check_batch(self) -> EngineConfig:
        if self.batch and self.secrets:
            raise UserError(
                "extra_body contains a key or password, which batch would write to a file to upload; put the key in "
                "OPENAI_API_KEY, or remove batch"
            )
        return self

    @field_serializer("extra_body")
    def _write_extra_body(self, text: str, info: FieldSerializationInfo) -> str:
        """Records have no keys and passwords; settings that others will be merged into (AS_GIVEN) keep them."""
        return text if info.context == AS_GIVEN or not self.secrets else json.dumps(self.recorded_fields)

    @property
    def extra_fields(self) -> JsonObject:
        """The fields of `extra_body`."""
        return json.loads(self.extra_body or "{}")

    @property
    def recorded_fields(self) -> JsonObject:
        """The fields of `extra_body` for files and result keys: a mark is in place of each key and password."""
        return without_secrets(self.extra_fields)

    @property
    def secrets(self) -> list[str]:
        """Keys and passwords in `extra_body`."""
        return secrets_in(self.extra_fields)
