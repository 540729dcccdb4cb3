"""What a server takes is learned from its refusals, once, and what is left to the server is said and recorded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.generation.engines._dialect import Dialect
from distill_lab.generation.engines._exchange import Exchange
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Completion
from tests.hostile_server import HostileServer, Reply, Request, answer, prompts

SAMPLING = SamplingConfig(max_new_tokens=7)
pytestmark = pytest.mark.usefixtures("openai_environment")


def generated(
    server: HostileServer, count: int = 40, sampling: SamplingConfig = SAMPLING, **settings: Any
) -> tuple[list[Completion], list[str]]:
    """Completions and notes of a new engine, as each stage of a run has one."""
    notes: list[str] = []
    config = EngineConfig(base_url=server.url, max_concurrency=4, max_retries=1, **settings)
    engine = load_engine(ModelConfig(model="openai:m"), config, on_note=notes.append)
    return list(engine.generate(prompts(*range(count)), sampling)), notes


def refusal(field: str, text: str, *, code: str = "unsupported_parameter") -> Reply:
    return Reply(
        status=400, body={"error": {"message": text, "type": "invalid_request_error", "param": field, "code": code}}
    )


def reasoning_model(request: Request) -> Reply | None:
    """As OpenAI's o-series and gpt-5 answer."""
    body = request.body
    if "max_tokens" in body:
        return refusal(
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        )
    if body.get("temperature", 1) != 1:
        return refusal(
            "temperature",
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the default (1) "
            "value is supported.",
            code="unsupported_value",
        )
    for field in ("top_p", "top_k", "min_p", "repetition_penalty"):
        if field in body:
            return refusal(field, f"Unsupported parameter: '{field}' is not supported with this model.")
    return None


def test_a_reasoning_model_gets_the_fields_that_it_wants(server: HostileServer) -> None:
    server.rule = reasoning_model
    rows, notes = generated(server)
    assert Counter(row.finish_reason for row in rows) == {"stop": 40}
    last = server.requests[-1].body
    assert last.keys() == {"model", "messages", "max_completion_tokens", "seed"}
    assert last["max_completion_tokens"] == 7
    # Requests that were under way together are refused together; then nothing is refused any more.
    assert len(server.requests) - 40 <= 4 * 5
    assert Counter(notes) == dict.fromkeys(notes, 1)
    assert "m: its server takes max_completion_tokens instead of max_tokens" in notes
    assert "m: its server does not take temperature 0, and uses its own temperature" in notes
    assert any(note.startswith("m: top_k, min_p, repetition_penalty are left to the server") for note in notes)
    before = len(server.requests)
    rows, notes = generated(server)
    assert len(server.requests) == before + 40
    assert notes == []


def test_a_limit_that_is_too_high_is_not_taken_for_a_field_that_is_unknown(server: HostileServer) -> None:
    text = "'max_tokens' or 'max_completion_tokens' is too large: 7. This model's maximum context length is 4 tokens"
    server.script["1"] = [Reply(status=400, body={"error": {"message": text}})]
    rows, notes = generated(server, 3)
    assert {row.id: row.error for row in rows}["p-1"] == f"HTTP 400: {text}"
    assert len(server.requests) == 3
    assert all("max_tokens" in request.body for request in server.requests)
    assert notes == []


def test_a_field_is_only_remembered_as_refused_if_it_was_the_reason(server: HostileServer) -> None:
    server.script["0"] = [refusal("max_tokens", "unknown field max_tokens")] * 9
    rows, notes = generated(server, 1)
    assert "unknown field max_tokens" in str(rows[0].error)
    rows, notes = generated(server, 5)
    assert "max_tokens" in server.asked("4")[0].body
    assert notes == []


@pytest.mark.parametrize("setting", ["top_p", "top_k", "min_p", "repetition_penalty", "stop"])
def test_a_setting_that_the_user_chose_is_not_left_out(server: HostileServer, setting: str) -> None:
    value: dict[str, Any] = {"top_p": 0.5, "top_k": 7, "min_p": 0.5, "repetition_penalty": 1.3, "stop": ("END",)}
    server.rule = lambda request: (
        refusal(setting, f"Unsupported parameter: {setting}") if setting in request.body else None
    )
    rows, _ = generated(server, 3, SAMPLING.model_copy(update={setting: value[setting]}))
    assert {row.error for row in rows} == {f"HTTP 400: Unsupported parameter: {setting}"}


