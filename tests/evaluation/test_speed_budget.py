"""Timing stays within its budget, by a clock that counts the tokens a model is made to compute."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError
from distill_lab.evaluation import speed as measuring
from distill_lab.evaluation.peak_memory import peak_memory
from distill_lab.evaluation.speed import Speed, measure
from distill_lab.evaluation.speed_plan import Pace, batch_within, make_plan
from distill_lab.evaluation.summary import no_p95, ran_on, summarize
from distill_lab.generation.decoding.slices import Slices
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.pipeline.proof import timing_note
from distill_lab.types import Prompt

pytestmark = pytest.mark.slow


class Clock:
    """Stands still but for what the models compute."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


FAST = Pace(read_s=0.01, token_s=0.005, rows=8, batch_read_s=0.05, step_s=0.008)
SLOW = Pace(read_s=20.0, token_s=0.5, rows=2, batch_read_s=30.0, step_s=0.8)


def plan(*paces: Pace, budget_s: float = 288.0, max_tokens: int = 2048) -> Any:
    return make_plan(paces, budget_s=budget_s, num_prompts=64, max_tokens=max_tokens, rounds=3, latency_tokens=128)


def test_fast_models_are_timed_in_full() -> None:
    found = plan(FAST, FAST)
    assert (found.num_prompts, found.max_tokens, found.rounds) == (64, 256, 3)
    assert (found.num_single, found.rounds_single) == (8, 3)
    assert found.seconds <= 288


@pytest.mark.parametrize("slower", [1, 4, 16, 40])
def test_slower_models_get_less_and_stay_within_the_budget(slower: float) -> None:
    pace = Pace(0.3 * slower, 0.02 * slower, 8, 1.0 * slower, 0.05 * slower)
    found = plan(pace, FAST)
    assert found.seconds <= 288
    assert found.num_prompts >= 1
    assert found.max_tokens >= 16
    smaller = plan(pace, FAST, budget_s=60)
    assert (
        smaller.num_prompts * smaller.max_tokens * smaller.rounds <= found.num_prompts * found.max_tokens * found.rounds
    )


def test_what_is_too_slow_for_any_plan_gets_the_smallest() -> None:
    found = plan(SLOW, budget_s=10)
    assert (found.num_prompts, found.max_tokens, found.rounds, found.num_single, found.rounds_single) == (
        1,
        16,
        1,
        1,
        1,
    )


def test_answers_that_end_early_leave_room_for_more_of_them() -> None:
    long = Pace(0.5, 0.1, 8, 3.0, 0.3)
    short = Pace(0.5, 0.1, 8, 3.0, 0.3, most_tokens=3)
    assert plan(short).num_prompts > plan(long).num_prompts
    assert plan(short).max_tokens >= plan(long).max_tokens


def test_the_memory_batch_is_cut_to_its_seconds() -> None:
    assert batch_within(FAST, 36, num_prompts=64, max_tokens=2048) == (64, 256)
    for seconds in (100, 36, 5):
        number, tokens = batch_within(SLOW, seconds, num_prompts=64, max_tokens=2048)
        assert (number, tokens) == (1, 16) or SLOW.batch_s(number, tokens) <= seconds


