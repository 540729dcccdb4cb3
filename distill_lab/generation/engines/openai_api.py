"""Generation by any OpenAI-compatible server (vLLM, SGLang, Ollama, hosted APIs): prompts in, completions out.

    distill generate --model openai:Qwen/Qwen2.5-7B-Instruct --engine.base-url http://host:8000/v1 --data ... --out ...

One `POST /chat/completions` per sample, `max_concurrency` of them under way; prompts are read as places get free, so
memory does not grow with their number. A failure that may pass (408, 409, 429, 5xx, a broken connection, a time-out, an
answer that is no JSON) is tried again. Every prompt ends as a completion (`finish_reason` "error" where the server
refuses it), or the run stops with the reason, and what is done by then is kept.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines._chat_completions import (
    RequestRejected,
    error_message,
    one_line,
    request_body,
    to_completion,
)
from distill_lab.generation.engines._event_loop import Deliver, iterate
from distill_lab.generation.engines._http_retry import FIRST_WAIT_S, Pace, backoff_s, retry_after_s
from distill_lab.generation.engines._redact import Redactor
from distill_lab.types import Completion, Prompt

PREFIX = "openai:"
CONNECT_TIMEOUT_S = 10.0
CLIENT_CONNECTIONS = 16
"""Of one client: it looks through all of its connections for every request."""
MAX_PAUSE_S = 600.0
"""A server that asks for more patience (a daily quota) stops the run instead."""
MAX_BYTES = 1 << 24
"""An answer larger than this is not read to its end."""
MAX_IN_A_ROW = 20
"""As many different prompts failing for one reason, with no answer between, are the server's fault: the run stops."""

WITHOUT_NEUTRAL = {"api.openai.com"}
"""Servers known to refuse fields beyond OpenAI's protocol."""
FIELD_REFUSED = re.compile(
    r"HTTP 4(?:00|22): .*(?:top_k|min_p|repetition_penalty|unrecogni[sz]ed|unknown|unsupported|unexpected|extra|additional)",
    re.IGNORECASE,
)
"""An answer that may be about such a field: the request is sent once more without them."""

Outcome = tuple[int, httpx2.Headers, bytes]
"""Status, headers and body of a response."""


def preference() -> int:
    """Only where a model's name asks for it."""
    return 0


def load(model: ModelConfig, config: EngineConfig) -> OpenAIEngine:
    """The server's address and key, checked as far as that goes without asking it. Raises UserError."""
    name = model.model.removeprefix(PREFIX)
    if not model.model.startswith(PREFIX) or not name:
        raise ModelError(model.model, f"the engine openai_api takes {PREFIX}NAME, NAME being the server's name of it")
    if model.revision is not None:
        raise ModelError(model.model, "a server's model has no revision to choose; leave it out")
    url = config.base_url or os.environ.get("OPENAI_BASE_URL", "").strip()
    if not url:
        raise UserError(
            f"{model.model}: which server? give --engine.base-url http://host:8000/v1, or set OPENAI_BASE_URL "
            "(OpenAI's own is https://api.openai.com/v1)"
        )
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds characters that no key has; set it again")
    return OpenAIEngine(name, config, base_url=check_base_url(url), key=key)


