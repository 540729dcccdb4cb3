"""Generate with llama.cpp from a GGUF file: prompts in, completions out, one after the other.

    distill generate --engine llama_cpp --model student-Q8_0.gguf --data questions.jsonl --out answers.jsonl

Quantized weights are used as they are in the file, where the engine transformers unpacks them. The llama.cpp is the one of
the package xllamacpp, which has wheels for Linux, macOS and Windows. Prompts are tokenized here, with the tokenizer in the
file's directory or, if there is none, the one in the file.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

from distill_lab import activity
from distill_lab.chat import opens_thinking, split_thinking
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.models.names import is_gguf, resolve
from distill_lab.types import Completion, Fields, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = "xllamacpp"
MIN_CONTEXT = 512
"""llama.cpp rounds smaller contexts up."""


def preference() -> int:
    """Reads GGUF files only, so it is used only if it is requested by name."""
    return 0


def check(config: EngineConfig) -> None:
    """Raise UserError if the package is not installed."""
    if find_spec(PACKAGE) is None:
        raise UserError(f"the engine llama_cpp needs llama.cpp; pip install {PACKAGE}")


def load(model: ModelConfig, config: EngineConfig) -> LlamaCppEngine:
    """The engine for a GGUF file. Raises UserError without the package, ModelError for any other kind of model."""
    from distill_lab.models.loading import load_config, load_tokenizer

    check(config)
    path = resolve(model.model)
    if not is_gguf(path):
        raise ModelError(model.model, "llama.cpp reads GGUF files; `distill export --to gguf` makes one")
    context = config.max_model_len or int(load_config(model).max_position_embeddings)
    return LlamaCppEngine(path, load_tokenizer(model), context=context)


class _Server(Protocol):
    """A model in llama.cpp, as the package xllamacpp has it."""

    @property
    def listening_address(self) -> str: ...
    def handle_completions(self, request: Fields) -> Mapping[str, Any]: ...


class LlamaCppEngine:
    """A GGUF file opened by llama.cpp. context: maximum tokens of prompt plus completion."""

    def __init__(self, path: str, tokenizer: PreTrainedTokenizerBase, *, context: int) -> None:
        self.io = TokenIO(tokenizer)
        self._path, self._context = path, context
        self._size = 0
        self._server: _Server | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """See `Engine`. A prompt that does not fit the context gets a completion with `finish_reason` error."""
        requests = [(prompt, *self.io.request(prompt, sampling, context=self._context)) for prompt in prompts]
        needed = max((len(ids) + limit for _, ids, limit, refusal in requests if not refusal), default=0)
        if needed > self._size:
            self._open(needed)
        number = 0
        for prompt, ids, limit, refusal in requests:
            for sample in range(sampling.num_samples):
                if refusal:
                    yield Completion(prompt.id, sample, "", None, "error", 0, error=refusal)
                    continue
                yield self._answer(prompt, sample, ids, limit, sampling)
                number += 1
                activity.report("answers by llama.cpp:", number, len(requests) * sampling.num_samples)

    def token_ids(self, text: str) -> list[int]:
        """The tokens that llama.cpp makes of a rendered prompt, by the tokenizer in the file."""
        import httpx2

        server = self._server or self._open(MIN_CONTEXT)
        body = {"content": text, "add_special": True, "parse_special": True}
        answer = httpx2.post(f"{server.listening_address}/tokenize", json=body, timeout=60)
        return [int(token) for token in answer.raise_for_status().json()["tokens"]]

    def next_tokens(self, ids: Sequence[int], start: int) -> list[int]:
        """The most likely token after each of `ids[:start]`, `ids[:start + 1]`, ... `ids[:-1]`, by llama.cpp.

        A request each; llama.cpp keeps what two requests have in common, so each computes one token.
        """
        import httpx2

        server = self._server
        if server is None or len(ids) > self._size:
            server = self._open(len(ids))
        found = []
        with httpx2.Client(base_url=server.listening_address, timeout=60) as client:
            for end in range(start, len(ids)):
                body = {
                    "prompt": list(ids[:end]), "n_predict": 1, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1,
                    "cache_prompt": True, "return_tokens": True,
                }  # fmt: skip
                [token] = client.post("/completion", json=body).raise_for_status().json()["tokens"]
                found.append(int(token))
        return found

    def _open(self, size: int) -> _Server:
        library = importlib.import_module(PACKAGE)
        self._server = None
        self._size = max(MIN_CONTEXT, min(self._context, size + 1))
        settings = library.CommonParams()
        settings.model.path = self._path
        settings.n_ctx, settings.n_parallel = self._size, 1
        settings.warmup, settings.verbosity = False, 0
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        with activity.doing(f"loading {self._path} into llama.cpp"):
            try:
                self._server = server = cast(_Server, library.Server(settings))
            except RuntimeError as error:
                raise ModelError(self._path, f"llama.cpp cannot open it: {error}") from error
        return server

    def _answer(self, prompt: Prompt, sample: int, ids: list[int], limit: int, sampling: SamplingConfig) -> Completion:
        assert self._server is not None
        request = {
            "prompt": ids,
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self._size,
            "seed": sampling.seed + sample,
            "stop": list(sampling.stop),
        }
        answer = self._server.handle_completions(request)
        if "error" in answer:
            reason = str(answer["error"].get("message", answer["error"]))
            return Completion(prompt.id, sample, "", None, "error", 0, error=reason)
        choice = answer["choices"][0]
        opened = opens_thinking(self.io.tokenizer, ids)
        thinking, content = split_thinking(choice["text"], opened=opened)
        reason = "stop" if choice["finish_reason"] == "stop" else "length"
        return Completion(prompt.id, sample, content, thinking, reason, answer["usage"]["completion_tokens"])
