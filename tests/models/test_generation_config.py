"""The model's own sampling settings: one rule in every engine, said in the run, never slipped in by a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines._chat_completions import request_body
from distill_lab.generation.engines._dialect import Dialect
from distill_lab.generation.engines.openai_api import OpenAIEngine
from distill_lab.models.generation_config import (
    generation_settings,
    resolve_sampling,
    settings_in,
    with_generation_config,
)
from distill_lab.pipeline.stages import Pipeline
from distill_lab.recipes import prompt, system1, system2, verified
from distill_lab.run import Run
from distill_lab.types import Prompt
from tests.helpers import by_id, make_engine, make_prompts
from tests.hostile_server import HostileServer, Reply

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
VALUES = {name: value for name, value in QWEN.items() if name != "do_sample"}


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    path = random_model(initializer_range=0.15)
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | QWEN))
    return path


def test_only_what_is_named_and_changes_something_counts() -> None:
    assert settings_in(QWEN) == VALUES
    assert settings_in({"do_sample": True}) == {"temperature": 1.0}
    assert settings_in({**QWEN, "do_sample": False}) == {"repetition_penalty": 1.05}
    assert settings_in({"temperature": 0.7, "top_p": 0.8}) == {}
    assert settings_in({"do_sample": True, "temperature": None, "top_p": 1.0, "top_k": 0, "min_p": 0.0}) == {
        "temperature": 1.0
    }


def test_the_rule() -> None:
    assert with_generation_config(SamplingConfig(), VALUES) == SamplingConfig()
    assert with_generation_config(SamplingConfig(from_model=True), VALUES) == SamplingConfig(**VALUES)
    given = SamplingConfig(from_model=True, temperature=0.2, top_k=5)
    assert with_generation_config(given, VALUES) == SamplingConfig(**{**VALUES, "temperature": 0.2, "top_k": 5})
    assert with_generation_config(SamplingConfig(from_model=True), {}) == SamplingConfig()


def test_the_engine_follows_it(folder: Path) -> None:
    engine, prompts = make_engine(folder), make_prompts(4)
    plain = SamplingConfig(max_new_tokens=8)
    own = by_id(engine.generate(prompts, plain.model_copy(update={"from_model": True})))
    assert own == by_id(engine.generate(prompts, plain.model_copy(update=VALUES)))
    assert own != by_id(engine.generate(prompts, plain))


@pytest.mark.slow
def test_a_run_says_which_and_keeps_it_in_its_record(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    class Heard(ProgressReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, (each.to_json() for each in make_prompts(2)))
    model, sampling = ModelConfig(model=str(folder)), SamplingConfig(max_new_tokens=4)
    with Run.open(tmp_path / "run", recipe="r", config={}, watch=Heard()) as run:
        pipeline = Pipeline(run, engine=EngineConfig(engine="transformers"))
        pipeline.answers("ignored", model, prompts, sampling, output="a.jsonl")
        pipeline.answers("used", model, prompts, sampling.model_copy(update={"from_model": True}), output="b.jsonl")
        pipeline.answers("again", model, prompts, sampling, output="c.jsonl")
    said = [note for note in notes if "generation_config" in note]
    listed = "(temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05)"
    assert said == [
        f"{folder}: not using its generation_config {listed}; sampling.from-model turns it on",
        f"{folder}: sampling with its generation_config {listed}",
    ]
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert stages["ignored"]["sampling"] == sampling.model_dump(mode="json")
    assert stages["used"]["sampling"] == sampling.model_copy(update=VALUES).model_dump(mode="json")
    assert stages["used"]["key"] != stages["ignored"]["key"] == stages["again"]["key"]


def test_a_model_without_settings_of_its_own_is_passed_over(random_model: Callable[..., Path]) -> None:
    model = ModelConfig(model=str(random_model()))
    assert generation_settings(model) == {}
    assert resolve_sampling(model, SamplingConfig(from_model=True)) == (SamplingConfig(), "")
    (Path(model.model) / "generation_config.json").unlink()
    assert generation_settings(model) == {}


def body(**settings: Any) -> dict[str, Any]:
    sampling = SamplingConfig(**settings)
    return request_body("m", Prompt("p", []), sampling, sample=0, extra={}, dialect=Dialect())


def test_servers_get_the_labs_values_or_use_their_own() -> None:
    neutral = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: body()[name] for name in neutral} == neutral
    own = body(from_model=True, top_p=0.5)
    assert (own["top_p"], neutral.keys() & own.keys()) == (0.5, {"top_p"})


def test_a_server_that_knows_no_such_fields_is_asked_without_them(openai_environment: None) -> None:
    def strict(request: Any) -> Reply | None:
        unknown = {"top_k", "min_p", "repetition_penalty"} & request.body.keys()
        words = {"error": {"message": f"Unrecognized request argument supplied: {', '.join(sorted(unknown))}"}}
        return Reply(400, words) if unknown else None

    prompts = [Prompt(str(n), [{"role": "user", "content": str(n)}]) for n in range(6)]
    with HostileServer(rule=strict) as server:
        engine = OpenAIEngine("m", EngineConfig(max_concurrency=1), base_url=server.url)
        found = list(engine.generate(prompts, SamplingConfig()))
    assert [row.finish_reason for row in found] == ["stop"] * 6
    assert len(server.requests) == 7, "it is found out once"
    assert all("temperature" in request.body for request in server.requests)


def test_presets_of_thinking_models_are_sampled_as_their_card_says() -> None:
    thinking = [
        *(system2.PRESETS["qwen3"].sampling, system2.PRESETS["qwen3"].test_sampling, prompt.PRESETS["qwen3"].sampling),
    ]
    for sampling in thinking:
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.95, 20, 0)
        assert sampling.max_new_tokens >= 8192
        assert sampling.thinking is not False
    presets = (verified.PRESETS["qwen3"], system1.PRESETS["qwen3"])
    for sampling in [each for preset in presets for each in (preset.sampling, preset.test_sampling)]:
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.thinking) == (0.7, 0.8, 20, False)
