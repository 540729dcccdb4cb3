"""Ask a server's model through its Batch API: prompts in, completions out as batches end, at half the price.

    engine = BatchEngine(server_engine, Path("completions.jsonl"), budget)
    for completion in engine.generate(prompts, sampling): ...

The ids of batches are kept in `<output>.work/batches.json`, so that after an interruption the same command continues them.
What a batch leaves out (it expired, or requests failed that may pass) is sent again in the next one. Nothing is sent while
batches of this output are under way.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from distill_lab import activity
from distill_lab.config import EngineConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import write_json
from distill_lab.files.outputs import remove_work, work_folder, writing
from distill_lab.generation.engines._batch_files import ENDPOINT, Batch, BatchApi
from distill_lab.generation.engines._chat_completions import RequestRejected, error_message, one_line
from distill_lab.generation.engines._chat_response import read_json
from distill_lab.generation.engines._dialect import Dialect
from distill_lab.generation.engines._exchange import Exchange
from distill_lab.generation.engines._http_status import RetryableError, json_object
from distill_lab.generation.prices import Budget, announcement, estimate, num_bytes, upper_bound
from distill_lab.types import Completion, JsonObject, Prompt, Usage

MAX_REQUESTS, MAX_BYTES = 50_000, 100 << 20
"""Of one batch, as OpenAI's."""
FIRST_POLL_S = 1.0
"""The wait between looks doubles from this to engine.batch_poll_s."""


@dataclass
class _Round:
    """What became of the requests of the batches that were under way together."""

    answered: int = 0
    fresh: int = 0
    """Batches that an earlier execution had not read yet."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reasons of failures that may pass."""
    stop: str = ""
    """Why the run must not go on by itself."""


class ServerModel(Protocol):
    """What a batch needs of the engine openai_api, which describes each of these."""

    model: str
    base_url: str
    config: EngineConfig
    first_wait_s: float
    key: str
    redact: Callable[[str], str]
    on_note: Callable[[str], None]

    def exchange(self, sampling: SamplingConfig, notes: list[str]) -> Exchange: ...
    def say(self, notes: list[str]) -> None: ...
    def without_key(self, completion: Completion) -> Completion: ...
    def clean(self, error: Exception) -> Exception: ...
    def record(self, sampling: SamplingConfig) -> JsonObject: ...


