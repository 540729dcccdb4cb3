"""The Batch API of OpenAI and compatible servers: files up and down, batches made, found and looked at. One call each.

    api = BatchApi(url, key=key, ...)
    file_id = api.upload(path); batch = api.create(file_id); batch = api.look(batch.id)
    api.download(batch.output_file_id, Path("results.jsonl"))

Calls that may pass are repeated. Raises UserError for all that cannot be helped by waiting.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from distill_lab.errors import UserError
from distill_lab.files.outputs import writing
from distill_lab.generation.engines._chat_completions import RequestRejected, one_line
from distill_lab.generation.engines._http_retry import backoff_s
from distill_lab.generation.engines._http_status import RetryableError, json_object
from distill_lab.types import JsonObject

ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
"""The only completion window that servers have."""
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the server describes it."""

    id: str
    status: str
    """Running: validating, in_progress, finalizing; over: completed, failed, expired, and when it was canceled."""
    output_file_id: str | None
    error_file_id: str | None
    total: int
    done: int
    """Requests that have an answer or an error."""
    problems: list[str]
    """Why it failed, with the server's code in front."""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        ended = self.status in ("completed", "complete", "ended", "failed", "expired")
        return ended or re.fullmatch("cancel+ed", self.status) is not None

    @classmethod
    def from_json(cls, row: JsonObject) -> Batch:
        """Raises UserError for an object that is not a batch."""
        counts, errors = row.get("request_counts"), row.get("errors")
        counts = counts if isinstance(counts, dict) else {}
        found = errors.get("data") if isinstance(errors, dict) else errors
        name, status = row.get("id"), row.get("status")
        if not isinstance(name, str) or not isinstance(status, str):
            raise UserError("the server's answer is not a batch (no id or status); leave out --engine.batch")
        return cls(
            name,
            status.lower(),
            _file_id(row.get("output_file_id")),
            _file_id(row.get("error_file_id")),
            _number(counts.get("total")),
            _number(counts.get("completed")) + _number(counts.get("failed")),
            [one_line(_problem(each)) for each in (found if isinstance(found, list) else [])],
        )


def _file_id(value: object) -> str | None:
    return str(value) if value else None


def _number(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _problem(error: object) -> str:
    if not isinstance(error, dict):
        return str(error)
    return ": ".join(str(error[name]) for name in ("code", "message") if error.get(name)) or str(error)


class BatchApi:
    """Calls to one server. key: empty for servers without keys. first_wait_s: see `_http_retry.backoff_s`."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str,
        timeout_s: float,
        max_retries: int,
        first_wait_s: float,
        redact: Callable[[str], str],
    ) -> None:
        self._url, self._max_retries, self._first_wait_s, self._redact = base_url, max_retries, first_wait_s, redact
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._client = httpx2.Client(headers=headers, timeout=timeout)

    def upload(self, path: Path) -> str:
        """Send a file of requests; returns its id on the server."""

        def send() -> httpx2.Response:
            with path.open("rb") as file:
                return self._client.post(
                    f"{self._url}/files",
                    data={"purpose": "batch"},
                    files={"file": ("requests.jsonl", file, "application/jsonl")},
                )

        found = self._json("/files", send).get("id")
        if not isinstance(found, str):
            raise UserError(f"{self._url}/files: the server's answer has no file id; leave out --engine.batch")
        return found

    def create(self, file_id: str, *, again: bool) -> Batch:
        """Make a batch of an uploaded file. again: there may be one already, which is then used: none is paid for twice."""
        body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": WINDOW}
        if again and (found := self._find(file_id)):
            return found
        for attempt in range(1, self._max_retries + 2):
            try:
                return Batch.from_json(
                    self._once("/batches", lambda: self._client.post(f"{self._url}/batches", json=body))
                )
            except RetryableError as failure:
                if attempt > self._max_retries:
                    raise self._gone(failure) from None
                time.sleep(max(backoff_s(attempt, first_s=self._first_wait_s), failure.wait_s or 0))
                if found := self._find(file_id):
                    return found
        raise AssertionError("not reached")

    def _find(self, file_id: str) -> Batch | None:
        """The newest batch of a file, if the server lists its batches."""
        try:
            listed = self._json("/batches", lambda: self._client.get(f"{self._url}/batches", params={"limit": 100}))
        except UserError:
            return None  # it lists none; then a batch is made
        rows = listed.get("data")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("input_file_id") == file_id:
                return Batch.from_json(row)
        return None

    def look(self, batch_id: str) -> Batch | None:
        """The state of a batch; None if the server does not know it (any more)."""
        path = f"/batches/{batch_id}"
        found = self._json(path, lambda: self._client.get(f"{self._url}{path}"), missing_ok=True)
        return Batch.from_json(found) if found else None

    def download(self, file_id: str, into: Path) -> bool:
        """Fetch a file from the server; False if the server does not have it (any more)."""
        path = f"/files/{file_id}/content"

        def fetch() -> httpx2.Response:
            with self._client.stream("GET", f"{self._url}{path}") as response:
                if response.status_code != 200:
                    response.read()
                    return response
                with writing(into), into.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                return httpx2.Response(200, content=b'{"fetched": true}')

        return bool(self._json(path, fetch, missing_ok=True))

    def _json(self, path: str, call: Callable[[], httpx2.Response], *, missing_ok: bool = False) -> JsonObject:
        """The JSON object of a call, repeated while its failure may pass."""
        for attempt in range(1, self._max_retries + 2):
            try:
                return self._once(path, call, missing_ok=missing_ok)
            except RetryableError as failure:
                if attempt > self._max_retries:
                    raise self._gone(failure) from None
                time.sleep(max(backoff_s(attempt, first_s=self._first_wait_s), failure.wait_s or 0))
        raise AssertionError("not reached")

    def _once(self, path: str, call: Callable[[], httpx2.Response], *, missing_ok: bool = False) -> JsonObject:
        url = f"{self._url}{path}"
        try:
            response = call()
            body = response.content
        except httpx2.RequestError as error:
            reason = one_line(self._redact(str(error))) or type(error).__name__
            raise RetryableError(f"{url} cannot be reached ({reason})") from None
        if response.status_code == 404 and missing_ok:
            return {}
        try:
            return json_object(
                response.status_code, response.headers, body, url=url, redact=self._redact, remedy=_remedy
            )
        except RequestRejected as rejection:
            raise UserError(f"{url}: {rejection}\nIf this server has no Batch API, leave out --engine.batch") from None

    def _gone(self, failure: RetryableError) -> UserError:
        return UserError(
            f"{failure}, tried {self._max_retries + 1} times; batches continue on the server: run the same command again to "
            "fetch their answers"
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def _remedy(status: int) -> str:
    if status == 404:
        return "this server has no Batch API at this address (most end with /v1); leave out --engine.batch"
    if status in (401, 403):
        return "set OPENAI_API_KEY to a key that may use files and batches"
    return "the account for OPENAI_API_KEY has no credit left: add credit, or use another account"
