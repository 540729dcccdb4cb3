"""The engine for servers, against a server on real sockets that misbehaves: it loses and hides nothing, and tells no key."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.generation.engines._chat_completions import RequestRejected, request_body
from distill_lab.generation.engines._chat_response import to_completion
from distill_lab.generation.generate import generate
from distill_lab.types import Completion, Prompt
from tests.hostile_server import KEY, HostileServer, Reply, Request, answer, prompts
from tests.openai_asked import SAMPLING, ask, engine

pytestmark = pytest.mark.usefixtures("openai_environment")


def test_every_prompt_is_answered_once(server: HostileServer) -> None:
    found = ask(engine(server), range(100))
    assert all(row.content == f"re: {text}" and row.finish_reason == "stop" for text, row in found.items())
    assert all(row.num_tokens == 3 for row in found.values())
    assert len(server.requests) == 100
    assert 2 <= server.most_running <= 8
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "reply",
    [
        *(Reply(status=status, body={"error": {"message": "later"}}) for status in (408, 409, 429, 500, 502, 503)),
        Reply(reset=True),
        Reply(body=b"<html>gateway</html>"),
        Reply(body=b'{"choices": [{"mess'),
        Reply(body=json.dumps(answer("torn")).encode().replace(b"torn", b"to\xffn")),
        Reply(body=[1]),
        Reply(body=b"[" * 100_000),
        Reply(body={"error": {"code": 502, "message": "the provider failed"}}),
        Reply(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
        Reply(body=b'{"choices": []}', headers={"Content-Length": "1000", "Connection": "close"}),
    ],
    ids=lambda reply: f"{reply.status} {str(reply.body)[:20]}{' reset' if reply.reset else ''}",
)
def test_a_failure_that_may_pass_is_asked_again(server: HostileServer, reply: Reply) -> None:
    server.script["b"] = [reply, reply]
    found = ask(engine(server), "abc")
    assert [found[text].content for text in "abc"] == ["re: a", "re: b", "re: c"]
    assert [len(server.asked(text)) for text in "abc"] == [1, 3, 1]


def test_a_prompt_that_always_fails_ends_as_an_error_with_the_reason(server: HostileServer) -> None:
    server.script["b"] = [Reply(status=500, body={"error": {"message": "CUDA error"}})] * 9
    server.script["c"] = [Reply(reset=True)] * 9
    found = ask(engine(server), "abcde")
    assert (found["b"].finish_reason, found["b"].num_tokens, found["b"].content) == ("error", 0, "")
    assert found["b"].error == "HTTP 500: CUDA error (tried 4 times)"
    assert str(found["c"].error).startswith("the connection broke (")
    assert len(server.asked("b")) == len(server.asked("c")) == 4
    assert [found[text].content for text in "ade"] == ["re: a", "re: d", "re: e"]


def test_a_stalled_request_is_given_up_and_asked_again(server: HostileServer) -> None:
    server.script["b"] = [Reply(stall=True)]
    server.script["c"] = [Reply(stall=True)] * 9
    found = ask(engine(server, timeout_s=0.3, max_retries=1), "abcd")
    assert [found[text].content for text in "abd"] == ["re: a", "re: b", "re: d"]
    assert found["c"].error == "no complete answer within 0.3 s (tried 2 times)"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_not_asked_again(server: HostileServer, status: int) -> None:
    server.script["b"] = [Reply(status=status, body={"error": {"message": "maximum context\nlength is 32"}})]
    found = ask(engine(server), "abc")
    assert found["b"].finish_reason == "error"
    assert found["b"].error == f"HTTP {status}: maximum context length is 32"
    assert found["a"].content == "re: a"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"choices": []}, "the server's response has no choices"),
        ({}, "the server's response has no choices"),
        ({"choices": [{"index": 0}]}, "the choice in the server's response has no message"),
        (answer(None), "the answer's content is null instead of text (finish_reason 'stop')"),
        (answer(7), "the answer's content is a JSON int instead of text (finish_reason 'stop')"),
        (
            answer(None, finish_reason="tool_calls"),
            "the answer's content is null instead of text (finish_reason 'tool_calls')",
        ),
        (answer("", finish_reason=None), "the answer is empty, and its finish_reason is None"),
        (answer("half", finish_reason="abort"), "the answer is incomplete: its finish_reason is 'abort'"),
        (answer("half", finish_reason="content_filter"), "the server's content filter cut off the answer"),
    ],
)
def test_a_response_without_an_answer_is_an_error(server: HostileServer, body: Any, reason: str) -> None:
    server.script["b"] = [Reply(body=body)]
    found = ask(engine(server), "abc")
    assert (found["b"].finish_reason, found["b"].content, found["b"].error) == ("error", "", reason)
    assert (found["a"].content, found["c"].content) == ("re: a", "re: c")


@pytest.mark.parametrize("depth", [900, 50_000])
@pytest.mark.parametrize("place", ["beside", "in the choice", "in the message", "in the usage"])
def test_an_answer_with_a_deep_field_is_an_answer(
    server: HostileServer, tmp_path: Path, depth: int, place: str
) -> None:
    body = {**answer("fine"), "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
    owner = {
        "beside": body, "in the choice": body["choices"][0], "in the message": body["choices"][0]["message"],
        "in the usage": body["usage"],
    }[place]  # fmt: skip
    owner["debug"] = "HERE"
    deep = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
    server.script["b"] = [Reply(body=json.dumps(body).encode().replace(b'"HERE"', deep))]
    server.script["c"] = [Reply(status=400, body=b'{"error": {"message": "too long", "debug": ' + deep + b"}}")]
    write_jsonl(tmp_path / "prompts.jsonl", (prompt.to_json() for prompt in prompts(*"abcd")))
    found: dict[str, Any] = {}
    for _ in range(2):  # the second time the file is read again, and the refused prompt asked again
        generate(tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", lambda: engine(server), SAMPLING)
        found = {row["id"]: row for row in read_jsonl(tmp_path / "out.jsonl")}
        assert (found["p-b"]["content"], found["p-b"]["num_tokens"]) == ("fine", 3)
        assert found["p-d"]["content"] == "re: d"
        if not server.asked("c")[1:]:
            assert (found["p-c"]["finish_reason"], "too long" in found["p-c"]["error"]) == ("error", True)
    assert found["p-c"]["content"] == "re: c"


def test_what_a_response_holds() -> None:
    def read(body: dict[str, Any]) -> tuple[str | None, str, str, int]:
        row = to_completion(body, "p", 1)
        assert (row.id, row.sample, row.error) == ("p", 1, None)
        return row.thinking, row.content, row.finish_reason, row.num_tokens

    assert read(answer("5", reasoning_content="2+3")) == ("2+3", "5", "stop", 3)
    assert read(answer("\n\n5", reasoning_content="\n2+3\n")) == ("2+3", "5", "stop", 3)
    assert read(answer("5", reasoning="2+3")) == ("2+3", "5", "stop", 3)
    assert read(answer("<think>\n2+3\n</think>\n\n5")) == ("2+3", "5", "stop", 3)
    assert read(answer("<think>\n2+", finish_reason="length")) == ("2+", "", "length", 3)
    assert read(answer("5", reasoning_content=" ", reasoning=None)) == (None, "5", "stop", 3)
    assert read(answer(None, reasoning_content="2+", finish_reason="length")) == ("2+", "", "length", 3)
    assert read(answer("", finish_reason="length")) == (None, "", "length", 3)
    assert read(answer("cut", finish_reason="length", tokens=None)) == (None, "cut", "length", 0)
    for tokens in (True, -1, "7", 2.5):
        assert read({**answer("x"), "usage": {"completion_tokens": tokens}})[3] == 0
    assert read({**answer("x"), "usage": None})[3] == 0
    with pytest.raises(RequestRejected, match="no choices"):
        to_completion({"choices": "none"}, "p", 0)


def test_every_sampling_field_reaches_the_server(server: HostileServer) -> None:
    settings = {"top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "temperature": 0.25}
    sampling = SamplingConfig(max_new_tokens=9, stop=("END", "\n"), num_samples=3, thinking=False, seed=5, **settings)
    found = list(engine(server).generate(prompts("a"), sampling))
    assert sorted(row.sample for row in found) == [0, 1, 2]
    bodies = [request.body for request in server.requests]
    seeds = [body.pop("seed") for body in bodies]
    assert len(set(seeds)) == 3
    assert 5 in seeds
    expected = {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 9,
        "stop": ["END", "\n"],
        "chat_template_kwargs": {"enable_thinking": False},
        **settings,
    }
    assert bodies == [expected] * 3
    # A field of SamplingConfig that nobody maps would be lost in silence.
    mapped = {"max_new_tokens", "stop", "num_samples", "thinking", "seed", "from_model", "response_format", *settings}
    assert mapped == set(SamplingConfig.model_fields)


def test_defaults_that_hosted_servers_do_not_know_are_not_sent() -> None:
    turns = [{"role": "assistant", "content": "4", "thinking": "2+2"}, {"role": "user", "content": "and 3?"}]
    body = request_body("m", Prompt("p", turns), SamplingConfig(), sample=0, extra={})
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    assert body["messages"] == [{"role": "assistant", "content": "4"}, {"role": "user", "content": "and 3?"}]
    extra = {"max_tokens": None, "max_completion_tokens": 5, "seed": None}
    body = request_body("m", Prompt("p", turns), SamplingConfig(), sample=0, extra=extra)
    assert set(body) == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}
    seeds = {
        request_body("m", Prompt("p", []), SamplingConfig(seed=seed), sample=sample, extra={})["seed"]
        for seed in range(50)
        for sample in range(50)
    }
    assert len(seeds) == 2500


def test_half_a_surrogate_pair_can_be_asked(server: HostileServer) -> None:
    [row] = engine(server).generate([Prompt("p", [{"role": "user", "content": "cut \ud83d"}])], SAMPLING)
    assert row.content == "re: cut \ud83d"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_pauses_all_requests(server: HostileServer, form: str) -> None:
    seconds, server.delay_s = 1, 0.01
    refusals = ["5"]

    def rule(request: Request) -> Reply | None:
        if request.text not in refusals:
            return None
        refusals.remove(request.text)
        date = datetime.now(timezone.utc) + timedelta(seconds=seconds + 1)  # it has whole seconds
        header = str(seconds) if form == "seconds" else format_datetime(date, usegmt=True)
        return Reply(status=429, headers={"Retry-After": header}, body={"error": {"message": "slow down"}})

    server.rule = rule
    ask(engine(server, max_concurrency=2), range(30))
    refused = server.asked("5")[0].at
    # One request may have been under way when the other was refused; nothing else starts within the pause.
    early = [request for request in server.requests if refused + 0.2 < request.at < refused + 0.8 * seconds]
    assert not early
    assert server.asked("5")[1].at >= refused + 0.9 * seconds
    assert len(server.requests) == 31


def test_a_server_that_serves_one_at_a_time_is_served_so(server: HostileServer) -> None:
    def rule(request: Request) -> Reply | None:
        return Reply(status=429, headers={"Retry-After": "0.02"}) if server.running > 1 else None

    server.rule, server.delay_s = rule, 0.002
    found = ask(engine(server, max_concurrency=32, max_retries=2), range(100))
    # With two retries each, prompts are lost where the pool does not slow down, or takes waiting for failing.
    assert all(row.content == f"re: {text}" for text, row in found.items())


def test_the_key_is_repeated_nowhere(server: HostileServer) -> None:
    server.script["a"] = [Reply(body=answer(f"you sent {KEY}", reasoning_content=KEY))]
    server.script["b"] = [Reply(status=400, body={"error": {"message": f"{'x' * 290} {KEY}"}})]
    server.script["c"] = [Reply(status=500, body=f"plain {KEY}".encode())] * 4
    found = ask(engine(server), "abc")
    assert (found["a"].content, found["a"].thinking) == ("you sent ***", "***")
    assert found["c"].error == "HTTP 500: plain *** (tried 4 times)"
    assert not any(KEY[:12] in str(row) for row in found.values())


def test_a_placeholder_for_a_key_is_no_secret(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    config = EngineConfig(base_url=server.url)
    [row] = load_engine(ModelConfig(model="openai:m"), config).generate(prompts("EMPTY"), SAMPLING)
    assert row.content == "re: EMPTY"
    monkeypatch.delenv("OPENAI_API_KEY")
    [row] = load_engine(ModelConfig(model="openai:m"), config).generate(prompts("a"), SAMPLING)
    assert "authorization" not in server.asked("a")[0].headers
    server.script["b"] = [Reply(status=401)]
    with pytest.raises(UserError, match=r"\(it is not set\)"):
        list(load_engine(ModelConfig(model="openai:m"), config).generate(prompts("b"), SAMPLING))


def test_prompts_are_read_as_they_are_needed(server: HostileServer) -> None:
    taken = 0

    def many() -> Iterator[Prompt]:
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield prompts(number)[0]

    answers = engine(server, max_concurrency=4).generate(many(), SAMPLING)
    assert taken == 0
    for _ in range(10):
        next(answers)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        time.sleep(0.02)
    # Ten handed over; four wait to be, and four are answered but find no room.
    assert taken <= 10 + 4 + 4 + 1
    before = threading.active_count()
    answers.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator, which the type does not say
    assert threading.active_count() < before


def test_no_prompts_need_no_server() -> None:
    config = EngineConfig(base_url="http://127.0.0.1:9/v1")
    assert list(load_engine(ModelConfig(model="openai:m"), config).generate([], SAMPLING)) == []


def test_it_works_where_an_event_loop_runs(server: HostileServer) -> None:
    async def notebook() -> list[Completion]:
        return list(engine(server).generate(prompts("a"), SAMPLING))

    assert [row.content for row in asyncio.run(notebook())] == ["re: a"]
