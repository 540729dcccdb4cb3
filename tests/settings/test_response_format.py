"""A JSON schema for the answers reaches the server, is part of the key, and is refused where it cannot be kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.engines import check_format, load_engine
from distill_lab.generation.request_cache import RequestCache
from distill_lab.settings.response_format import response_format
from tests.hostile_server import HostileServer, prompts

CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
WHOLE = {"type": "json_schema", "json_schema": {"name": "mine", "schema": OPEN}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CLOSED, {"type": "json_schema", "json_schema": {"name": "answer", "schema": CLOSED, "strict": True}}),
        (OPEN, {"type": "json_schema", "json_schema": {"name": "answer", "schema": OPEN}}),
        ({"type": "array", "items": OPEN}, None),
        ({"name": "mine", "schema": OPEN}, WHOLE),
        (WHOLE, WHOLE),
        ({"type": "json_object"}, {"type": "json_object"}),
        ("json", {"type": "json_object"}),
        ({"anyOf": [CLOSED, OPEN]}, None),
    ],
)  # fmt: skip
def test_a_schema_is_written_as_the_protocol_wants_it(given: Any, expected: Any, tmp_path: Path) -> None:
    expected = expected or {"type": "json_schema", "json_schema": {"name": "answer", "schema": given}}
    assert json.loads(response_format(given)) == expected
    assert response_format(response_format(given)) == response_format(given)
    if isinstance(given, dict):
        assert response_format(json.dumps(given)) == response_format(given)
        (tmp_path / "schema.json").write_text(json.dumps(given, indent=4))
        assert response_format(str(tmp_path / "schema.json")) == response_format(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no/such/file.json", r"no/such/file\.json cannot be read \(No such file"),
        ("{torn", "is not JSON"),
        ("[1]", "is a JSON list"),
        (["a"], "is a JSON list"),
        ({"type": "json_schema"}, "has no schema"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_not_a_schema_is_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        response_format(given)
    with pytest.raises(ValueError, match=message):
        SamplingConfig(response_format=given)


def test_nothing_changes_without_one() -> None:
    assert "response_format" not in SamplingConfig().model_dump()
    assert SamplingConfig(response_format="").response_format == ""
    loaded = SamplingConfig.model_validate(SamplingConfig(response_format=json.dumps(OPEN)).model_dump())
    assert json.loads(loaded.response_format)["json_schema"]["schema"] == OPEN


@pytest.mark.usefixtures("openai_environment")
def test_it_is_sent_and_part_of_the_key(server: HostileServer) -> None:
    model, config = ModelConfig(model="openai:m"), EngineConfig(base_url=server.url)
    structured, plain = SamplingConfig(response_format=json.dumps(WHOLE)), SamplingConfig()
    list(load_engine(model, config).generate(prompts("a"), structured))
    assert server.requests[0].body["response_format"] == WHOLE
    list(load_engine(model, config).generate(prompts("b"), plain))
    assert "response_format" not in server.requests[1].body
    cache = RequestCache(model, config, on_note=print)
    assert cache.keys(prompts("a")[0], structured) != cache.keys(prompts("a")[0], plain)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "ray"])
def test_engines_that_cannot_keep_it_refuse_it_by_name(engine: str) -> None:
    structured = SamplingConfig(response_format="json")
    model, config = ModelConfig(model="tiny:teacher"), EngineConfig(engine=engine)
    with pytest.raises(UserError, match=rf"the engine {engine} cannot keep answers to --sampling\.response-format"):
        check_format(model, config, structured, flag="--sampling")
    check_format(model, config, SamplingConfig(), flag="--sampling")
    check_format(ModelConfig(model="openai:m"), config, structured, flag="--sampling")
