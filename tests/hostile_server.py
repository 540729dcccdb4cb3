"""A chat completions server on a real socket that does to each prompt what its script says, and else answers.

with HostileServer() as server:
    server.script["hello"] = [Reply(status=500), Reply(reset=True)]     # then it answers
    ... server.url ...
    server.asked("hello")                                               # bodies it was asked with
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distill_lab.types import Prompt

KEY = "sk-secret-0123456789abcdef"


def prompts(*texts: str | int) -> list[Prompt]:
    """A prompt of each text, p-TEXT its id."""
    return [Prompt(f"p-{text}", [{"role": "user", "content": str(text)}]) for text in texts]


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int = 200
    body: Any = None
    """JSON, or bytes as they are; None: an answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    """Break the connection instead."""
    stall: bool = False
    """Say nothing until the server is closed."""
    raw: bytes | None = None
    """The whole response, status line and headers, as it goes over the wire; then the connection ends."""


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    text: str
    """The last message."""
    body: dict[str, Any]
    headers: dict[str, str]
    """Names in small letters."""
    path: str
    at: float
    """`time.monotonic()`."""


def answer(
    content: Any = "yes", *, finish_reason: Any = "stop", tokens: int | None = 3, **message: Any
) -> dict[str, Any]:
    """The JSON of a response; `message` holds further fields of the assistant's message."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    return {"choices": [choice], **({} if tokens is None else {"usage": {"completion_tokens": tokens}})}


class HostileServer:
    """Answers `re: <last message>` in `delay_s` where neither `script` (by last message, in order) nor `rule` says else."""

    def __init__(self, *, rule: Callable[[Request], Reply | None] | None = None, delay_s: float = 0.0, port: int = 0):
        self.script: dict[str, list[Reply]] = {}
        self.requests: list[Request] = []
        self.rule, self.delay_s = rule, delay_s
        self.running = self.most_running = 0
        self.lock, self.closed = threading.Lock(), threading.Event()
        hostile = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One write per response, sent at once: a second packet would wait for the first one's acknowledgement.
            wbufsize, disable_nagle_algorithm = -1, True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                names = {name.lower(): value for name, value in self.headers.items()}
                request = Request(body["messages"][-1]["content"], body, names, self.path, time.monotonic())
                hostile.handle(self, request)

            def do_GET(self) -> None:
                hostile.reply(self, Request("", {}, {}, self.path, 0.0), Reply(body={"data": [{"id": "hostile"}]}))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that go away are part of the tests

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def handle(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        with self.lock:
            self.requests.append(request)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            replies = self.script.get(request.text)
            reply = replies.pop(0) if replies else None
        try:
            if reply is None and self.rule is not None:
                reply = self.rule(request)
            self.reply(handler, request, reply or Reply())
        finally:
            with self.lock:
                self.running -= 1

    def reply(self, handler: BaseHTTPRequestHandler, request: Request, reply: Reply) -> None:
        if reply.reset:
            # With this option closing sends a reset; both file objects hold the socket open until then.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return
        if reply.raw is not None:
            handler.wfile.write(reply.raw)
            handler.close_connection = True
            return
        if reply.stall:
            self.closed.wait(60)
            handler.close_connection = True
            return
        if reply.body is None:
            time.sleep(self.delay_s)
        body = answer(f"re: {request.text}") if reply.body is None and reply.status == 200 else reply.body
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, text: str) -> list[Request]:
        return [request for request in self.requests if request.text == text]

    def break_off(self) -> None:
        """Go away: nothing listens any more, and whoever asks on an open connection is cut off."""
        self.rule = lambda request: Reply(reset=True)
        self.script.clear()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed.set()
        self.break_off()