class OpenAIEngine:
    """A server's model. key: empty for servers that want none. first_wait_s: see `http_retry.backoff_s`."""

    def __init__(
        self, model: str, config: EngineConfig, *, base_url: str, key: str = "", first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        self.model, self.config, self.base_url, self.first_wait_s = model, config, base_url, first_wait_s
        self._key, self._redact = key, Redactor(key)

    def generate(self, prompts: Iterable[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        `prompts` are read from another thread. Raises UserError where the server cannot be reached, refuses key or
        model, or fails at every prompt; error completions that came right before that are left out, so that the
        same command asks for them again.
        """
        completions: Iterator[Completion] = iterate(
            lambda deliver: _Requests(self, self._key, sampling, deliver).run(prompts),
            room=self.config.max_concurrency,
        )
        try:
            for completion in completions:
                yield self._without_key(completion)
        except Exception as error:
            # Whatever a server made a library say, the key is not in it when it leaves here.
            said = self._redact(str(error))
            if said == str(error):
                raise
            raise (UserError if isinstance(error, UserError) else RuntimeError)(said) from None

    def _without_key(self, completion: Completion) -> Completion:
        thinking, error = (text and self._redact(text) for text in (completion.thinking, completion.error))
        return replace(completion, content=self._redact(completion.content), thinking=thinking, error=error)


class RetryableError(Exception):
    """This request failed in a way that may pass.

    too_many: it was one too many. slowed: so the pace has been slowed down since it was sent.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait_s: float | None = None,
        too_many: bool = False,
        slowed: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.wait_s, self.too_many, self.slowed, self.unreachable = wait_s, too_many, slowed, unreachable


class _Requests:
    """All requests of one generation."""

    def __init__(self, engine: OpenAIEngine, key: str, sampling: SamplingConfig, deliver: Deliver[Completion]) -> None:
        self._config, self._model, self._first_wait_s = engine.config, engine.model, engine.first_wait_s
        self._sampling, self._deliver, self._key, self._redact = sampling, deliver, key, engine._redact
        self._url = f"{engine.base_url}/chat/completions"
        self._extra = json.loads(engine.config.extra_body or "{}")
        self._neutral = urlsplit(engine.base_url).hostname not in WITHOUT_NEUTRAL
        """Whether the values that change nothing are sent, so that the server's own do not slip in."""
        self._pace = Pace(engine.config.max_concurrency)
        self._reached = False
        self._num_answers = 0
        self._held: list[tuple[float, Completion]] = []
        """When, and error completions of one kind without an answer since; whose fault they are is not known yet."""
        self._held_kind = ""

    async def run(self, prompts: Iterable[Prompt]) -> None:
        """Ask for every sample of every prompt; raise the first error that concerns them all."""
        todo = ((prompt, sample) for prompt in prompts for sample in range(self._sampling.num_samples))
        most = self._config.max_concurrency
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # The time for the whole answer is held in `_ask`: a server that sends a byte now and then passes any other.
        timeout = httpx2.Timeout(None, connect=min(CONNECT_TIMEOUT_S, self._config.timeout_s))
        limits = httpx2.Limits(max_connections=CLIENT_CONNECTIONS, max_keepalive_connections=CLIENT_CONNECTIONS)
        context = httpx2.create_ssl_context()
        async with AsyncExitStack() as stack:
            clients = []
            for _ in range(0, most, CLIENT_CONNECTIONS):
                client = httpx2.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=context)
                clients.append(await stack.enter_async_context(client))
            workers = [
                asyncio.create_task(self._work(clients[number // CLIENT_CONNECTIONS], todo)) for number in range(most)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        await self._release_held()

    async def _work(self, client: httpx2.AsyncClient, todo: Iterator[tuple[Prompt, int]]) -> None:
        for prompt, sample in todo:
            asked_at = time.monotonic()
            try:
                completion = await self._completion(client, prompt, sample)
            except RequestRejected as refusal:
                await self._hold(Completion(prompt.id, sample, "", None, "error", 0, str(refusal)), refusal.kind)
            else:
                await self._deliver(completion)
                await self._release_held(before=asked_at)

    async def _completion(self, client: httpx2.AsyncClient, prompt: Prompt, sample: int) -> Completion:
        """The answer, with retries. Raises RequestRejected, and UserError to stop the run."""
        neutral = self._neutral
        payload = self._payload(prompt, sample, neutral=neutral)
        attempt = 1
        while True:
            answers_before = self._num_answers
            try:
                async with self._pace:
                    data = await self._ask(client, payload)
            except RetryableError as failure:
                # While others are answered, or fewer can be asked, one too many has to wait: it has not failed.
                if not (failure.too_many and (failure.slowed or self._num_answers > answers_before)):
                    attempt += 1
                if attempt > self._config.max_retries + 1:
                    raise self._given_up(failure) from None
                wait = max(backoff_s(attempt - 1, first_s=self._first_wait_s), failure.wait_s or 0)
                if failure.too_many or failure.wait_s:
                    self._pace.pause(wait)
                await asyncio.sleep(wait)
            except RequestRejected as refusal:
                if not (neutral and FIELD_REFUSED.search(str(refusal))):
                    raise
                # It does not know these fields, so it has no settings of its own for them either.
                neutral = self._neutral = False
                payload = self._payload(prompt, sample, neutral=False)
            else:
                self._num_answers += 1
                self._pace.speed_up()
                return to_completion(data, prompt.id, sample)

    def _payload(self, prompt: Prompt, sample: int, *, neutral: bool) -> bytes:
        body = request_body(self._model, prompt, self._sampling, sample=sample, extra=self._extra, neutral=neutral)
        return json.dumps(body).encode()

    def _given_up(self, failure: RetryableError) -> Exception:
        tries = f"asked {self._config.max_retries + 1} times"
        if failure.unreachable:
            return UserError(f"{failure}, {tries}; when it is back, the same command goes on from here")
        return RequestRejected(f"{failure} ({tries})", kind="given up")

    async def _ask(self, client: httpx2.AsyncClient, payload: bytes) -> dict[str, Any]:
        """The JSON object of one successful response. Raises RetryableError, RequestRejected and UserError."""
        sent_at = time.monotonic()
        try:
            # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes with the answer.
            with anyio.fail_after(self._config.timeout_s):
                status, headers, body = await self._post(client, payload)
        except TimeoutError:
            raise RetryableError(f"no whole answer within {self._config.timeout_s:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            reason = f"{self._url} cannot be reached ({self._said(error)})"
            if not self._reached:
                raise UserError(f"{reason}; is the server up, and is this its address?") from None
            raise RetryableError(reason, unreachable=True) from None
        except httpx2.RequestError as error:
            raise RetryableError(f"the connection broke ({self._said(error)})") from None
        self._reached = True
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        error = data.get("error") if isinstance(data, dict) else None
        if status < 300 and isinstance(data, dict) and not error:
            return data
        if status < 300 and not isinstance(data, dict):
            raise RetryableError("the answer is no JSON object")
        if status < 300:  # routers report their upstream's failure like this
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
        # The key is taken out before the text is shortened, or half of it could be left at the end.
        words = one_line(self._redact(error_message(data) or body.decode(errors="replace"))) or "no reason given"
        reason = f"HTTP {status}: {words}"
        if status < 400:
            place = one_line(self._redact(headers.get("location", "nowhere")))
            raise UserError(f"{self._url} redirects to {place}; give the address that answers as base_url")
        if status in (401, 402, 403, 404) or (isinstance(error, dict) and error.get("code") == "insufficient_quota"):
            raise UserError(f"{self._url}: {reason}\n{self._remedy(status)}; then the same command goes on from here")
        if status not in (408, 409, 425, 429) and status < 500:
            raise RequestRejected(reason)
        wait_s = retry_after_s(headers.get("retry-after"))
        if wait_s is not None and wait_s > MAX_PAUSE_S:
            raise UserError(
                f"{self._url}: {reason}\nit asks to wait {wait_s / 60:,.0f} minutes; the same command goes on from here"
            )
        slowed = status == 429 and self._pace.slow_down(sent_at)
        raise RetryableError(reason, wait_s=wait_s, too_many=status == 429, slowed=slowed)

    async def _post(self, client: httpx2.AsyncClient, payload: bytes) -> Outcome:
        async with client.stream("POST", self._url, content=payload) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise RetryableError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
            return response.status_code, response.headers, bytes(body)

    async def _hold(self, failed: Completion, kind: str) -> None:
        """Keep an error completion back until it is known that the server as a whole works. Raises UserError if not."""
        now = time.monotonic()
        others = []
        if kind != self._held_kind:
            others, self._held, self._held_kind = self._held, [], kind
        self._held.append((now, failed))
        for _, completion in others:
            await self._deliver(completion)
        if len({completion.id for _, completion in self._held}) >= MAX_IN_A_ROW:
            raise UserError(
                f"{self._url}: {MAX_IN_A_ROW} prompts in a row failed, and none was answered meanwhile: {failed.error}\n"
                "Mend the cause (server, model name, --sampling, --engine.extra-body); the same command goes on from here"
            )

    async def _release_held(self, *, before: float = math.inf) -> None:
        """Deliver what failed before an answer was asked for that has come: there the server did work."""
        released = [completion for at, completion in self._held if at < before]
        self._held = [(at, completion) for at, completion in self._held if at >= before]
        for completion in released:
            await self._deliver(completion)

    def _remedy(self, status: int) -> str:
        if status == 404:
            return f"give the server's name of the model ({self._model!r} now) and its address (most end with /v1)"
        if status in (401, 403):
            return f"set OPENAI_API_KEY to a key that may use {self._model}" + ("" if self._key else " (it is not set)")
        return "the account behind OPENAI_API_KEY has no credit left: add some, or use another one"

    def _said(self, error: Exception) -> str:
        """What a library says of a connection, which may repeat what the server sent."""
        return one_line(self._redact(str(error))) or type(error).__name__
