"""When the engine for servers stops a run: what concerns every prompt, a server that goes away, and what comes out then."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines._event_loop import Deliver, iterate
from distill_lab.generation.engines.openai_api import MAX_IN_A_ROW
from distill_lab.generation.generate import generate
from distill_lab.types import Completion, Counts, Prompt
from tests.hostile_server import KEY, HostileServer, Reply, prompts
from tests.openai_asked import SAMPLING, ask, collect, engine

pytestmark = pytest.mark.usefixtures("openai_environment")


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "set OPENAI_API_KEY"), (402, "no credit"), (403, "set OPENAI_API_KEY"), (404, "most end with /v1")],
)
def test_what_concerns_every_prompt_stops_the_run_at_once(server: HostileServer, status: int, message: str) -> None:
    done: list[Completion] = []
    server.script["20"] = [Reply(status=status, body={"error": {"message": f"no entry with {KEY}"}})]
    with pytest.raises(UserError) as stopped:
        collect(engine(server, max_concurrency=2).generate(prompts(*range(100)), SAMPLING), done)
    assert f"HTTP {status}: no entry with ***" in str(stopped.value)
    assert message in str(stopped.value)
    assert KEY not in str(stopped.value)
    assert len(server.asked("20")) == 1
    # Of two at a time everything before 20 was done, but for the one that was under way.
    assert 19 <= len(done) == len({row.id for row in done}) < 30
    assert all(row.finish_reason == "stop" for row in done)


def test_a_used_up_quota_stops_the_run(server: HostileServer) -> None:
    error = {"message": "You exceeded your quota", "code": "insufficient_quota"}
    server.script["1"] = [Reply(status=429, body={"error": error})]
    with pytest.raises(UserError, match="no credit left"):
        ask(engine(server), range(3))
    # Other prompts than before: the server may still be at a cancelled request, and would take its reply for it.
    server.script["12"] = [Reply(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(UserError, match="asks to wait 1,440 minutes"):
        ask(engine(server), range(10, 13))


def test_a_redirect_names_the_address_to_give(server: HostileServer) -> None:
    server.script["a"] = [Reply(status=308, headers={"Location": "https://elsewhere/v1/chat/completions"})]
    with pytest.raises(UserError, match="redirects to https://elsewhere/v1"):
        ask(engine(server), "a")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(status=500, body={"error": "out of order"}), "HTTP 500: out of order"),
        (Reply(status=400, body={"detail": "unknown field seed"}), "HTTP 400: unknown field seed"),
        (Reply(body={"choices": []}), "no choices"),
    ],
)
def test_a_server_that_fails_at_everything_stops_the_run(
    server: HostileServer, reply: Reply, message: str, tmp_path: Path
) -> None:
    rows, path = tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl"
    write_jsonl(rows, (prompt.to_json() for prompt in prompts(*range(100))))
    server.rule = lambda request: reply if int(request.text) >= 30 else None
    with pytest.raises(UserError, match=message) as stopped:
        generate(rows, path, lambda: engine(server, max_retries=1), SAMPLING)
    assert f"{MAX_IN_A_ROW} prompts in a row" in str(stopped.value)
    # The failures that were the server's are not in the file: once it is mended the rest is asked again.
    kept = [Completion.from_json(row) for row in read_jsonl(path)]
    assert {row.id for row in kept} == {f"p-{number}" for number in range(30)}
    server.rule = None
    assert generate(rows, path, lambda: engine(server), SAMPLING) == Counts(100, 100, {"error": 0})


def test_many_samples_of_one_refused_prompt_are_not_the_servers_fault(server: HostileServer) -> None:
    server.rule = lambda request: Reply(status=400) if request.text == "b" else None
    found = list(engine(server).generate(prompts(*"abc"), SAMPLING.model_copy(update={"num_samples": 30})))
    assert Counter((row.id, row.finish_reason) for row in found) == {
        ("p-a", "stop"): 30,
        ("p-b", "error"): 30,
        ("p-c", "stop"): 30,
    }


def test_different_refusals_in_a_row_are_the_prompts_fault(server: HostileServer) -> None:
    server.rule = lambda request: Reply(status=400, body={"error": {"message": f"{request.text} tokens are too many"}})
    assert all(row.finish_reason == "error" for row in ask(engine(server), range(60)).values())


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with HostileServer() as gone:
        pass
    with pytest.raises(UserError, match=r"cannot be reached .* check that the server is running"):
        ask(engine(gone), range(100))


def test_a_server_that_goes_away_stops_the_run_and_what_was_done_is_kept() -> None:
    done: list[Completion] = []

    def going_away(server: HostileServer) -> Iterator[Completion]:
        for number, completion in enumerate(engine(server, max_retries=2).generate(prompts(*range(500)), SAMPLING)):
            if number == 40:
                server.break_off()
            yield completion

    with HostileServer(delay_s=0.005) as server, pytest.raises(UserError, match=r"cannot be reached .* tried 3 times"):
        collect(going_away(server), done)
    assert len(done) >= 40
    assert {row.finish_reason for row in done} == {"stop"}


def test_malformed_prompts_stop_the_run_with_their_own_error(server: HostileServer) -> None:
    def rows() -> Iterator[Prompt]:
        yield from prompts(*range(20))
        raise DataError("prompts.jsonl", 21, "torn")

    done: list[Completion] = []
    with pytest.raises(DataError, match=r"prompts\.jsonl:21: torn"):
        collect(engine(server).generate(rows(), SAMPLING), done)
    assert len(done) >= 20 - 8


def test_what_is_done_when_a_run_breaks_off_comes_out() -> None:
    async def produce(deliver: Deliver[int]) -> None:
        late = asyncio.create_task(late_one(deliver))
        await deliver(1)
        await asyncio.sleep(0)
        late.cancel()
        raise UserError("broken off")

    async def late_one(deliver: Deliver[int]) -> None:
        await deliver(2)

    found: list[int] = []
    with pytest.raises(UserError, match="broken off"):
        collect(iterate(produce, room=1), found)
    assert found == [1, 2]


def test_a_server_that_always_asks_to_wait_is_given_up(server: HostileServer) -> None:
    server.rule = lambda request: Reply(status=429, body={"error": {"message": "busy"}})
    found = ask(engine(server, max_retries=2), range(4))
    assert {row.error for row in found.values()} == {"HTTP 429: busy (tried 3 times)"}
