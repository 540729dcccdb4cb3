"""A server that scores texts: token ids -> the log-probabilities of each token and of the most likely ones in its place.

    server = ScoringServer(ModelConfig(model="openai:big"), EngineConfig(base_url="http://host:8000/v1"), size=20)
    server.probe(tokenizer)                  raises UserError if it cannot score, or has another tokenizer
    scores = server.scores([[9707, 11, 1879]])

One `POST /completions` per text, with `prompt_logprobs`, which vLLM's server has and most others lack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypedDict, cast

import httpx2
from transformers import PreTrainedTokenizerBase

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.errors import UserError
from distill_lab.generation.engines import openai_api
from distill_lab.generation.engines._chat_completions import RequestRejected
from distill_lab.generation.engines._event_loop import Deliver, iterate
from distill_lab.generation.engines._http_retry import backoff_s
from distill_lab.generation.engines._http_status import RetryableError, json_object

NUM_PROBED = 64
"""Tokens whose spelling on the server is compared with the student's."""
LOWEST = -1e4
"""Stands for a probability of 0, whose logarithm is not a number of JSON."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One position of a text."""

    log_p: dict[int, float]
    """Log-probabilities, in nats, by id: the most likely ids and the token that is there."""
    texts: dict[int, str]
    """How the server spells some of these ids; empty if it does not say."""


class _Score(TypedDict):
    """What vLLM says of an id at a position."""

    logprob: float
    decoded_token: str | None


class _Choice(TypedDict):
    prompt_logprobs: list[dict[str, _Score]]
    """By position and id; there is nothing at the first position."""


class _ServedModel(TypedDict):
    id: str
    max_model_len: int | None


class _Answer(TypedDict):
    """What is read of a response: the choices of /completions, the data of /models. Reading finds out if it is there."""

    choices: list[_Choice]
    data: list[_ServedModel]