@pytest.mark.parametrize(
    "text",
    [
        "[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted', 'input': 3}]",
        "Unrecognized request argument supplied: seed",
    ],
)
def test_a_seed_that_a_server_does_not_take_is_left_out_and_that_is_said(server: HostileServer, text: str) -> None:
    server.rule = lambda request: Reply(status=422, body={"detail": text}) if "seed" in request.body else None
    rows, notes = generated(server)
    assert {row.finish_reason for row in rows} == {"stop"}
    assert "m: its server does not take a seed, and uses its own seed" in notes


def test_sampling_defaults_are_sent_where_the_server_takes_them(server: HostileServer) -> None:
    _, notes = generated(server, 1)
    body = server.requests[0].body
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    assert sent == {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert notes == []


def test_what_ollama_ignores_is_said_once_or_refused(server: HostileServer) -> None:
    server.rule = lambda request: Reply(body={**answer("yes"), "system_fingerprint": "fp_ollama"})
    _, notes = generated(server)
    [note] = notes
    assert "top_k, min_p, repetition_penalty are left to the server" in note
    assert "repetition penalty is 1.1" in note
    with pytest.raises(UserError, match=r"Ollama ignores sampling\.repetition-penalty .*Modelfile"):
        generated(server, 3, SAMPLING.model_copy(update={"repetition_penalty": 1.3}))
    _, notes = generated(server, 3, SAMPLING.model_copy(update={"temperature": 0.5, "top_p": 0.9}))
    assert notes == []


def test_openai_itself_is_never_sent_what_it_refuses() -> None:
    notes: list[str] = []
    exchange = Exchange("gpt", "https://api.openai.com/v1", SAMPLING, extra={}, on_note=notes.append)
    assert exchange.body(prompts("a")[0], 0).keys() == {
        "model",
        "messages",
        "max_tokens",
        "seed",
        "temperature",
        "top_p",
    }
    exchange.completion(answer("yes"), "p", 0, exchange.dialect)
    exchange.completion(answer("yes"), "p", 0, exchange.dialect)
    assert len(notes) == 1
    assert notes[0].startswith("gpt: top_k, min_p, repetition_penalty are left to the server, whose own values apply")
    given = Exchange("gpt", "https://api.openai.com/v1", SAMPLING, extra={"top_k": 3}, on_note=notes.append)
    assert given.left_to_server() == ["min_p", "repetition_penalty"]


def test_the_forms_come_to_an_end() -> None:
    text = "HTTP 400: unsupported: max_tokens, max_completion_tokens, temperature, top_p, seed, top_k, everything"
    dialect, forms = Dialect(), 0
    while (other := dialect.after(text, SAMPLING)) is not None:
        dialect, forms = other, forms + 1
    assert forms == 5
    assert dialect == Dialect(
        "max_completion_tokens", extensions=False, dropped=frozenset({"temperature", "top_p", "seed"})
    )
    assert Dialect().after("HTTP 500: unsupported max_tokens", SAMPLING) is None


def test_what_was_left_to_the_server_is_in_run_json(server: HostileServer, tmp_path: Path) -> None:
    server.rule = reasoning_model
    path, said = tmp_path / "prompts.jsonl", list[str]()
    write_jsonl(path, (prompt.to_json() for prompt in prompts("a")))

    class Watching(ProgressReporter):
        def note(self, text: str) -> None:
            said.append(text)

    with Run.open(tmp_path / "run", recipe="r", config={}, watch=Watching()) as run:
        pipeline = Pipeline(run, engine=EngineConfig(base_url=server.url))
        pipeline.answers("teacher answers", ModelConfig(model="openai:m"), path, SAMPLING)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["models"]["requests of teacher answers"]
    assert recorded == {
        "sent": {"max_completion_tokens": 7, "seed": 0},
        "left_to_server": ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"],
        "not_taken": ["temperature", "top_p"],
    }
    assert any("max_completion_tokens" in note for note in said)
