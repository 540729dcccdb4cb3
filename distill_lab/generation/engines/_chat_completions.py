"""The chat completions protocol of OpenAI (also vLLM, SGLang, Ollama and others): prompt -> JSON -> completion.

body = request_body("gpt", prompt, sampling, sample=0, extra={})
completion = to_completion(response_json, prompt.id, 0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_lab import chat
from distill_lab.config import SamplingConfig
from distill_lab.types import Completion, Prompt

SEED_STEP = 1_000_003
"""Difference between the seeds of a prompt's samples, so that runs with nearby seeds do not share seeds."""


FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
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
    extra: Mapping[str, Any],
    neutral: bool = False,
) -> dict[str, Any]:
    """The JSON body of one request; `extra` overrides its fields and removes those set to None.

    A server fills in missing fields from the model's generation_config or its own settings. Therefore temperature and
    top_p are always sent, and with `neutral` also the values of top_k, min_p and repetition_penalty that have no effect.
    OpenAI's protocol does not have these three, and hosted servers reject unknown fields; without `neutral` they are sent
    only if set. With `sampling.from_model`, fields at their default are left to the server. Thinking in earlier turns is
    dropped, as in chat templates.
    """
    messages = [
        {name: value for name, value in message.items() if name not in ("thinking", "reasoning_content")}
        for message in prompt.messages
    ]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": sampling.max_new_tokens,
        "seed": (sampling.seed + sample * SEED_STEP) % 2**31,
    }
    for name in FIELDS:
        value = getattr(sampling, name)
        if value != SamplingConfig.model_fields[name].default:
            body[name] = value
        elif not sampling.from_model and (neutral or name in ("temperature", "top_p")):
            body[name] = NEUTRAL.get(name, value)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def to_completion(data: Mapping[str, Any], prompt_id: str, sample: int) -> Completion:
    """The completion in a response. Thinking is `reasoning_content`, `reasoning`, or text in think tags.

    num_tokens is `usage.completion_tokens`, or 0 if the server does not report it. An answer cut off by a content filter
    becomes an error completion. Raises RequestRejected if the response contains no answer.
    """
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RequestRejected("the server's response has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise RequestRejected("the choice in the server's response has no message")
    usage = data.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    num_tokens = counted if type(counted) is int and counted > 0 else 0
    reason, content = choice.get("finish_reason"), message.get("content")
    if reason == "content_filter":
        error = "the server's content filter cut off the answer"
        return Completion(prompt_id, sample, "", None, "error", num_tokens, error)
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thinking, str) or not thinking.strip():
        thinking = None
    if not isinstance(content, str):
        # A server that separates thinking from the answer returns no content if the answer never started.
        if content is not None or thinking is None:
            found = "null" if content is None else f"a JSON {type(content).__name__}"
            raise RequestRejected(f"the answer's content is {found} instead of text (finish_reason {reason!r})")
        content = ""
    if reason not in ("stop", "length"):
        raise RequestRejected(f"the answer is incomplete: its finish_reason is {one_line(repr(reason))}")
    if thinking is None:
        thinking, content = chat.split_thinking(content)
    else:  # the same form as from split_thinking
        thinking, content = thinking.strip("\n"), content.lstrip("\n")
    return Completion(prompt_id, sample, content, thinking, reason, num_tokens)


def error_message(data: Any) -> str:
    """The message in an error response: formats of OpenAI, vLLM, FastAPI and Ollama."""
    if not isinstance(data, dict):
        return ""
    error = data.get("error") or data.get("detail") or data.get("message") or ""
    if isinstance(error, dict):
        error = error.get("message") or error
    return str(error)


def one_line(text: str) -> str:
    """`text` on one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]} [...]"
