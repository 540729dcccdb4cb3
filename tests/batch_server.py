"""A server with OpenAI's Batch API on a real socket: files up and down, batches that run for some looks and then end.

with BatchServer() as server:
    server.answer = lambda body: Line(...)          what becomes of a request; default: it answers `re: <last message>`
    server.end = lambda number: "expired"           how batch number 0, 1, ... ends
    ... server.url ...
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hostile_server import answer


@dataclass(frozen=True)
class Line:
    """What becomes of one request of a batch. body: of the response; error: of the line; raw: the whole line."""

    body: Any = None
    status: int = 200
    error: Any = None
    missing: bool = False
    raw: bytes | None = None


@dataclass
class Made:
    """A batch on the server."""

    id: str
    input_file_id: str
    status: str = "validating"
    looks: int = 0
    output: str | None = None
    errors: str | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "batch", "status": self.status, "input_file_id": self.input_file_id,
            "output_file_id": self.output, "error_file_id": self.errors, "errors": {"data": self.problems},
            "request_counts": {"total": 3, "completed": self.looks, "failed": 0},
        }  # fmt: skip


class BatchServer:
    """looks: how often a batch is still running before it ends. fail: (method, path) -> a status to fail with, or None."""

    def __init__(self, *, looks: int = 2) -> None:
        self.looks = looks
        self.files: dict[str, bytes] = {}
        self.batches: list[Made] = []
        self.calls: list[tuple[str, str]] = []
        self.authorizations: set[str | None] = set()
        self.answer: Callable[[dict[str, Any]], Line] = lambda body: Line()
        self.end: Callable[[int], str] = lambda number: "completed"
        self.problems: list[dict[str, Any]] = []
        self.fail: Callable[[str, str], int | None] = lambda method, path: None
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize, disable_nagle_algorithm = -1, True

            def do_POST(self) -> None:
                outer.handle(self, "POST", self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def do_GET(self) -> None:
                outer.handle(self, "GET", b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def handle(self, handler: BaseHTTPRequestHandler, method: str, content: bytes) -> None:
        path = handler.path.split("?")[0].removeprefix("/v1")
        with self.lock:
            self.calls.append((method, path))
            self.authorizations.add(handler.headers.get("Authorization"))
            failed = self.fail(method, path)
            # A server that fails here may have done the work.
            found = self.work(method, path, content)
        status, body = (failed, {"error": {"message": "out of order"}}) if failed else found
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def work(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        if (method, path) == ("POST", "/files"):
            assert b'name="purpose"' in content
            boundary = content.split(b"\r\n", 1)[0]
            [part] = [part for part in content.split(boundary) if b"filename=" in part]
            return 200, {"id": self.store(part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n"))}
        if (method, path) == ("POST", "/batches"):
            asked = json.loads(content)
            assert asked["endpoint"] == "/v1/chat/completions"
            assert asked["completion_window"] == "24h"
            self.batches.append(Made(f"batch-{len(self.batches)}", asked["input_file_id"]))
            return 200, self.batches[-1].to_json()
        if (method, path) == ("GET", "/batches"):
            return 200, {"object": "list", "data": [batch.to_json() for batch in reversed(self.batches)]}
        if found := re.fullmatch(r"/batches/batch-(\d+)", path):
            number = int(found[1])
            if number < len(self.batches):
                self.look(number)
                return 200, self.batches[number].to_json()
        if (found := re.fullmatch(r"/files/(.+)/content", path)) and found[1] in self.files:
            return 200, self.files[found[1]]
        return 404, {"error": {"message": f"no {path}"}}

    def store(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def look(self, number: int) -> None:
        """One more look at a batch; the last one ends it."""
        batch = self.batches[number]
        if batch.status not in ("validating", "in_progress"):
            return
        batch.looks += 1
        batch.status = "in_progress"
        if batch.looks <= self.looks:
            return
        batch.status = self.end(number)
        if batch.status == "failed":
            batch.problems = self.problems
            return
        good, bad = [], []
        for line in self.requests(number):
            result = self.answer(line["body"])
            if result.missing:
                continue
            if result.raw is not None:
                good.append(result.raw)
                continue
            body = result.body
            if body is None and result.status == 200:
                body = answer(f"re: {line['body']['messages'][-1]['content']}")
            response = None if result.error else {"status_code": result.status, "request_id": "r", "body": body}
            row = {"id": "x", "custom_id": line["custom_id"], "response": response, "error": result.error}
            (bad if result.error or result.status != 200 else good).append(json.dumps(row).encode())
        batch.output = self.store(b"\n".join([*good, b""])) if good else None
        batch.errors = self.store(b"\n".join([*bad, b""])) if bad else None

    def requests(self, number: int) -> list[dict[str, Any]]:
        """The lines of a batch's input."""
        return [json.loads(line) for line in self.files[self.batches[number].input_file_id].splitlines()]

    def __enter__(self) -> BatchServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