class BatchEngine:
    """A server's model, asked in batches to fill one output."""

    def __init__(self, engine: ServerModel, output: Path, budget: Budget) -> None:
        self._engine, self._output, self._budget = engine, output, budget
        self.on_note = engine.on_note
        self._waiting: dict[str, tuple[str, int, int]] = {}
        """Requests without an answer: custom id -> prompt id, sample and the prompt's bytes."""
        self._attempts: Counter[str] = Counter()
        self._batches: list[dict[str, str]] = []
        """As on disk. Those that are done stay until all completions are written (`finished`)."""
        self._read_here: set[str] = set()
        """Batches whose results this execution has read."""
        self._dialect = Dialect()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, those of a batch when it ends. Raises UserError as the engine does."""
        engine, notes = self._engine, list[str]()
        exchange = engine.exchange(sampling, notes)
        self._dialect = exchange.dialect
        samples = range(sampling.num_samples)
        if engine.config.price.known:
            engine.on_note(f"{engine.model}: {announcement(prompts, sampling, engine.config.price, batch=True)}")
        self._waiting = {_name(prompt, n): (prompt.id, n, num_bytes(prompt)) for prompt in prompts for n in samples}
        settings = fingerprint({"model": engine.model, "url": engine.base_url, "sampling": sampling.model_dump()})
        self._read(settings)
        api = BatchApi(
            engine.base_url, key=engine.key, timeout_s=engine.config.timeout_s, max_retries=engine.config.max_retries,
            first_wait_s=engine.first_wait_s, redact=engine.redact,
        )  # fmt: skip
        try:
            while self._waiting:
                if not self._unread(settings):
                    self._send(api, exchange, prompts, settings)
                result = _Round()
                for completion in self._fetch(api, exchange, settings, result):
                    engine.say(notes)
                    yield engine.without_key(completion)
                if self._waiting:
                    self._check(result)
        except Exception as error:  # whatever it is goes on, without the key
            raise engine.clean(error) from None
        finally:
            engine.say(notes)
            api.close()

    def finished(self) -> None:
        """All completions are on disk: nothing of the batches is needed any more."""
        if self._state.exists():
            remove_work(self._output)

    def for_output(self, output: Path, paid: Sequence[Path] = ()) -> BatchEngine:
        """This engine, which is already that of one output."""
        assert output == self._output
        return self

    def record(self, sampling: SamplingConfig) -> JsonObject:
        """As of the engine without batches."""
        return self._engine.record(sampling)

    def _unread(self, settings: str) -> list[dict[str, str]]:
        return [each for each in self._batches if each["settings"] == settings and each["file"] not in self._read_here]

    def _read(self, settings: str) -> None:
        """Load the batches that an earlier execution began."""
        path = self._state
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self._batches = [
                    {name: str(each[name]) for name in ("settings", "file", "id", "done")} for each in found
                ]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{path} does not list batches ({error}); remove it, and cancel batches that are under way on the server"
                ) from None
        for entry in self._batches:
            if entry["settings"] != settings and not entry["done"]:
                self._engine.on_note(
                    f"batch {entry['id']} of other settings may still run on the server; cancel it there"
                )

    @property
    def _state(self) -> Path:
        return self._output.with_name(f"{self._output.name}.work") / "batches.json"

    def _save(self) -> None:
        work_folder(self._output)
        with writing(self._state):
            write_json(self._state, self._batches)

    def _send(self, api: BatchApi, exchange: Exchange, prompts: Sequence[Prompt], settings: str) -> None:
        """Upload all waiting requests and make batches of them, as far as they fit the budget."""
        work = work_folder(self._output)
        path, full = work / "requests.jsonl", True
        requests = self._requests(exchange, prompts)
        held: bytes | None = None
        sent = 0
        while full:
            count = size = 0
            full = False
            with writing(path), path.open("wb") as file:
                if held:
                    count, size, held = 1, file.write(held), None
                for line in requests:
                    if count >= MAX_REQUESTS or (count and size + len(line) > MAX_BYTES):
                        held, full = line, True
                        break
                    count, size = count + 1, size + file.write(line)
            if count:
                with activity.doing(f"uploading {count:,} requests"):
                    entry = {"settings": settings, "file": api.upload(path), "id": "", "done": ""}
                self._batches.append(entry)
                self._save()  # before the batch exists: an interruption right now must not pay for it twice
                entry["id"] = api.create(entry["file"], again=False).id
                self._save()
                sent += count
                self._engine.on_note(
                    f"{self._engine.model}: batch {entry['id']} with {count:,} requests; after an interruption the same "
                    "command continues it"
                )
        path.unlink(missing_ok=True)
        if not sent:
            raise UserError(self._budget.stopped())

    def _requests(self, exchange: Exchange, prompts: Sequence[Prompt]) -> Iterator[bytes]:
        """A line for each waiting request, until the budget is used up."""
        for prompt in prompts:
            bound = upper_bound(prompt, exchange.sampling.max_new_tokens, batch=True)
            for sample in range(exchange.sampling.num_samples):
                name = _name(prompt, sample)
                if name not in self._waiting:
                    continue
                if not self._budget.fits(bound):
                    return
                self._budget.send(bound)
                body = exchange.body(prompt, sample, self._dialect)
                row = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
                yield json.dumps(row).encode() + b"\n"

    def _fetch(self, api: BatchApi, exchange: Exchange, settings: str, result: _Round) -> Iterator[Completion]:
        """The completions of all batches under way, each batch when it ends."""
        wait_s = min(FIRST_POLL_S, self._engine.config.batch_poll_s)
        while ours := self._unread(settings):
            done = total = 0
            states: Counter[str] = Counter()
            for entry in ours:
                if not entry["id"]:
                    entry["id"] = api.create(entry["file"], again=True).id
                    self._save()
                batch = api.look(entry["id"])
                if batch is None and entry["done"]:
                    pass
                elif batch is None:
                    self._engine.on_note(f"the server does not know batch {entry['id']}; its requests are sent again")
                elif not batch.over:
                    done, total = done + batch.done, total + batch.total
                    states[batch.status] += 1
                    continue
                else:
                    yield from self._ended(api, exchange, batch, result)
                    if not entry["done"]:
                        result.fresh += 1
                        self._explain(batch, result)
                self._read_here.add(entry["file"])
                entry["done"] = "yes"
                self._save()
            if states:
                named = ", ".join(f"{number} {status}" for status, number in states.items())
                activity.report(f"batches on the server: {named}, requests done", done, total)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, self._engine.config.batch_poll_s)
        self._budget.under_way = 0.0
        activity.over()

    def _ended(self, api: BatchApi, exchange: Exchange, batch: Batch, result: _Round) -> Iterator[Completion]:
        """The completions of a batch that is over, also if it ended early."""
        results = work_folder(self._output) / "results.jsonl"
        dialect, damaged = self._dialect, 0
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            if not api.download(file_id, results):
                self._engine.on_note(f"the server no longer has the results of batch {batch.id} (file {file_id})")
                continue
            for line in _lines(results):
                try:
                    row = read_json(line)
                except ValueError:
                    row = None
                name = row.get("custom_id") if isinstance(row, dict) else None
                if not isinstance(row, dict) or not isinstance(name, str):
                    damaged += 1
                    continue
                if name not in self._waiting:
                    continue
                completion = self._completion(exchange, row, name, dialect, result)
                if completion is not None:
                    *_, read = self._waiting.pop(name)
                    result.answered += 1
                    yield self._settled(completion, read)
        results.unlink(missing_ok=True)
        if damaged:
            self._engine.on_note(
                f"batch {batch.id}: {damaged:,} lines of its results are damaged; those requests are sent again"
            )

    def _explain(self, batch: Batch, result: _Round) -> None:
        """Say why a batch ended early, and whether its rest may be sent again."""
        reasons = "; ".join(batch.problems[:3])
        if batch.status == "expired":
            self._engine.on_note(f"batch {batch.id} expired; what it did not answer is sent again")
        elif batch.status.startswith("cancel"):
            result.stop = f"batch {batch.id} was canceled on the server; run the same command again to send the rest"
        elif batch.status == "failed":
            text = f"batch {batch.id} failed: {reasons or 'the server gives no reason'}"
            result.failures[text] += 1
            if "limit" not in reasons:
                result.stop = f"{text}\nFix the cause, then run the same command again"

    def _completion(
        self, exchange: Exchange, row: JsonObject, name: str, dialect: Dialect, result: _Round
    ) -> Completion | None:
        """The completion in a line of results; None if the request is to be sent again."""
        prompt_id, sample, _ = self._waiting[name]
        response = row.get("response")
        response = response if isinstance(response, dict) else {}
        body, status = response.get("body"), response.get("status_code")
        error = row.get("error") or (body.get("error") if isinstance(body, dict) else None)
        try:
            if not isinstance(body, dict) or row.get("error"):
                raise _failure(error)
            status = status if type(status) is int else 200
            if status in (401, 402, 403, 404):
                raise RequestRejected(f"HTTP {status}: {one_line(self._engine.redact(error_message(body)))}")
            text = json.dumps(body).encode()
            data = json_object(status, {}, text, url="batch", redact=self._engine.redact, remedy=lambda _: "")
            return exchange.completion(data, prompt_id, sample, dialect)
        except RequestRejected as rejection:
            reason = str(rejection)
            other = exchange.other_form(rejection, dialect)
            if other is not None:
                self._dialect = other
                result.answered += 1  # something was learned
                return None
        except RetryableError as failure:
            reason = str(failure)
            result.failures[reason] += 1
            self._attempts[name] += 1
            if self._attempts[name] <= self._engine.config.max_retries:
                return None
        return Completion(prompt_id, sample, "", None, "error", 0, reason)

    def _settled(self, completion: Completion, read: int) -> Completion:
        usage: Usage | None = completion.usage
        if usage is None and self._budget.price.known and completion.finish_reason != "error":
            usage = estimate(read, completion)
        if usage is None:
            return completion
        usage = replace(usage, batch=True)
        self._budget.settle(Usage(0, 0), usage)
        return replace(completion, usage=usage)

    def _check(self, result: _Round) -> None:
        """Raise UserError if the rest must not be sent by itself."""
        if result.stop:
            raise UserError(result.stop)
        if result.fresh and not result.answered:
            reasons = "; ".join(reason for reason, _ in result.failures.most_common(3)) or "the server gives no reason"
            raise UserError(
                f"the server ended its batches without an answer ({reasons}); run the same command again later"
            )


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.strip())


def _failure(error: object) -> Exception:
    """What a line without a response means: a batch that ended early is sent again, other errors are final."""
    error = error if isinstance(error, dict) else {"message": error or "no response and no error"}
    words = one_line(": ".join(str(error[name]) for name in ("code", "message") if error.get(name)))
    again = any(
        word in words.lower()
        for word in ("expired", "cancel", "timeout", "rate_limit", "rate limit", "server_error", "no response")
    )
    return RetryableError(words) if again else RequestRejected(words)


def _name(prompt: Prompt, sample: int) -> str:
    """The custom id of a request, the same in every execution."""
    content = json.dumps([prompt.id, prompt.messages], sort_keys=True).encode()
    return f"{blake2b(content, digest_size=16).hexdigest()}-{sample}"
