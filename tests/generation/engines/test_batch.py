"""Answers through a Batch API: every prompt answered and paid once, through interruptions and batches that end early."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import _batch, load_engine
from distill_lab.generation.engines.openai_api import OpenAIEngine
from distill_lab.generation.generate import generate
from distill_lab.types import Completion, Counts
from tests.batch_server import BatchServer, Line
from tests.hostile_server import KEY, answer, prompts

SAMPLING = SamplingConfig(max_new_tokens=7)
pytestmark = pytest.mark.usefixtures("openai_environment")


@pytest.fixture
def batches() -> Iterator[BatchServer]:
    with BatchServer() as running:
        yield running


class Lab:
    """`distill generate` on one output, as often as a test likes."""

    def __init__(self, folder: Path, server: BatchServer, count: int = 5) -> None:
        self.prompts, self.out = folder / "prompts.jsonl", folder / "answers.jsonl"
        self.server, self.notes = server, list[str]()
        write_jsonl(self.prompts, (prompt.to_json() for prompt in prompts(*range(count))))

    def run(self, sampling: SamplingConfig = SAMPLING, **settings: Any) -> Counts:
        config = EngineConfig(
            **{"base_url": self.server.url, "batch": True, "batch_poll_s": 0.01, "max_retries": 2, **settings}
        )

        def engine() -> OpenAIEngine:
            loaded = load_engine(ModelConfig(model="openai:m"), config, on_note=self.notes.append)
            assert isinstance(loaded, OpenAIEngine)
            loaded.first_wait_s = 0.01
            return loaded

        return generate(self.prompts, self.out, engine, sampling)

    @property
    def rows(self) -> dict[str, Completion]:
        found = [Completion.from_json(row) for row in read_jsonl(self.out)]
        assert len(found) == len({(row.id, row.sample) for row in found})
        return {row.id.removeprefix("p-"): row for row in found}

    @property
    def work(self) -> Path:
        return self.out.with_name(f"{self.out.name}.work")


@pytest.fixture
def lab(tmp_path: Path, batches: BatchServer) -> Lab:
    return Lab(tmp_path, batches)


def test_every_prompt_is_answered_in_one_batch(lab: Lab, batches: BatchServer) -> None:
    assert lab.run() == Counts(5, 5, {"error": 0})
    assert {text: row.content for text, row in lab.rows.items()} == {str(n): f"re: {n}" for n in range(5)}
    assert len(batches.batches) == 1
    assert batches.authorizations == {f"Bearer {KEY}"}
    lines = batches.requests(0)
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}
    assert {line["method"] for line in lines} == {"POST"}
    assert lines[0]["body"]["max_tokens"] == 7
    assert len({line["custom_id"] for line in lines}) == 5
    assert not lab.work.exists()
    assert any(note.startswith("m: batch batch-0 with 5 requests") for note in lab.notes)


def test_samples_are_separate_requests(lab: Lab, batches: BatchServer) -> None:
    sampling = SAMPLING.model_copy(update={"num_samples": 3, "temperature": 0.5})
    assert lab.run(sampling).kept == 15
    assert len(batches.requests(0)) == 15
    assert len({line["body"]["seed"] for line in batches.requests(0)}) == 3


def test_many_requests_become_several_batches(lab: Lab, batches: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batch, "MAX_REQUESTS", 2)
    assert lab.run().kept == 5
    assert [len(batches.requests(number)) for number in range(3)] == [2, 2, 1]
    monkeypatch.setattr(_batch, "MAX_BYTES", 1)
    lab.out.unlink()
    assert lab.run().kept == 5
    assert len(batches.batches) == 3 + 5


@pytest.mark.parametrize("at", ["POST /files", "POST /batches", "GET /batches/batch-0", "GET /files/file-1/content"])
def test_an_interruption_at_any_call_pays_for_nothing_twice(lab: Lab, batches: BatchServer, at: str) -> None:
    def interrupt(method: str, path: str) -> int | None:
        return 503 if f"{method} {path}" == at else None

    batches.fail = interrupt
    with pytest.raises(UserError, match=r"HTTP 503.*run the same command again"):
        lab.run(max_retries=0)
    batches.fail = lambda method, path: None
    assert lab.run().kept == 5
    assert {row.content for row in lab.rows.values()} == {f"re: {n}" for n in range(5)}
    assert len(batches.batches) == 1
    assert not lab.work.exists()


def test_a_call_that_may_pass_is_repeated(lab: Lab, batches: BatchServer) -> None:
    failed: Counter[tuple[str, str]] = Counter()

    def once(method: str, path: str) -> int | None:
        failed[method, path] += 1
        return 503 if failed[method, path] == 1 else None

    batches.fail = once
    assert lab.run().kept == 5
    # The server made the batch though it said that it failed: it is found, not made again.
    assert len(batches.batches) == 1


def test_answers_that_were_not_yet_written_are_fetched_again(lab: Lab, batches: BatchServer) -> None:
    class Killed(BaseException):
        pass

    def killed(progress: Any) -> None:
        if progress.done == 2:
            raise Killed

    config = EngineConfig(base_url=batches.url, batch=True, batch_poll_s=0.01)
    with pytest.raises(Killed):
        generate(
            lab.prompts,
            lab.out,
            lambda: load_engine(ModelConfig(model="openai:m"), config),
            SAMPLING,
            on_progress=killed,
        )
    lab.out.write_bytes(b"")  # nothing had reached the disk
    assert lab.run().kept == 5
    assert len(batches.batches) == 1


def test_an_expired_batch_keeps_its_answers_and_the_rest_is_sent_again(lab: Lab, batches: BatchServer) -> None:
    batches.end = lambda number: "expired" if number == 0 else "completed"
    gone = Line(error={"code": "batch_expired", "message": "This request could not be executed in time."})
    batches.answer = lambda body: (
        gone if body["messages"][-1]["content"] in "34" and len(batches.batches) == 1 else Line()
    )
    assert lab.run().kept == 5
    assert [len(batches.requests(number)) for number in range(2)] == [5, 2]
    assert any("batch-0 expired" in note for note in lab.notes)


def test_a_cancelled_batch_keeps_its_answers_and_stops(lab: Lab, batches: BatchServer) -> None:
    batches.end = lambda number: "cancelled" if number == 0 else "completed"
    batches.answer = lambda body: Line(missing=body["messages"][-1]["content"] in "34" and len(batches.batches) == 1)
    with pytest.raises(UserError, match="batch-0 was canceled on the server; run the same command again"):
        lab.run()
    assert len(lab.rows) == 3
    assert lab.run().kept == 5
    assert len(batches.requests(1)) == 2


def test_a_failed_batch_names_the_servers_reasons(lab: Lab, batches: BatchServer) -> None:
    batches.end = lambda number: "failed" if number == 0 else "completed"
    batches.problems = [{"code": "invalid_model", "message": "no model m", "line": 1}]
    with pytest.raises(UserError, match="batch-0 failed: invalid_model: no model m"):
        lab.run()
    assert lab.run().kept == 5


def test_a_full_queue_is_waited_for(lab: Lab, batches: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batch, "MAX_REQUESTS", 3)
    batches.end = lambda number: "failed" if number == 1 else "completed"
    batches.problems = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    assert lab.run().kept == 5
    assert [len(batches.requests(number)) for number in range(3)] == [3, 2, 2]
    batches.end = lambda number: "failed"
    lab.out.unlink()
    with pytest.raises(UserError, match=r"without an answer .*token_limit_exceeded"):
        lab.run()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (Line(status=400, body={"error": {"message": "context length"}}), "HTTP 400: context length"),
        (Line(status=404, body={"error": {"message": f"no {KEY}"}}), "HTTP 404: no ***"),
        (Line(error={"code": "invalid", "message": "no such tool"}), "invalid: no such tool"),
        (Line(body=answer("a", finish_reason="content_filter")), "the server's content filter cut off the answer"),
        (Line(body={"choices": []}), "the server's response has no choices"),
        (Line(status=500, body={"error": {"message": "out of memory"}}), "HTTP 500: out of memory"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_request_that_fails_is_an_error_with_its_reason(
    lab: Lab, batches: BatchServer, line: Line, error: str
) -> None:
    batches.answer = lambda body: line if body["messages"][-1]["content"] == "3" else Line()
    lab.run(max_retries=0)
    assert {text for text, row in lab.rows.items() if row.finish_reason == "error"} == {"3"}
    assert lab.rows["3"].error == error


def test_a_request_that_may_pass_is_sent_again(lab: Lab, batches: BatchServer) -> None:
    def rule(body: dict[str, Any]) -> Line:
        first = len(batches.batches) == 1 and body["messages"][-1]["content"] == "3"
        return Line(status=500, body={"error": {"message": "busy"}}) if first else Line()

    batches.answer = rule
    assert lab.run().kept == 5
    assert len(batches.requests(1)) == 1


def test_damaged_and_foreign_lines_are_passed_over(lab: Lab, batches: BatchServer) -> None:
    raw = [b"{torn", b"[1]", b'{"custom_id": 7}', b'{"custom_id": "another", "response": null}', b"\xff\xfe"]
    batches.answer = lambda body: (
        Line(raw=raw[int(body["messages"][-1]["content"])]) if len(batches.batches) == 1 else Line()
    )
    with pytest.raises(UserError, match="without an answer"):
        lab.run()
    assert any("are damaged" in note for note in lab.notes)
    assert lab.run().kept == 5


def test_a_server_learns_us_its_fields_in_the_second_batch(lab: Lab, batches: BatchServer) -> None:
    def rule(body: dict[str, Any]) -> Line:
        text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return Line(status=400, body={"error": {"message": text}}) if "max_tokens" in body else Line()

    batches.answer = rule
    assert lab.run().kept == 5
    assert [len(batches.requests(number)) for number in range(2)] == [5, 5]
    assert batches.requests(1)[0]["body"]["max_completion_tokens"] == 7
    assert "m: its server takes max_completion_tokens instead of max_tokens" in lab.notes


def test_a_batch_that_the_server_forgot_is_sent_again(lab: Lab, batches: BatchServer) -> None:
    lab.run()
    lab.out.unlink()
    lab.work.mkdir()
    (lab.work / ".distill-lab").touch()
    engine = load_engine(ModelConfig(model="openai:m"), EngineConfig(base_url=batches.url))
    assert isinstance(engine, OpenAIEngine)
    state = [{"settings": "other", "file": "f", "id": "batch-other", "done": ""}]
    (lab.work / "batches.json").write_text(json.dumps(state))
    assert lab.run().kept == 5
    assert any("batch batch-other of other settings" in note for note in lab.notes)


@pytest.mark.parametrize("text", ["{", "7", '[{"id": 1}]', "[[]]", '{"a": 1}'])
def test_a_damaged_list_of_batches_is_refused_by_name(lab: Lab, text: str) -> None:
    lab.work.mkdir()
    (lab.work / ".distill-lab").touch()
    (lab.work / "batches.json").write_text(text)
    with pytest.raises(UserError, match=r"batches\.json does not list batches"):
        lab.run()


def test_a_server_without_batches_is_named(lab: Lab, batches: BatchServer) -> None:
    batches.fail = lambda method, path: 404
    with pytest.raises(UserError, match=r"no Batch API at this address .*leave out --engine\.batch"):
        lab.run()
    batches.fail = lambda method, path: 400
    with pytest.raises(UserError, match=r"leave out --engine\.batch"):
        lab.run()
    batches.fail = lambda method, path: 401
    with pytest.raises(UserError, match="set OPENAI_API_KEY"):
        lab.run()


def test_the_key_is_in_no_byte(lab: Lab, batches: BatchServer, tmp_path: Path) -> None:
    batches.answer = lambda body: Line(body=answer(f"you sent {KEY}"))
    lab.run()
    assert {row.content for row in lab.rows.values()} == {"you sent ***"}
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(KEY in note for note in lab.notes)


def test_a_batch_costs_half(lab: Lab, batches: BatchServer) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}
    batches.answer = lambda body: Line(body={**answer("yes"), "usage": usage})
    lab.run(price={"input": 2, "output": 4})
    assert all(row.usage and row.usage.batch for row in lab.rows.values())
    from distill_lab.config import PriceConfig
    from distill_lab.generation.prices import spending

    assert spending([lab.out], PriceConfig(input=2, output=4)).cost == pytest.approx(5 * (2 + 2) / 2)
    assert any("at half the price in batches" in note for note in lab.notes)


def test_a_batch_is_cut_to_what_the_budget_allows(lab: Lab, batches: BatchServer) -> None:
    # Of each request at most (1 + 16 + 64 tokens) * 1 + 7 * 10 = 151 millionths, and half of it in a batch.
    price = {"input": 1, "output": 10, "max_cost": 0.00016}
    usage = {"prompt_tokens": 81, "completion_tokens": 7}
    batches.answer = lambda body: Line(body={**answer("yes"), "usage": usage})
    with pytest.raises(UserError, match=r"max_cost 0\.00016 .*--max-cost"):
        lab.run(price=price)
    assert len(lab.rows) == 2
    assert lab.run(price={**price, "max_cost": 1}).kept == 5
    assert [len(batches.requests(number)) for number in range(2)] == [2, 3]
