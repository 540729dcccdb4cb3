"""Generate with any OpenAI-compatible server (vLLM, SGLang, Ollama, hosted APIs): prompts in, completions out.

    distill generate --model openai:Qwen/Qwen2.5-7B-Instruct --engine.base-url http://host:8000/v1 --data ... --out ...

One `POST /chat/completions` per sample, at most `max_concurrency` at once; prompts are read only when needed, so memory
does not grow with their number. Failures that may be temporary (408, 409, 429, 5xx, a broken connection, a timeout, an
answer that is not JSON) are retried. Every prompt gets a completion (with `finish_reason` "error" if the server rejects
it), or the run stops with the reason and keeps all completions so far.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx2

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.errors import ModelError, UserError
from distill_lab.files.redact import redactor
from distill_lab.generation.engines._batch import BatchEngine
from distill_lab.generation.engines._chat_completions import RequestRejected, one_line
from distill_lab.generation.engines._event_loop import Deliver, iterate
from distill_lab.generation.engines._exchange import Exchange
from distill_lab.generation.engines._http_retry import FIRST_WAIT_S, AdaptiveLimiter, backoff_s
from distill_lab.generation.engines._http_status import RetryableError, json_object
from distill_lab.generation.prices import Budget, announcement, estimate, num_bytes, spending, upper_bound
from distill_lab.types import Completion, JsonObject, Prompt, Usage

if TYPE_CHECKING:
    from distill_lab.generation.engines import Engine

PREFIX = "openai:"
TAKES_RESPONSE_FORMAT = True
CONNECT_TIMEOUT_S = 10.0
CLIENT_CONNECTIONS = 16
"""Connections per client, which searches all of its connections for every request."""
MAX_BYTES = 1 << 24
"""Maximum size of an answer."""
MAX_IN_A_ROW = 20
"""If this many different prompts fail for the same reason with no answer in between, the run stops."""

Outcome = tuple[int, httpx2.Headers, bytes]
"""Status, headers and body of a response."""


def preference() -> int:
    """0: used only for models named openai:NAME."""
    return 0


def load(model: ModelConfig, config: EngineConfig) -> OpenAIEngine:
    """Check the server's address and key without contacting it. Raises UserError."""
    name = model.model.removeprefix(PREFIX)
    if not model.model.startswith(PREFIX) or not name:
        raise ModelError(
            model.model, f"the engine openai_api needs {PREFIX}NAME, where NAME is the server's model name"
        )
    if model.revision is not None:
        raise ModelError(model.model, "a server's model has no revision; remove the revision setting")
    url = config.base_url or os.environ.get("OPENAI_BASE_URL", "").strip()
    if not url:
        raise UserError(
            f"{model.model}: no server address; give --engine.base-url http://host:8000/v1, or set OPENAI_BASE_URL "
            "(for OpenAI: https://api.openai.com/v1)"
        )
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY contains invalid characters; set it again")
    return OpenAIEngine(name, config, base_url=check_base_url(url), key=key)


