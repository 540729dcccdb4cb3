"""Streaming: the pieces are the whole greedy answer, closing stops the model, and servers of both kinds are read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from distill_lab.chat import answer_text
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines import load_engine
from distill_lab.generation.streaming import LocalSpeaker, load_speaker
from distill_lab.types import Message
from tests.helpers import tiny_prompts
from tests.hostile_server import KEY

TINY = ModelConfig(model="tiny:student", dtype="fp32")


@pytest.fixture(scope="module")
def speaker() -> LocalSpeaker:
    found = load_speaker(TINY, EngineConfig())
    assert isinstance(found, LocalSpeaker)
    return found


@pytest.mark.parametrize("thinking", [True, False])
def test_the_pieces_are_the_engines_answer(speaker: LocalSpeaker, thinking: bool) -> None:
    sampling = SamplingConfig(max_new_tokens=40, thinking=thinking)
    engine = load_engine(TINY, EngineConfig(engine="transformers"))
    for prompt in tiny_prompts(3):
        pieces = list(speaker.answer(prompt.messages, sampling))
        [whole] = engine.generate([prompt], sampling)
        assert "".join(pieces).split() == answer_text(whole.content, whole.thinking).split()
        assert len(pieces) > 1


def test_letters_of_several_tokens_come_whole(speaker: LocalSpeaker, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = speaker.tokenizer.encode("naïve 漢字 🙂", add_special_tokens=False)

    def tokens(row: Any, limit: Any, sampling: Any, pieces: Any, stopped: Any) -> None:
        for token in ids:
            pieces.put([token])
        pieces.put(None)

    monkeypatch.setattr(speaker, "_generate", tokens)
    pieces = list(speaker.answer([{"role": "user", "content": "x"}], SamplingConfig()))
    assert "".join(pieces) == "naïve 漢字 🙂"
    assert not any("\ufffd" in piece for piece in pieces)


def test_closing_stops_the_model(speaker: LocalSpeaker, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    model: Any = speaker.model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    monkeypatch.setattr(speaker.io, "end_ids", [len(speaker.tokenizer) - 1])
    pieces = speaker.answer([{"role": "user", "content": "apple"}], SamplingConfig(max_new_tokens=2000))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert 0 < len(calls) < 2000
    before = len(calls)
    assert threading.active_count() < 50
    assert len(calls) == before


def test_what_goes_wrong_in_the_model_is_raised_here(speaker: LocalSpeaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(speaker.model, "forward", fails)
    with pytest.raises(RuntimeError, match="broken"):
        list(speaker.answer([{"role": "user", "content": "x"}], SamplingConfig()))


def test_a_conversation_that_is_too_long_is_refused(speaker: LocalSpeaker) -> None:
    long: list[Message] = [{"role": "user", "content": "apple " * 5000}]
    with pytest.raises(UserError, match="context is 4096; /reset starts a new conversation"):
        list(speaker.answer(long, SamplingConfig()))


@contextmanager
def server(status: int, kind: str, body: bytes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives one answer; its address, and the requests it received."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(request | {"key": self.headers["Authorization"]})
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
    finally:
        running.shutdown()
        running.server_close()


def said(url: str) -> str:
    speaker = load_speaker(ModelConfig(model="openai:big"), EngineConfig(base_url=url, timeout_s=10))
    return "".join(speaker.answer([{"role": "user", "content": "hi"}], SamplingConfig(max_new_tokens=9)))


def events(*deltas: dict[str, Any]) -> bytes:
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    return "".join([": a comment\n\n", *lines, 'data: {"choices": []}\n\n', "data: [DONE]\n\n"]).encode()


def test_a_stream_is_read_with_its_thinking(openai_environment: None) -> None:
    body = events(
        {"role": "assistant"},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "Yes"},
        {"content": "."},
    )
    with server(200, "text/event-stream", body) as (url, seen):
        assert said(url) == "<think>\nhm\n</think>\n\nYes."
    assert (seen[0]["model"], seen[0]["stream"], seen[0]["max_tokens"]) == ("big", True, 9)
    assert seen[0]["key"] == f"Bearer {KEY}"


def test_a_server_that_does_not_stream_is_read_too(openai_environment: None) -> None:
    answer = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
    with server(200, "application/json", json.dumps(answer).encode()) as (url, _):
        assert said(url) == "Yes."


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_an_answer_that_cannot_be_read_is_an_error(kind: str, openai_environment: None) -> None:
    with server(200, kind, b"data: {oops\n\n") as (url, _), pytest.raises(UserError):
        said(url)


@pytest.mark.parametrize("depth", [900, 50_000])
def test_deep_fields_are_passed_over(depth: int, openai_environment: None) -> None:
    deep = "[" * depth + "]" * depth
    body = (
        b'data: {"debug": '
        + deep.encode()
        + b', "choices": [{"delta": {"content": "Yes"}}]}\n\n'
        + events({"content": "."})
    )
    with server(200, "text/event-stream", body) as (url, _):
        assert said(url) == "Yes."
    whole = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "debug": "HERE"}
    with server(200, "application/json", json.dumps(whole).replace('"HERE"', deep).encode()) as (url, _):
        assert said(url) == "Yes."
    refusal = '{"error": {"message": "no"}, "debug": ' + deep + "}"
    with (
        server(400, "application/json", refusal.encode()) as (url, _),
        pytest.raises(ModelError, match="big: HTTP 400"),
    ):
        said(url)


def test_a_refusal_is_told_without_the_key(openai_environment: None) -> None:
    body = json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()
    with (
        server(401, "application/json", body) as (url, _),
        pytest.raises(ModelError, match="big: HTTP 401: wrong key") as error,
    ):
        said(url)
    assert KEY not in str(error.value)


def test_a_server_that_is_not_there(openai_environment: None) -> None:
    with server(200, "text/plain", b"") as (url, _):
        pass
    with pytest.raises(ModelError, match="big: its server does not answer"):
        said(url)