@pytest.fixture
def slow_engines(random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    def make(seconds_per_token: dict[str, float], pass_s: float = 0.0) -> Clock:
        clock, load = Clock(), measuring.load_to_time

        def slowed(model: ModelConfig) -> TransformersEngine:
            engine = load(model.model_copy(update={"model": str(folder)}))
            forward = engine.model.forward
            engine.slices = Slices(first=64, maximum=8192, clock=clock)

            @functools.wraps(forward)
            def passing(*args: Any, **kwargs: Any) -> Any:
                clock.now += pass_s + seconds_per_token[model.model] * kwargs["input_ids"].numel()
                return forward(*args, **kwargs)

            engine.model.forward = passing
            return engine

        folder = random_model(initializer_range=0.15)
        monkeypatch.setattr(measuring, "load_to_time", slowed)
        monkeypatch.setattr("distill_lab.models.loading.resolve_precision", lambda model: model)
        monkeypatch.setattr(measuring.time, "perf_counter", clock)
        monkeypatch.setattr(measuring, "peak_memory", lambda models, *a, **k: dict.fromkeys(models, 1))
        return clock

    return make


def prompts(number: int, words: int) -> list[Prompt]:
    return [Prompt(str(i), [{"role": "user", "content": f"{i} " * words}]) for i in range(number)]


def test_a_model_that_takes_minutes_for_an_answer_stays_within_the_budget(slow_engines: Callable[..., Clock]) -> None:
    clock = slow_engines({"teacher": 0.05, "student": 0.02}, pass_s=0.2)
    models = {name: ModelConfig(model=name) for name in ("teacher", "student")}
    speeds = measure(
        models, prompts(64, 60), sampling=SamplingConfig(max_new_tokens=400), latency_tokens=16, budget_s=180
    )
    # In full, three rounds of 64 prompts with 256 tokens of both would take over an hour.
    assert clock.now <= 1.15 * 2 * 180
    teacher = speeds["teacher"]
    assert (teacher.num_prompts, teacher.max_tokens) < (64, 256)
    assert teacher.num_latencies < 20
    assert teacher.latency_p95_s is None
    assert teacher.latency_p50_s > 0


def test_figures_say_what_they_were_taken_with(slow_engines: Callable[..., Clock]) -> None:
    slow_engines({"teacher": 2e-4, "student": 1e-4})
    models = {name: ModelConfig(model=name) for name in ("teacher", "student")}
    speeds = measure(models, prompts(12, 3), sampling=SamplingConfig(max_new_tokens=400), latency_tokens=128, rounds=1)
    teacher = speeds["teacher"]
    assert (teacher.engine, teacher.dtype, teacher.max_tokens, teacher.num_latencies) == (
        "transformers",
        "fp32",
        256,
        20,
    )
    assert teacher.device
    assert teacher.latency_p95_s is not None
    summary = summarize("system1", 0, scores={}, speeds=speeds)
    assert summary.speedup_per_token_batched == pytest.approx(speeds["student"].tokens_per_s / teacher.tokens_per_s)
    assert summary.speedup_batched == pytest.approx(teacher.seconds_per_answer / speeds["student"].seconds_per_answer)
    found = summary.models["teacher"]
    assert (found.device, found.dtype, found.engine) == (teacher.device, "fp32", "transformers")
    assert "transformers, fp32, " in ran_on(summary.models)
    assert no_p95(found) == ""
    old = {name: value for name, value in teacher.to_json().items() if name not in ("engine", "device", "dtype")}
    assert Speed.from_json(json.loads(json.dumps(old))).tokens_per_s == teacher.tokens_per_s


def test_too_few_latencies_leave_the_goal_open(slow_engines: Callable[..., Clock]) -> None:
    slow_engines({"student": 0.5})
    speeds = measure(
        {"student": ModelConfig(model="student")},
        prompts(2, 3),
        sampling=SamplingConfig(max_new_tokens=20),
        budget_s=60,
    )
    summary = summarize("system1", 0, scores={}, speeds=speeds)
    assert summary.models["student"].latency_p95_s is None
    assert not [kpi for kpi in summary.kpis if kpi.startswith("p95")]
    assert "no 95th percentile from" in no_p95(summary.models["student"])


def test_memory_is_measured_in_one_process_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    class Child:
        returncode = 0

        def __init__(self, command: Sequence[str], **settings: Any) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)

        def communicate(self) -> tuple[str, str]:
            return '{"peak_memory_bytes": 7}', ""

        def kill(self) -> None:
            pass

        def wait(self) -> None:
            nonlocal running
            running -= 1

    monkeypatch.setattr(subprocess, "Popen", Child)
    models = {name: ModelConfig(model="tiny:student") for name in ("a", "b", "c")}
    assert peak_memory(models, prompts(2, 2), sampling=SamplingConfig()) == {"a": 7, "b": 7, "c": 7}
    assert most == 1


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="measuring its memory ended with exit code"):
        peak_memory({"a": ModelConfig(model=str(tmp_path))}, prompts(1, 1), sampling=SamplingConfig())


def test_how_long_it_takes_is_said_before(random_model: Callable[..., Path]) -> None:
    assert timing_note(2, EngineConfig().measure_budget_s).startswith("timing takes about 6.0 min at most")