class OpenAIEngine:
    """A model on a server. key: empty for servers without keys. first_wait_s: see `_http_retry.backoff_s`."""

    def __init__(
        self, model: str, config: EngineConfig, *, base_url: str, key: str = "", first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        self.model, self.config, self.base_url, self.first_wait_s = model, config, base_url, first_wait_s
        self.key, self.redact = key, redactor([key, *config.secrets])
        self.on_note: Callable[[str], None] = lambda note: None
        """Receives what a user should know about how the server is asked; `load_engine` sets it."""
        self.budget: Budget | None = None
        """What the requests may cost; without an output to fill, nothing is counted."""
        self._announce = True

    def generate(self, prompts: Iterable[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        Reads `prompts` in another thread. Raises UserError if the server cannot be reached, rejects the key or model, or
        fails on every prompt; error completions from right before that are dropped, so that the same command retries
        them.
        """
        notes: list[str] = []
        if self.budget and self._announce and self.config.price.known and isinstance(prompts, Sequence):
            self.on_note(f"{self.model}: {announcement(prompts, sampling, self.config.price, batch=False)}")
        exchange = self.exchange(sampling, notes)
        completions: Iterator[Completion] = iterate(
            lambda deliver: _Requests(self, self.key, exchange, deliver).run(prompts),
            room=self.config.max_concurrency,
        )
        try:
            for completion in completions:
                self.say(notes)
                yield self.without_key(completion)
        except Exception as error:
            raise self.clean(error) from None
        finally:
            self.say(notes)

    def record(self, sampling: SamplingConfig) -> JsonObject:
        """What requests with this sampling contain, and which settings they leave to the server, as far as it is known."""
        return self.exchange(sampling, []).record()

    def clean(self, error: Exception) -> Exception:
        """The error without the key, whatever the server made a library write into the message."""
        message = self.redact(str(error))
        if message == str(error):
            return error
        return (UserError if isinstance(error, UserError) else RuntimeError)(message)

    def for_output(self, output: Path, paid: Sequence[Path] = ()) -> Engine:
        """The engine that fills `output`: in batches if requested, and within the costs that the user allows.

        paid: other completions files of the same run, whose costs count too.
        """
        price = self.config.price
        spent = spending({output, *paid}, price).cost if price.known else None
        self.count_costs(spent or 0.0)
        assert self.budget is not None
        return BatchEngine(self, output, self.budget) if self.config.batch else self

    def count_costs(self, spent: float, *, announce: bool = True) -> None:
        """Stop before requests exceed the maximum cost, of which `spent` is used up; announce: say before what they cost."""
        self.budget, self._announce = Budget(self.config.price, spent=spent), announce

    def finished(self) -> None:
        """All completions are on disk."""

    def exchange(self, sampling: SamplingConfig, notes: list[str]) -> Exchange:
        """The requests with this sampling, and their answers; what the user should know is added to `notes`."""
        extra = self.config.extra_fields
        return Exchange(self.model, self.base_url, sampling, extra=extra, on_note=notes.append)

    def say(self, notes: list[str]) -> None:
        """Hand over the notes."""
        # In the caller's thread: the requests are made in another one.
        while notes:
            self.on_note(self.redact(notes.pop(0)))

    def without_key(self, completion: Completion) -> Completion:
        """The completion with the key removed, should the server have repeated it."""
        thinking, error = (text and self.redact(text) for text in (completion.thinking, completion.error))
        return replace(completion, content=self.redact(completion.content), thinking=thinking, error=error)


class _Requests:
    """All requests of one `generate` call."""

    def __init__(self, engine: OpenAIEngine, key: str, exchange: Exchange, deliver: Deliver[Completion]) -> None:
        self._config, self._model, self._first_wait_s = engine.config, engine.model, engine.first_wait_s
        self._exchange, self._deliver, self._key, self._redact = exchange, deliver, key, engine.redact
        self._budget = engine.budget
        self._url = f"{engine.base_url}/chat/completions"
        self._limiter = AdaptiveLimiter(engine.config.max_concurrency)
        self._paid = asyncio.Condition()
        self._reached = False
        self._num_answers = 0
        self._held: list[tuple[float, Completion]] = []
        """Error completions of one kind (with their time) since the last answer; the cause is not known yet."""
        self._held_kind = ""

    async def run(self, prompts: Iterable[Prompt]) -> None:
        """Request every sample of every prompt; raise the first error that affects all of them."""
        todo = ((prompt, sample) for prompt in prompts for sample in range(self._exchange.sampling.num_samples))
        most = self._config.max_concurrency
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # `_ask` limits the time of the whole answer; other timeouts miss a server that sends a byte now and then.
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
            bound = await self._afford(prompt)
            asked_at = time.monotonic()
            try:
                completion = await self._completion(client, prompt, sample)
            except RequestRejected as rejection:
                await self._settle(bound, None)
                await self._hold(Completion(prompt.id, sample, "", None, "error", 0, str(rejection)), rejection.kind)
            else:
                if completion.usage is None and bound is not None and completion.finish_reason != "error":
                    completion = replace(completion, usage=estimate(num_bytes(prompt), completion))
                await self._settle(bound, completion.usage)
                await self._deliver(completion)
                await self._release_held(before=asked_at)

    async def _afford(self, prompt: Prompt) -> Usage | None:
        """Wait until the budget allows a request; its upper bound. Raises UserError if it never will."""
        if self._budget is None or not self._budget.price.known:
            return None
        bound = upper_bound(prompt, self._exchange.sampling.max_new_tokens, batch=False)
        async with self._paid:
            while not self._budget.fits(bound):
                if not self._budget.under_way:
                    raise UserError(self._budget.stopped())
                await self._paid.wait()
            self._budget.send(bound)
        return bound

    async def _settle(self, bound: Usage | None, usage: Usage | None) -> None:
        if bound is not None and self._budget is not None:
            async with self._paid:
                self._budget.settle(bound, usage)
                self._paid.notify_all()

    async def _completion(self, client: httpx2.AsyncClient, prompt: Prompt, sample: int) -> Completion:
        """The answer, with retries. Raises RequestRejected, and UserError to stop the run."""
        dialect = self._exchange.dialect
        payload = json.dumps(self._exchange.body(prompt, sample, dialect)).encode()
        attempt = 1
        while True:
            answers_before = self._num_answers
            try:
                async with self._limiter:
                    data = await self._ask(client, payload)
            except RetryableError as failure:
                # A 429 is not a failed attempt while other requests get answers or the limit can still be lowered.
                if not (failure.rate_limited and (failure.slowed or self._num_answers > answers_before)):
                    attempt += 1
                if attempt > self._config.max_retries + 1:
                    raise self._final_error(failure) from None
                wait = max(backoff_s(attempt - 1, first_s=self._first_wait_s), failure.wait_s or 0)
                if failure.rate_limited or failure.wait_s:
                    self._limiter.pause(wait)
                await asyncio.sleep(wait)
            except RequestRejected as rejection:
                other = self._exchange.other_form(rejection, dialect)
                if other is None:
                    raise
                dialect = other
                payload = json.dumps(self._exchange.body(prompt, sample, dialect)).encode()
            else:
                self._num_answers += 1
                self._limiter.speed_up()
                return self._exchange.completion(data, prompt.id, sample, dialect)

    def _final_error(self, failure: RetryableError) -> Exception:
        tries = f"tried {self._config.max_retries + 1} times"
        if failure.unreachable:
            return UserError(f"{failure}, {tries}; when it is back, run the same command again to resume")
        return RequestRejected(f"{failure} ({tries})", kind="given up")

    async def _ask(self, client: httpx2.AsyncClient, payload: bytes) -> JsonObject:
        """The JSON object of one successful response. Raises RetryableError, RequestRejected and UserError."""
        sent_at = time.monotonic()
        try:
            # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes with the answer.
            with anyio.fail_after(self._config.timeout_s):
                status, headers, body = await self._post(client, payload)
        except TimeoutError:
            raise RetryableError(f"no complete answer within {self._config.timeout_s:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            reason = f"{self._url} cannot be reached ({self._message(error)})"
            if not self._reached:
                raise UserError(f"{reason}; check that the server is running and that this is its address") from None
            raise RetryableError(reason, unreachable=True) from None
        except httpx2.RequestError as error:
            raise RetryableError(f"the connection broke ({self._message(error)})") from None
        self._reached = True
        try:
            return json_object(status, headers, body, url=self._url, redact=self._redact, remedy=self._remedy)
        except RetryableError as failure:
            failure.slowed = failure.rate_limited and self._limiter.slow_down(sent_at)
            raise

    async def _post(self, client: httpx2.AsyncClient, payload: bytes) -> Outcome:
        async with client.stream("POST", self._url, content=payload) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise RetryableError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
            return response.status_code, response.headers, bytes(body)

    async def _hold(self, failed: Completion, kind: str) -> None:
        """Hold back an error completion until it is clear that the server works. Raises UserError if it does not."""
        now = time.monotonic()
        others = []
        if kind != self._held_kind:
            others, self._held, self._held_kind = self._held, [], kind
        self._held.append((now, failed))
        for _, completion in others:
            await self._deliver(completion)
        if len({completion.id for _, completion in self._held}) >= MAX_IN_A_ROW:
            raise UserError(
                f"{self._url}: {MAX_IN_A_ROW} prompts in a row failed, with no answer in between: {failed.error}\n"
                "Fix the cause (server, model name, --sampling, --engine.extra-body), then run the same command again to "
                "resume"
            )

    async def _release_held(self, *, before: float = math.inf) -> None:
        """Deliver errors from before `before`: an answer requested then has arrived, so the server was working."""
        released = [completion for at, completion in self._held if at < before]
        self._held = [(at, completion) for at, completion in self._held if at >= before]
        for completion in released:
            await self._deliver(completion)

    def _remedy(self, status: int) -> str:
        if status == 404:
            return f"check the server's name for the model (now {self._model!r}) and its address (most end with /v1)"
        if status in (401, 403):
            return f"set OPENAI_API_KEY to a key that may use {self._model}" + ("" if self._key else " (it is not set)")
        return "the account for OPENAI_API_KEY has no credit left: add credit, or use another account"

    def _message(self, error: Exception) -> str:
        """A library's message about a connection, which may repeat what the server sent."""
        return one_line(self._redact(str(error))) or type(error).__name__
