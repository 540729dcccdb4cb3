"""The chat completions protocol of OpenAI (also vLLM, SGLang, Ollama and others): prompt -> JSON.

body = request_body("gpt", prompt, sampling, sample=0, extra={})

`_chat_response` reads what comes back.
"""

from __future__ import annotations

import json

from distill_lab.config import SamplingConfig
from distill_lab.generation.engines._dialect import FIELDS, Dialect
from distill_lab.types import Fields, JsonObject, Prompt

SEED_STEP = 1_000_003
"""Difference between the seeds of a prompt's samples, so that runs with nearby seeds do not share seeds."""


DEFAULT = Dialect(extensions=False)
NEUTRAL = {"top_k": -1}
"""What servers accept as "all tokens" where the lab has 0, which earlier vLLM versions and SGLang reject."""


class RequestRejected(Exception):
    """A request that fails no matter how often it is retried. kind: failures of the same kind may have the same cause."""

    def __init__(self, reason: str, *, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind or reason


def request_body(
    model: str,
    prompt: Prompt,
    sampling: SamplingConfig,
    *,
    sample: int,
    extra: Fields,
    dialect: Dialect = DEFAULT,
) -> JsonObject:
    """The JSON body of one request; `extra` overrides its fields and removes those set to None.

    A server fills in missing fields from the model's generation_config or its own settings. Therefore temperature and
    top_p are sent even if they have no effect, and top_k, min_p and repetition_penalty too if the `dialect` has them. With
    `sampling.from_model`, fields at their default are left to the server. Thinking in earlier turns is dropped, as in chat
    templates.
    """
    messages = [
        {name: value for name, value in message.items() if name not in ("thinking", "reasoning_content")}
        for message in prompt.messages
    ]
    seed = (sampling.seed + sample * SEED_STEP) % 2**31
    body: JsonObject = {"model": model, "messages": messages, dialect.tokens_field: sampling.max_new_tokens}
    if "seed" not in dialect.dropped:
        body["seed"] = seed
    for name in FIELDS:
        if dialect.sends(name, sampling):
            value = getattr(sampling, name)
            body[name] = NEUTRAL.get(name, value) if value == SamplingConfig.model_fields[name].default else value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.response_format:
        body["response_format"] = json.loads(sampling.response_format)
    if sampling.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def error_message(data: object) -> str:
    """The message in an error response: formats of OpenAI, vLLM, FastAPI and Ollama."""
    if not isinstance(data, dict):
        return ""
    error = data.get("error") or data.get("detail") or data.get("message") or ""
    if isinstance(error, dict):
        message, parameter = error.get("message"), error.get("param")
        if message and isinstance(parameter, str) and parameter not in str(message):
            return f"{message} ({parameter})"
        error = message or error
    return str(error)


def one_line(text: str) -> str:
    """`text` on one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]} [...]"
