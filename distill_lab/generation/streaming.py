"""One conversation, answered piece by piece: messages in, pieces of text out as they are generated.

    speaker = load_speaker(ModelConfig(model="runs/first/student"), EngineConfig())
    for piece in speaker.answer(messages, SamplingConfig()): print(piece, end="")

A local model is decoded by transformers, a server's model (openai:NAME) is streamed over HTTP. Closing the iterator stops
the model. Thinking is part of the text, in its tags; `chat.split_thinking` takes it apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol, cast

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.models.names import api_engine
from distill_lab.types import Fields, Message, Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Speaker(Protocol):
    """A model that answers in pieces."""

    def answer(self, messages: Sequence[Message], sampling: SamplingConfig) -> Iterator[str]:
        """The pieces of the answer to the last message. Raises UserError if the model cannot answer."""
        ...


class Generating(Protocol):
    """A model of transformers that generates, which the type PreTrainedModel does not say."""

    def generate(self, inputs: torch.Tensor, **settings: object) -> object:
        """The ids of the prompt and its completion."""
        ...


def load_speaker(model: ModelConfig, engine: EngineConfig) -> Speaker:
    """The model, loaded; for openai:NAME, its server's address checked. Raises ModelError, UserError."""
    if api_engine(model.model):
        from distill_lab.generation.engines.openai_api import load

        server = load(model, engine)
        return ServerSpeaker(server.model, server.base_url, os.environ.get("OPENAI_API_KEY", "").strip(), engine)
    from distill_lab.models.loading import load_model

    return LocalSpeaker(*load_model(model))


class LocalSpeaker:
    """A loaded model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import GenerationConfig

        from distill_lab.generation.engines._token_io import TokenIO

        self.model, self.tokenizer = model, tokenizer
        self.io = TokenIO(tokenizer, model.generation_config)
        # The model's own sampling settings would fill in what a request leaves open.
        model.generation_config = GenerationConfig()

    def answer(self, messages: Sequence[Message], sampling: SamplingConfig) -> Iterator[str]:
        """See `Speaker`."""
        context = getattr(self.model.config, "max_position_embeddings", 1 << 20)
        ids, limit, refusal = self.io.request(Prompt("chat", list(messages)), sampling, context=context)
        if refusal:
            raise UserError(f"{refusal}; /reset starts a new conversation")
        pieces: Queue[list[int] | Exception | None] = Queue()
        stopped = Event()
        thread = Thread(target=self._generate, args=(ids, limit, sampling, pieces, stopped), daemon=True)
        thread.start()
        tokens: list[int] = []
        shown = ""
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                tokens += piece
                text = self.io.text(tokens)
                if text.endswith("\ufffd"):  # in the middle of a character
                    continue
                yield text[len(shown) :]
                shown = text
            text = self.io.text(tokens)
            if len(text) > len(shown):
                yield text[len(shown) :]
        finally:
            stopped.set()
            thread.join()

    def _generate(
        self,
        ids: list[int],
        limit: int,
        sampling: SamplingConfig,
        pieces: Queue[list[int] | Exception | None],
        stopped: Event,
    ) -> None:
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
        from transformers.generation.streamers import BaseStreamer

        class Streamer(BaseStreamer):
            """Hands on each new token; the first call brings the prompt."""

            prompt = True

            def put(self, value: torch.Tensor) -> None:
                if not self.prompt:
                    pieces.put(value.reshape(-1).tolist())
                self.prompt = False

            def end(self) -> None:
                """Nothing is held back."""

        class Stopped(StoppingCriteria):
            """True for every row once the reader has gone."""

            # No function makes the BoolTensor that the class asks for.
            def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
                self, input_ids: torch.Tensor, scores: object, **kwargs: object
            ) -> torch.Tensor:
                return torch.full((input_ids.shape[0],), stopped.is_set(), device=input_ids.device)

        sample = {"do_sample": False}
        if sampling.temperature:
            sample = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            sample |= {"top_k": sampling.top_k, "min_p": sampling.min_p or None}
        settings = GenerationConfig(
            max_new_tokens=limit,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=self.io.end_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            **sample,
        )
        model = cast(Generating, self.model)
        row = torch.tensor([ids], device=self.model.device)
        try:
            with torch.inference_mode():
                model.generate(
                    row,
                    attention_mask=torch.ones_like(row),
                    generation_config=settings,
                    streamer=Streamer(),
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                )
            pieces.put(None)
        except Exception as error:
            pieces.put(error)


class ServerSpeaker:
    """A model on an OpenAI-compatible server. key: empty for servers without keys."""

    def __init__(self, model: str, base_url: str, key: str, config: EngineConfig) -> None:
        self.model, self.base_url, self._key, self.config = model, base_url, key, config

    def answer(self, messages: Sequence[Message], sampling: SamplingConfig) -> Iterator[str]:
        """See `Speaker`. Raises ModelError if the server refuses or does not answer; a key is never in the message."""
        import httpx2

        from distill_lab.files.redact import redactor
        from distill_lab.generation.engines._chat_completions import error_message, one_line, request_body
        from distill_lab.generation.engines._chat_response import read_json

        redact = redactor([self._key, *self.config.secrets])
        extra = {"stream": True, **self.config.extra_fields}
        body = request_body(self.model, Prompt("chat", list(messages)), sampling, sample=0, extra=extra)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url, timeout = f"{self.base_url}/chat/completions", self.config.timeout_s
        try:
            with httpx2.stream("POST", url, json=body, headers=headers, timeout=timeout) as answer:
                if answer.status_code != 200:
                    text = answer.read().decode("utf-8", "replace")
                    raise ModelError(
                        self.model, redact(f"HTTP {answer.status_code}: {one_line(_reason(text, error_message))}")
                    )
                if "event-stream" not in answer.headers.get("content-type", ""):
                    yield redact(_whole(_object(read_json(answer.read()))))
                    return
                opened = False
                for line in answer.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    thought, text = _delta(read_json(data.encode()))
                    if thought and not opened:
                        thought, opened = f"<think>\n{thought}", True
                    if text and opened:
                        text, opened = f"\n</think>\n\n{text}", False
                    if thought + text:
                        yield redact(thought + text)
        except (httpx2.HTTPError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(self.model, redact(f"its server does not answer ({one_line(str(error))})")) from None


def _delta(data: object) -> tuple[str, str]:
    """Thinking and text in one event."""
    choices = data.get("choices") if isinstance(data, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = (first.get("delta") if isinstance(first, dict) else None) or {}
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    return str(thought), str(delta.get("content") or "")


def _whole(data: Fields) -> str:
    """The answer of a server that does not stream."""
    from distill_lab.chat import answer_text
    from distill_lab.generation.engines._chat_completions import RequestRejected
    from distill_lab.generation.engines._chat_response import to_completion

    try:
        completion = to_completion(data, "chat", 0)
    except RequestRejected as error:
        raise UserError(str(error)) from None
    return answer_text(completion.content, completion.thinking)


def _object(data: object) -> Fields:
    return data if isinstance(data, dict) else {}


def _reason(text: str, error_message: Callable[[object], str]) -> str:
    try:
        return error_message(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text
