"""The engine vllm against a real vLLM on this machine's CPU, and the engine openai_api against a real `vllm serve`.

`make test-vllm` installs vLLM for CPUs into an environment of its own and runs this file in it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import EngineDeadError, ModelError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import Engine, _vllm_install, load_engine, vllm
from distill_lab.models.loading import load_model
from distill_lab.models.names import resolve
from distill_lab.tiny.tasks import rows
from distill_lab.types import Completion, Prompt
from tests.helpers import ROOT

LONG = pytest.mark.skipif(not os.environ.get("DISTILL_LAB_LONG"), reason="takes minutes: DISTILL_LAB_LONG=1 runs it")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: run make test-vllm")
TEACHER = ModelConfig(model="tiny:teacher")
SETTINGS: dict[str, Any] = {"engine": "vllm", "max_model_len": 1024, "batch_size": 64}
GREEDY = SamplingConfig(max_new_tokens=160)
WARM = SamplingConfig(max_new_tokens=80, temperature=2.0, num_samples=3, seed=7)
SERVER_START_S = 1500
"""Seconds a server may take to start on a machine that has other things to do."""


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("DISTILL_LAB_CACHE", "off")
        yield


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(TEACHER, EngineConfig(**SETTINGS))


@pytest.fixture(scope="module")
def reference() -> Engine:
    return load_engine(TEACHER, EngineConfig(engine="transformers"))


def tiny_prompts(number: int) -> list[Prompt]:
    """As many of each task, of very different lengths."""
    found = []
    for task in ("instructions", "problems", "labels"):
        for place, row in enumerate(islice(rows(task, "test"), number)):
            found.append(Prompt(f"{task}-{place}", row["messages"][:1]))
    return found


def by_id(completions: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    found = list(completions)
    assert len({(row.id, row.sample) for row in found}) == len(found), "a completion came twice"
    return {(row.id, row.sample): row for row in found}


def assert_same(engine: Engine, reference: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> None:
    assert by_id(engine.generate(prompts, sampling)) == by_id(reference.generate(prompts, sampling))


@needs_vllm
@pytest.mark.parametrize("thinking", [None, True, False])
def test_greedy_equals_the_transformers_engine(engine: Engine, reference: Engine, thinking: bool | None) -> None:
    prompts, sampling = tiny_prompts(7), GREEDY.model_copy(update={"thinking": thinking})
    found = by_id(engine.generate(prompts, sampling))
    assert found == by_id(reference.generate(prompts, sampling))
    assert {row.finish_reason for row in found.values()} == {"stop"}
    assert any(row.thinking for row in found.values()) == (thinking is not False)


@needs_vllm
@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 9},
        {"repetition_penalty": 1.3},
        {"stop": (" the ", "\n")},
        {"stop": ("</think>", "nothing says this")},
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 0.7, "top_p": 1e-6},
        {"temperature": 0.7, "min_p": 1.0},
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(engine: Engine, reference: Engine, changes: dict[str, Any]) -> None:
    assert_same(engine, reference, tiny_prompts(4), GREEDY.model_copy(update=changes))


@needs_vllm
def test_a_draw_depends_on_seed_prompt_and_sample_alone(engine: Engine) -> None:
    # Of tasks the teacher is sure; to what is none it has many answers.
    prompts = [*tiny_prompts(5), Prompt("open", [{"role": "user", "content": "one"}])]
    together = by_id(engine.generate(prompts, WARM))
    assert len(together) == 48
    for prompt in prompts[::4]:
        alone = by_id(engine.generate([prompt], WARM))
        assert alone == {key: row for key, row in together.items() if key[0] == prompt.id}
    drawn = {(row.id, row.thinking, row.content) for row in together.values()}
    assert sum(name == "open" for name, _, _ in drawn) == 3
    assert len(drawn) > 28
    other = by_id(engine.generate(prompts, WARM.model_copy(update={"seed": 8})))
    assert sum(other[key] != together[key] for key in other) > 20


@needs_vllm
def test_completions_come_as_soon_as_they_are_done(engine: Engine) -> None:
    short = Prompt("short", [{"role": "user", "content": "one"}])
    long = Prompt("long", [{"role": "user", "content": "two"}])
    # Twice as many as run at once: the first must come while the others are not even asked.
    prompts = [short, *(Prompt(f"{place}", long.messages) for place in range(200))]
    asked = []

    def watched() -> Iterator[Prompt]:
        for prompt in prompts:
            asked.append(prompt.id)
            yield prompt

    answers = engine.generate(watched(), SamplingConfig(max_new_tokens=20, temperature=2.0))  # pyright: ignore
    first = next(answers)
    assert len(asked) == 128
    assert len(by_id(answers)) == 200
    assert first.num_tokens > 0


@needs_vllm
def test_a_prompt_the_context_cannot_hold_is_an_error(engine: Engine, reference: Engine) -> None:
    prompts = tiny_prompts(1)
    prompts.append(Prompt("long", [{"role": "user", "content": "one " * 1200}]))
    prompts.append(Prompt("refused", [{"role": "user", "content": "one " * 1010}]))
    found = by_id(engine.generate(prompts, GREEDY))
    assert found["long", 0].finish_reason == "error"
    assert "the model's context is 1024" in str(found["long", 0].error)
    fitting = by_id(reference.generate(prompts[:3], GREEDY))
    assert {key: found[key] for key in fitting} == fitting


@needs_vllm
def test_a_completion_ends_with_the_context(engine: Engine) -> None:
    prompt = Prompt("p", [{"role": "user", "content": "one " * 990}])
    (row,) = engine.generate([prompt], SamplingConfig(max_new_tokens=500, temperature=2.0))
    assert row.finish_reason in ("length", "stop")
    assert 0 < row.num_tokens <= 34
    with pytest.raises(UserError, match="temperature must be in"):
        list(engine.generate([prompt], SamplingConfig(max_new_tokens=5, temperature=3.0)))


@needs_vllm
def test_a_shared_beginning_is_computed_once(engine: Any, reference: Engine) -> None:
    rules = {"role": "system", "content": "Answer with one word. " + "apples and pears " * 80}
    prompts = [Prompt(row.id, [rules, *row.messages]) for row in tiny_prompts(4)]
    assert_same(engine, reference, prompts, GREEDY)
    cached = []
    generate = engine._llm.generate

    async def watched(*arguments: Any, **named: Any) -> Any:
        async for output in generate(*arguments, **named):
            cached.append(output.num_cached_tokens)
            yield output

    engine._llm.generate = watched
    try:
        list(engine.generate(prompts, GREEDY))
    finally:
        engine._llm.generate = generate
    assert len(cached) == 12
    assert min(cached) >= 128


@needs_vllm
def test_stopping_early_ends_the_requests(engine: Any) -> None:
    answers = engine.generate(tiny_prompts(7), GREEDY)
    next(answers)
    answers.close()
    assert len(by_id(engine.generate(tiny_prompts(2), GREEDY))) == 6


@needs_vllm
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_that_vllm_lacks_is_refused_with_a_remedy(quantization: str) -> None:
    model = ModelConfig(model="tiny:teacher", quantization=quantization)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="--engine transformers"):
        load_engine(model, EngineConfig(**SETTINGS))


@needs_vllm
def test_what_vllm_cannot_load_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny:teacher"), folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ModelError, match=r"vLLM cannot load it .*NoSuchModel"):
        load_engine(ModelConfig(model=str(folder)), EngineConfig(**SETTINGS))
    with pytest.raises(ModelError, match="no such directory"):
        load_engine(ModelConfig(model=str(tmp_path / "nowhere")), EngineConfig(**SETTINGS))


@needs_vllm
def test_adapters_answer_as_in_the_transformers_engine(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(TEACHER)
    torch.manual_seed(0)
    settings = LoraConfig(r=12, lora_alpha=96, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(tmp_path))  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(tmp_path)
    adapted = ModelConfig(model=str(tmp_path))
    sampling = SamplingConfig(max_new_tokens=24)
    expected = by_id(load_engine(adapted, EngineConfig(engine="transformers")).generate(tiny_prompts(4), sampling))
    plain = by_id(load_engine(TEACHER, EngineConfig(engine="transformers")).generate(tiny_prompts(4), sampling))
    assert sum(expected[key] != plain[key] for key in plain) > 6
    assert by_id(load_engine(adapted, EngineConfig(**SETTINGS)).generate(tiny_prompts(4), sampling)) == expected


@needs_vllm
@pytest.mark.timeout(1800)
def test_a_student_just_trained_answers_as_in_the_lab(tmp_path: Path) -> None:
    """A rotary base of 1,000,000 under its new and its old name, an end of turn that the base did not end with, adapters."""
    from distill_lab.config import LoraConfig, TrainConfig
    from distill_lab.train.student import train_student

    base = tmp_path / "base"
    shutil.copytree(resolve("tiny:student"), base)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((base / name).read_text(encoding="utf-8"))
        if name == "config.json":
            settings.pop("rope_theta", None)
            settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0}
        settings |= {"eos_token": "<|endoftext|>"} if "tokenizer" in name else {"eos_token_id": 1275}
        (base / name).write_text(json.dumps(settings), encoding="utf-8")
    write_jsonl(
        tmp_path / "rows.jsonl",
        (
            {
                "prompt": [{"role": "user", "content": f"{place} and {place + 1}"}],
                "completion": [{"role": "assistant", "content": "Yes."}],
            }
            for place in range(8)
        ),
    )
    train = TrainConfig(
        learning_rate=1e-3, tokens_per_batch=128, max_steps=2, validation_fraction=0, lora=LoraConfig(r=4, merge=True)
    )
    train_student(ModelConfig(model=str(base)), tmp_path / "rows.jsonl", tmp_path / "student", train)
    student, sampling = ModelConfig(model=str(tmp_path / "student")), SamplingConfig(max_new_tokens=48)
    prompts = tiny_prompts(4)
    expected = by_id(load_engine(student, EngineConfig(engine="transformers")).generate(prompts, sampling))
    assert by_id(load_engine(student, EngineConfig(**SETTINGS)).generate(prompts, sampling)) == expected


def vllm_processes() -> set[int]:
    """What vLLM started and this test did not end."""
    return {process.pid for process in psutil.process_iter(["cmdline"]) if "VLLM::" in str(process.info["cmdline"])}


@needs_vllm
@pytest.mark.parametrize(
    ("number", "kills"), [(60, 2), pytest.param(500, 5, marks=LONG)], ids=["60 prompts", "500 prompts"]
)
@pytest.mark.timeout(6000)
def test_kill_9_loses_nothing_and_leaves_nothing(tmp_path: Path, number: int, kills: int) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(data, ({"question": f"{place} and {place + 1}", "answer": "1"} for place in range(number)))
    command = [
        *(sys.executable, "-m", "distill_lab.cli", "generate", "--engine", "vllm", "--model", "tiny:teacher"),
        *("--data", str(data), "--out", str(out), "--sampling.temperature", "2", "--sampling.max-new-tokens", "60"),
        *("--engine.batch-size", "4", "--engine.max-model-len", "512"),
    ]
    others, kept, draw = vllm_processes(), b"", random.Random(0)
    for _ in range(kills):
        limit = kept.count(b"\n") + draw.randint(1, max(1, number // (2 * kills)))
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < limit):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it was done before the kill: more prompts are needed"
        assert out.read_bytes().startswith(kept)
        kept = out.read_bytes()
        kept = kept[: kept.rindex(b"\n") + 1]
    assert kept.count(b"\n") < number
    deadline = time.monotonic() + 60
    while (left := vllm_processes() - others) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert out.read_bytes().startswith(kept)
    found = [Completion.from_json(row) for row in read_jsonl(out)]
    assert len(found) == len({row.id for row in found}) == number
    assert all(row.finish_reason != "error" for row in found)


@needs_vllm
def test_an_engine_whose_process_was_killed_says_so() -> None:
    before = vllm_processes()
    engine = load_engine(TEACHER, EngineConfig(**SETTINGS))
    answers = engine.generate(tiny_prompts(7), WARM)
    next(answers)
    for pid in vllm_processes() - before:
        psutil.Process(pid).kill()
    with pytest.raises(EngineDeadError, match="run the same command again"):
        list(answers)


@needs_vllm
def test_an_engine_ends_with_its_last_reference_and_with_the_program() -> None:
    code = """
        import weakref
        from distill_lab.config import EngineConfig, ModelConfig
        from distill_lab.generation.engines import load_engine

        def load():
            engine = load_engine(ModelConfig(model="tiny:teacher"), EngineConfig(engine="vllm", max_model_len=512))
            return engine, weakref.ref(engine)

        engine, last = load()
        del engine
        print(last())
        engine, _ = load()
    """
    before = vllm_processes()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout == "None\n"
    assert not vllm_processes() - before


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `vllm serve` of tiny:teacher, under the name tiny."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log.txt"
    # What `vllm serve` starts; that itself asks for a package named vllm, which the one for CPUs is not.
    module = "vllm.entrypoints.openai.api_server"
    command = [
        *(sys.executable, "-m", module, "--model", resolve("tiny:teacher"), "--port", str(port)),
        *("--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "1024", "--reasoning-parser", "qwen3", "--generation-config", "vllm"),
    ]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"VLLM_NO_USAGE_STATS": "1"})
    try:
        deadline = time.monotonic() + SERVER_START_S
        while True:
            with socket.socket() as place:
                if place.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@needs_vllm
@pytest.mark.timeout(SERVER_START_S + 300)
@pytest.mark.parametrize("thinking", [True, False])
def test_a_real_server_answers_as_the_model_does(served: str, reference: Engine, thinking: bool) -> None:
    sampling = GREEDY.model_copy(update={"thinking": thinking})
    server = load_engine(ModelConfig(model="openai:tiny"), EngineConfig(base_url=served))
    assert_same(server, reference, tiny_prompts(7), sampling)


@needs_vllm
@pytest.mark.timeout(SERVER_START_S + 300)
def test_a_real_server_refuses(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = EngineConfig(base_url=served)
    with pytest.raises(UserError, match=r"HTTP 404: .*other"):
        list(load_engine(ModelConfig(model="openai:other"), config).generate(tiny_prompts(1), GREEDY))
    prompts = [*tiny_prompts(1), Prompt("long", [{"role": "user", "content": "one " * 1200}])]
    found = by_id(load_engine(ModelConfig(model="openai:tiny"), config).generate(prompts, GREEDY))
    assert found["long", 0].finish_reason == "error"
    assert "HTTP 400" in str(found["long", 0].error)
    assert sum(row.finish_reason == "stop" for row in found.values()) == 3
    several = SamplingConfig(max_new_tokens=20, temperature=2.0, num_samples=4, stop=("e",), top_k=50, min_p=0.01)
    drawn = by_id(load_engine(ModelConfig(model="openai:tiny"), config).generate(tiny_prompts(1), several))
    assert len(drawn) == 12
    assert not any("e" in row.content for row in drawn.values())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_remedy_is_told() -> None:
    with pytest.raises(UserError, match=r"pip install '\.\[vllm\]'.*openai:MODEL.*--engine transformers"):
        load_engine(TEACHER, EngineConfig(**SETTINGS))


class FakePlatform:
    """A GPU of so many bytes, as vLLM describes it."""

    def __init__(self, total: int) -> None:
        self.total = total

    def is_cpu(self) -> bool:
        return self.total == 0

    def get_device_total_memory(self) -> int:
        return self.total


@pytest.mark.parametrize(
    ("wanted", "total", "methods", "expected"),
    [
        ("none", 80 << 30, ["int8_per_channel_weight_only"], None),
        ("auto", 80 << 30, ["int8_per_channel_weight_only"], None),
        ("auto", 1 << 20, ["int8_per_channel_weight_only"], "int8_per_channel_weight_only"),
        ("8bit", 80 << 30, ["int8_per_channel_weight_only"], "int8_per_channel_weight_only"),
        ("4bit", 80 << 30, ["bitsandbytes"], "bitsandbytes"),
        ("4bit", 80 << 30, ["int8_per_channel_weight_only"], r"AWQ, GPTQ.*--quantization 8bit.*--engine transformers"),
        ("4bit", 0, [], r"on a CPU; remove --quantization"),
        ("8bit", 0, [], r"on a CPU; remove --quantization"),
    ],
)
def test_quantization_is_what_this_vllm_can_do(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, total: int, methods: list[str], expected: str | None
) -> None:
    module = types.ModuleType("quantization")
    module.__dict__["QUANTIZATION_METHODS"] = methods
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.quantization", module)
    monkeypatch.setattr(vllm, "installed", lambda: "0.33.0")
    if "vllm" not in sys.modules:
        for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    model = ModelConfig(model="tiny:teacher", quantization=wanted)
    if expected is None or " " not in expected:
        assert vllm._quantization(model, EngineConfig(engine="vllm"), FakePlatform(total)) == expected
    else:
        with pytest.raises(ModelError, match=expected):
            vllm._quantization(model, EngineConfig(engine="vllm"), FakePlatform(total))


def test_a_checkpoint_that_is_quantized_is_taken_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(resolve("tiny:teacher"), tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    model, config = ModelConfig(model=str(tmp_path / "model")), EngineConfig(engine="vllm")
    assert vllm._quantization(model, config, FakePlatform(1 << 20)) is None
    with pytest.raises(ModelError, match=r"already quantized \(awq\)"):
        vllm._quantization(model.model_copy(update={"quantization": "8bit"}), config, FakePlatform(1 << 20))


def test_a_vllm_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "installed", lambda: "0.31.0")
    with pytest.raises(UserError, match=r"vLLM 0\.31\.0 is older than 0\.32\.0"):
        load_engine(TEACHER, EngineConfig(**SETTINGS))
    assert vllm.preference() == 0
    assert [_vllm_install.is_too_old(each) for each in ("0.31.9", "0.32.0", "0.33.0", "0.32.0+cpu", "dev")] == [
        True,
        *4 * [False],
    ]


def test_the_bounds_of_vllm_are_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8")
    assert f"vllm-cpu=={_vllm_install.MIN_VERSION}" in pinned
    assert f'"vllm>={_vllm_install.MIN_VERSION.removesuffix(".0")},' in project