class ScoringServer:
    """A teacher's model behind an OpenAI-compatible server."""

    def __init__(self, model: ModelConfig, config: EngineConfig, *, size: int, first_wait_s: float = 1.0) -> None:
        """size: how many of the most likely ids the server names at each position. Raises UserError for a bad address
        and for prices, of which texts that are scored would be left out."""
        if config.price.known:
            raise UserError(
                f"{model.model}: engine.price and --max-cost count answers, not the texts that a server scores, which are "
                "most of what a teacher on a server does on-policy; remove them"
            )
        engine = openai_api.load(model, config)
        self.name, self.size, self.config, self.first_wait_s = engine.model, size, config, first_wait_s
        self.url, self._key, self._redact = f"{engine.base_url}/completions", engine.key, engine.redact
        self._extra = config.extra_fields

    def probe(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError unless the server scores texts, names `size` ids, and spells ids as `tokenizer` does."""
        ids = _some_ids(tokenizer)
        try:
            scores = self.scores([ids])[0]
        except UserError as error:
            raise UserError(
                f"{self.name}: this server cannot score texts, so it cannot teach on-policy ({error}). vLLM's can: "
                f"`vllm serve MODEL --max-logprobs {self.size}`; or load the teacher here"
            ) from None
        named = min(len(each.log_p) for each in scores)
        if named < self.size:
            raise UserError(
                f"{self.name}: the server names {named} ids at a position, {self.size} were requested; start it with "
                f"--max-logprobs {self.size}, or lower --teacher-top-k"
            )
        for id, each in zip(ids[1:], scores, strict=True):
            theirs = each.texts.get(id)
            ours = str(tokenizer.decode([id], clean_up_tokenization_spaces=False))
            if theirs is not None and "\ufffd" not in theirs + ours and theirs != ours:
                raise UserError(
                    f"{self.name} and the student have different tokenizers: id {id} is {theirs!r} on the server and "
                    f"{ours!r} in the student. On-policy distillation compares probabilities id by id; choose a teacher "
                    "with the student's tokenizer"
                )

    def scores(self, texts: Sequence[Sequence[int]]) -> list[list[TokenScores]]:
        """For each text, the scores of its tokens from the second one on. Raises UserError."""
        found = dict(self.each(texts))
        return [found[number] for number in range(len(texts))]

    def each(self, texts: Sequence[Sequence[int]]) -> Generator[tuple[int, list[TokenScores]]]:
        """As `scores`, each as soon as it is there, with the number of its text. Stopping early (Ctrl-C) ends all requests.

        Raises UserError after what was there before the error.
        """
        with closing(
            iterate(lambda deliver: self._score_all(texts, deliver), room=self.config.max_concurrency)
        ) as arriving:
            for done, found in enumerate(arriving, 1):
                activity.report("texts that the teacher's server has scored:", done, len(texts))
                yield found

    def context(self) -> int | None:
        """The longest text that can be scored, in tokens; None if the server does not say (`max_model_len` in /models)."""
        return next(iter(iterate(self._context, room=1)))

    def _client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self.config.max_concurrency)
        return httpx2.AsyncClient(headers=headers, timeout=self.config.timeout_s, limits=limits)

    async def _score_all(self, texts: Sequence[Sequence[int]], deliver: Deliver[tuple[int, list[TokenScores]]]) -> None:
        todo = iter(enumerate(texts))
        async with self._client() as client:

            async def work() -> None:
                for number, ids in todo:
                    body = {"model": self.name, "prompt": list(ids), "prompt_logprobs": self.size}
                    body |= {"max_tokens": 1, "temperature": 0.0}
                    # Other fields are for answers as well; what is needed for scores stays.
                    given = {name: value for name, value in self._extra.items() if value is not None}
                    data = await self._retried(lambda given=given, body=body: client.post(self.url, json=given | body))
                    await deliver((number, self._read(data, ids)))

            workers = [asyncio.create_task(work()) for _ in range(min(self.config.max_concurrency, len(texts)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _context(self, deliver: Deliver[int | None]) -> None:
        async with self._client() as client:
            try:
                data = await self._retried(lambda: client.get(f"{self.url.removesuffix('/completions')}/models"))
                said = [each["max_model_len"] for each in data["data"] if each["id"] == self.name]
                # One token is generated after the text.
                await deliver(next((number - 1 for number in said if type(number) is int), None))
            except (UserError, LookupError, TypeError):
                await deliver(None)

    async def _retried(self, ask: Callable[[], Awaitable[httpx2.Response]]) -> _Answer:
        """The JSON object of a response. Raises UserError."""
        attempt = 1
        while True:
            try:
                return await self._asked(ask)
            except RequestRejected as error:
                raise UserError(f"{self.url}: {error}") from None
            except RetryableError as error:
                if attempt > self.config.max_retries:
                    raise UserError(
                        f"{self.url}: {error} (tried {attempt} times); when it is back, run the same command again to resume"
                    ) from None
                await asyncio.sleep(max(backoff_s(attempt, first_s=self.first_wait_s), error.wait_s or 0.0))
                attempt += 1

    async def _asked(self, ask: Callable[[], Awaitable[httpx2.Response]]) -> _Answer:
        try:
            response = await ask()
        except httpx2.TimeoutException:
            raise RetryableError(f"no complete answer within {self.config.timeout_s:g} s") from None
        except httpx2.RequestError as error:
            raise RetryableError(f"it cannot be reached ({self._redact(str(error)) or type(error).__name__})") from None
        remedy: Callable[[int], str] = lambda status: "check the model's name, the address and OPENAI_API_KEY"  # noqa: E731
        answer = json_object(
            response.status_code, response.headers, response.content, url=self.url, redact=self._redact, remedy=remedy
        )
        return cast("_Answer", answer)

    def _read(self, data: _Answer, ids: Sequence[int]) -> list[TokenScores]:
        """The scores in a response. Raises UserError if they are not those of `ids`."""
        try:
            found = data["choices"][0]["prompt_logprobs"]
            scores = [_position(each) for each in found[1:]]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UserError(f"{self.url}: its answer has no prompt_logprobs in vLLM's form") from None
        if len(scores) != len(ids) - 1 or any(id not in each.log_p for id, each in zip(ids[1:], scores, strict=False)):
            raise UserError(f"{self.url}: the scores are of other tokens than those that were sent")
        return scores


def _position(found: Mapping[str, _Score]) -> TokenScores:
    log_p = {int(id): max(float(each["logprob"]), LOWEST) for id, each in found.items()}
    texts = {int(id): text for id, each in found.items() if isinstance(text := each.get("decoded_token"), str)}
    return TokenScores(log_p, texts)


def _some_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ordinary tokens from all over the vocabulary."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    return ids[:: max(1, len(ids) // NUM_PROBED)][:NUM_PROBED]
