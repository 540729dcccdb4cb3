"""Speed and memory of real random models: what must hold whatever the machine's mood, no timings asserted."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation import speed as measuring
from distill_lab.evaluation.speed import Speed, measure, peak_memory
from distill_lab.evaluation.speedups import speedups
from distill_lab.types import Prompt

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(max_new_tokens=6, num_samples=3)
ONE = SamplingConfig(max_new_tokens=6)


def prompts(number: int, words: int = 3) -> list[Prompt]:
    return [Prompt(str(i), [{"role": "user", "content": f"{i} " * words}]) for i in range(number)]


@pytest.fixture(scope="module")
def configs(random_model: Callable[..., Path]) -> dict[str, ModelConfig]:
    big = random_model(hidden=64, layers=3, max_position_embeddings=400)
    small = random_model(hidden=16, layers=1, seed=1, max_position_embeddings=400)
    return {"teacher": ModelConfig(model=str(big)), "student": ModelConfig(model=str(small))}


@pytest.fixture(scope="module")
def speeds(configs: dict[str, ModelConfig]) -> dict[str, Speed]:
    # So much time that a busy machine, too, takes all its answers.
    return measure(configs, [*prompts(9), *prompts(1, words=2000)], sampling=SAMPLING, rounds=2, budget_s=3600)


def test_figures_agree_with_one_another(speeds: dict[str, Speed]) -> None:
    assert list(speeds) == ["teacher", "student"]
    for speed in speeds.values():
        assert 0 < speed.mean_tokens <= 6
        assert speed.tokens_per_s * speed.seconds_per_answer == pytest.approx(speed.mean_tokens)
        assert 0 < speed.tokens_per_s_single * speed.seconds_per_answer_single <= 6 * (1 + 1e-9)  # 6 / x * x is rounded
        assert speed.latency_p95_s is not None
        assert 0 < speed.latency_p50_s <= speed.latency_p95_s
        assert Speed.from_json(json.loads(json.dumps(speed.to_json()))) == speed


def test_parameters_are_counted(speeds: dict[str, Speed], configs: dict[str, ModelConfig]) -> None:
    from safetensors import safe_open

    for name, config in configs.items():
        with safe_open(Path(config.model) / "model.safetensors", "pt") as file:
            stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - no mapping, cannot be iterated
        assert speeds[name].num_parameters == stored


def test_memory_is_that_of_a_process_with_a_model_in_it(speeds: dict[str, Speed]) -> None:
    for speed in speeds.values():
        assert speed.peak_memory_bytes is not None
        assert 2**20 < speed.peak_memory_bytes < 2**33


def test_memory_does_not_count_what_this_process_holds(configs: dict[str, ModelConfig]) -> None:
    ballast = b"x" * (1 << 30)
    memory = peak_memory({"student": configs["student"]}, prompts(2), sampling=SAMPLING)["student"]
    assert memory is not None
    assert memory < len(ballast)


@pytest.mark.parametrize("num_tokens", [128, 150])
def test_latency_answers_have_exactly_as_many_tokens_and_enough_of_them(
    configs: dict[str, ModelConfig], monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    engine = measuring.load_to_time(configs["student"])
    asked: list[int] = []
    generate = engine.generate

    def counted(some, sampling, *, min_new_tokens=0):
        for completion in generate(some, sampling, min_new_tokens=min_new_tokens):
            asked.append(completion.num_tokens)
            yield completion

    monkeypatch.setattr(engine, "generate", counted)
    taken = measuring._latencies({"student": engine}, prompts(4), ONE, num_tokens)
    assert asked == [num_tokens] * 20
    assert len(taken["student"]) == 20
    with pytest.raises(UserError, match=f"room for {num_tokens} tokens"):
        measuring._latencies({"student": engine}, prompts(1, words=170), ONE, num_tokens)


def test_turns_alternate_and_go_backwards_every_second_round(
    configs: dict[str, ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, order = measuring.load_to_time(configs["student"]), []
    timed = measuring.timed_call

    def noted(engine, job, sampling, **more):
        order.append(engine)
        return timed(engine, job, sampling, **more)

    monkeypatch.setattr(measuring, "timed_call", noted)
    other = measuring.load_to_time(configs["student"])
    jobs = [[prompt] for prompt in prompts(2)]
    timings: Any = measuring._in_turns({"a": engine, "b": other}, jobs, SAMPLING, rounds=2, budget_s=None)
    assert order == [engine, other, engine, other, other, engine, other, engine]
    assert [len(job) for name in ("a", "b") for job in timings[name]] == [2, 2, 2, 2]
    timings = measuring._in_turns({"a": engine}, jobs, SAMPLING, rounds=2, budget_s=0.0)
    assert [len(job) for job in timings["a"]] == [2]


def test_medians_by_hand() -> None:
    jobs: Any = [[(1.0, 10), (9.0, 10), (2.0, 10)], [(4.0, 20), (4.0, 20), (6.0, 20)]]
    assert measuring._medians(jobs) == (3.0, 15.0)


def test_faults_are_named(configs: dict[str, ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no prompts"):
        measure(configs, [], sampling=SAMPLING)
    with pytest.raises(UserError, match="rounds is 0"):
        measure(configs, prompts(1), sampling=SAMPLING, rounds=0)
    with pytest.raises(ModelError, match=r"no config\.json"):
        measure({"teacher": ModelConfig(model=str(tmp_path))}, prompts(1), sampling=SAMPLING)
    monkeypatch.setattr(measuring, "peak_memory", lambda models, prompts, **settings: dict.fromkeys(models))
    with pytest.raises(UserError, match=r"every model can take .*tokens"):
        measure(configs, prompts(1, words=2000), sampling=SAMPLING)


@pytest.mark.parametrize("together", [True, False])
def test_models_take_turns_on_their_own_form_of_the_same_prompts(
    configs: dict[str, ModelConfig], monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    calls: list[tuple[str, int, str]] = []
    held, most, loaded = weakref.WeakSet[Any](), 0, []
    timed, load = measuring.timed_call, measuring.load_to_time

    def noted(engine: Any, job: Any, sampling: SamplingConfig, **more: int) -> Any:
        calls.append((engine.name, len(job), job[0].messages[0]["content"].split()[-1]))
        return timed(engine, job, sampling, **more)

    def counted(model: ModelConfig) -> Any:
        nonlocal most
        gc.collect()
        engine: Any = load(model)
        engine.name = names[model.model]
        held.add(engine)
        loaded.append(engine.name)
        most = max(most, len(held))
        return engine

    names = {model.model: name for name, model in configs.items()}
    monkeypatch.setattr(measuring, "timed_call", noted)
    monkeypatch.setattr(measuring, "load_to_time", counted)
    monkeypatch.setattr(measuring, "NUM_LATENCIES", 2)
    monkeypatch.setattr(measuring, "peak_memory", lambda models, prompts, **settings: dict.fromkeys(models))
    asked = {
        name: [Prompt(str(n), [{"role": "user", "content": f"{n} {word}"}]) for n in range(3)]
        for name, word in (("teacher", "long"), ("student", "short"))
    }
    limits = {"teacher": SamplingConfig(max_new_tokens=6, temperature=0.5), "student": ONE}
    speeds = measure(configs, asked, sampling=limits, rounds=2, budget_s=3600, together=together)
    assert {word for name, _, word in calls if name == "teacher"} == {"long"}
    assert {word for name, _, word in calls if name == "student"} == {"short"}
    batches = [name for name, number, _ in calls if number == 3]
    assert batches == ["teacher", "student", "student", "teacher"]
    assert most == (2 if together else 1)
    assert len(loaded) == (2 if together else 6)
    for speed in speeds.values():
        assert speed.in_turns_with == ("teacher", "student")
        assert [len(part) for part in (speed.rounds, speed.answer_tokens, speed.answers_single)] == [2, 3, 3]
        assert speed.rounds[0][1] == sum(speed.answer_tokens)
    found = speedups(speeds["teacher"], speeds["student"])
    for figure in (found.batched, found.single, found.per_token_batched, found.per_token_single):
        assert figure.ci95 is not None
        assert figure.value is not None
        assert figure.ci95[0] <= figure.value <= figure.ci95[1]
