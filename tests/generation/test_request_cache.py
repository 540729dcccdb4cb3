"""The cache shared by runs: what counts as the same request, and what a second run asks for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation import request_cache
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.generation.generate import generate
from distill_lab.generation.request_cache import CacheFile, cache_path, model_key
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Completion, Counts, Prompt
from tests.hostile_server import HostileServer, Reply
from tests.request_caches import ENGINE, MODEL, SAMPLING, SERVER, no_engine, opened, rows

pytestmark = pytest.mark.usefixtures("file")

PROMPT = Prompt("p-0", [{"role": "user", "content": "one"}])


def completion(content: str = "yes", **fields: Any) -> Completion:
    return Completion(**{"id": "p-0", "sample": 0, "content": content, "thinking": None, "finish_reason": "stop"} | {
        "num_tokens": 3, **fields
    })  # fmt: skip


# What counts as the same request.


@pytest.mark.parametrize("model", [MODEL, SERVER])
def test_every_sampling_field_but_the_number_of_samples_counts(model: ModelConfig) -> None:
    other = {
        "max_new_tokens": 13, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "stop": ("x",), "thinking": True, "seed": 2, "from_model": True, "response_format": "json",
    }  # fmt: skip
    keys, cache = opened(model).keys(PROMPT, SAMPLING), opened(model)
    assert len(set(keys)) == 2
    for name in set(SamplingConfig.model_fields) - {"num_samples"}:
        changed = cache.keys(PROMPT, SAMPLING.model_copy(update={name: other[name]}))
        assert not set(changed) & set(keys), name
    assert cache.keys(PROMPT, SAMPLING.model_copy(update={"num_samples": 3}))[:2] == keys


def test_messages_count_and_the_id_where_a_draw_depends_on_it() -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    for messages in ([{"role": "user", "content": "two"}], [{"role": "system", "content": "one"}], PROMPT.messages * 2):
        other = Prompt("p-0", messages)
        assert opened().keys(other, greedy) != opened().keys(PROMPT, greedy)
    moved = Prompt("p-1", PROMPT.messages, answer="1", meta={"level": 3})
    assert opened().keys(moved, greedy) == opened().keys(PROMPT, greedy)
    assert opened().keys(moved, SAMPLING) != opened().keys(PROMPT, SAMPLING)
    assert opened(SERVER).keys(moved, SAMPLING) == opened(SERVER).keys(PROMPT, SAMPLING)


def test_a_directory_counts_by_its_files_and_adapters_by_their_base_too(tmp_path: Path, folder: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for place in (base, adapter):
        place.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model = ModelConfig(model=str(adapter))
    keys = [model_key(model, ENGINE)[1]]
    assert model_key(ModelConfig(model=os.path.relpath(adapter)), ENGINE) == (str(adapter), keys[0])
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    keys.append(model_key(model, ENGINE)[1])
    (base / "config.json").write_text("{ }")
    keys.append(model_key(model, ENGINE)[1])
    keys.append(model_key(model.model_copy(update={"quantization": "4bit"}), ENGINE)[1])
    keys.append(model_key(model, EngineConfig(engine="transformers"))[1])
    assert len(set(keys)) == 5
    assert model_key(model, EngineConfig(batch_size=3, timeout_s=1, base_url="http://a"))[1] == keys[2]


def test_a_hub_model_counts_by_the_commit_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, keys = ModelConfig(model="some/model"), []
    place = tmp_path / "models--some--model"
    keys.append(model_key(model, ENGINE)[1])
    for commit in ("a" * 40, "b" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        keys.append(model_key(model, ENGINE)[1])
    keys.append(model_key(ModelConfig(model="some/model", revision="a" * 40), ENGINE)[1])
    assert len(set(keys)) == 3
    assert keys[-1] == keys[1]  # one commit by two names is one model
    assert model_key(ModelConfig(model="some/model", revision="main"), ENGINE)[0] == "some/model@main"


def test_a_servers_model_counts_by_name_address_and_extra_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    here = EngineConfig(base_url="http://here/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1/")
    name, key = model_key(SERVER, ENGINE)
    assert (name, key) == model_key(SERVER, here) == model_key(SERVER, EngineConfig(max_concurrency=3, engine="x"))
    others = [
        model_key(ModelConfig(model="openai:n"), here),
        model_key(SERVER, EngineConfig(base_url="http://there/v1")),
        model_key(SERVER, EngineConfig(base_url="http://here/v1", extra_body='{"top_k": 3}')),
    ]
    assert len({key, *(other for _, other in others)}) == 4
    assert others[2] == model_key(SERVER, EngineConfig(base_url="http://here/v1", extra_body='{ "top_k":3 }'))


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISTILL_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "distill-lab" / "requests.sqlite"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_path() == tmp_path / "home" / ".cache" / "distill-lab" / "requests.sqlite"


# What is kept.


def test_answers_come_back_as_they_were_and_errors_do_not() -> None:
    told = [
        completion("", thinking="a\nb", finish_reason="length", num_tokens=0),
        completion("half \ud83d, whole 😀"),
        completion("", finish_reason="error", error="HTTP 500"),
    ]
    keys = [bytes([n]) * request_cache.KEY_BYTES for n in range(3)]
    with opened() as cache:
        assert cache.find(keys) == {}
        cache.add(zip(keys, told, strict=True))
    with opened() as cache:
        found = cache.find(keys)
    assert [Completion.from_json({**found[key], "id": "p-0", "sample": 0}) for key in keys[:2]] == told[:2]
    assert len(found) == 2
    with opened(ModelConfig(model="tiny:student")) as cache:
        assert cache.find(keys) == {}


def test_a_second_run_asks_nothing(prompts: Path, tmp_path: Path, folder: Path, engine: Engine) -> None:
    first, second, notes = tmp_path / "a" / "c.jsonl", tmp_path / "b" / "c.jsonl", []
    model = ModelConfig(model=str(folder))
    with opened(model, notes=notes) as cache:
        generate(prompts, first, lambda: engine, SAMPLING, cache=cache)
    assert notes == []
    with opened(model, notes=notes) as cache:
        assert generate(prompts, second, no_engine, SAMPLING, cache=cache) == Counts(12, 12, {"error": 0})
    assert notes == ["12 of 12 from the cache"]
    assert rows(second) == rows(first)
    before = second.read_bytes()
    with opened(model, notes=notes) as cache:  # nothing is missing, nothing is looked up
        generate(prompts, second, no_engine, SAMPLING, cache=cache)
    assert (second.read_bytes(), len(notes)) == (before, 1)


def test_more_samples_and_prompts_only_add_to_it(prompts: Path, tmp_path: Path, folder: Path, engine: Engine) -> None:
    model, more, notes = ModelConfig(model=str(folder)), SAMPLING.model_copy(update={"num_samples": 3}), []
    few = tmp_path / "few.jsonl"
    write_jsonl(few, list(read_jsonl(prompts))[:4])
    with opened(model) as cache:
        generate(few, tmp_path / "few.c.jsonl", lambda: engine, SAMPLING, cache=cache)
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", lambda: engine, more, cache=cache)
    assert notes == ["8 of 18 from the cache"]
    whole = tmp_path / "whole.jsonl"
    generate(prompts, whole, lambda: engine, more)
    assert rows(tmp_path / "c.jsonl") == rows(whole)
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "again.jsonl", no_engine, more, cache=cache)
    assert rows(tmp_path / "again.jsonl") == rows(whole)


def test_an_error_is_asked_again_by_the_next_run(prompts: Path, tmp_path: Path) -> None:
    with HostileServer(rule=lambda request: Reply(status=400) if request.text == "one one " else None) as server:
        config, notes = EngineConfig(base_url=server.url), []

        def run(path: Path) -> Counts:
            with opened(SERVER, config, notes) as cache:
                return generate(prompts, path, lambda: load_engine(SERVER, config), SAMPLING, cache=cache)

        assert run(tmp_path / "a.jsonl").kept == 10
        server.rule = None
        assert run(tmp_path / "b.jsonl").kept == 12
        assert len(server.requests) == 14
        assert run(tmp_path / "a.jsonl") == Counts(12, 12, {"error": 0})  # from the cache, in place of the errors
        assert len(server.requests) == 14
    assert notes == ["10 of 12 from the cache", "2 of 2 from the cache"]
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "b.jsonl")


@pytest.mark.slow
def test_runs_share_their_teacher_and_no_one_their_own_student(
    prompts: Path, tmp_path: Path, folder: Path, file: Path
) -> None:
    notes: list[str] = []

    class Noting(ProgressReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    for name in "ab":
        with Run.open(tmp_path / name, recipe="r", config={}, watch=Noting()) as run:
            Pipeline(run, engine=ENGINE).answers("teacher answers", ModelConfig(model=str(folder)), prompts, SAMPLING)
    assert [note for note in notes if "cache" in note] == ["12 of 12 from the cache"]
    inside = tmp_path / "a" / "own"
    inside.mkdir()
    for source in folder.iterdir():
        (inside / source.name).write_bytes(source.read_bytes())
    with Run.open(tmp_path / "a", recipe="r", config={}) as run:
        pipeline = Pipeline(run, engine=ENGINE)
        pipeline.answers("student answers", ModelConfig(model=str(inside)), prompts, SAMPLING, output="s.jsonl")
    with CacheFile(file) as held:
        assert [each.model for each in held.usage()] == [str(folder)]


def test_off_means_off(
    prompts: Path, tmp_path: Path, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    before, notes = set(tmp_path.iterdir()), []
    with opened(ModelConfig(model=str(folder)), notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", lambda: engine, SAMPLING, cache=cache)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "c.jsonl"}
    assert notes == []
