"""A sign of life: prompts read in slices, progress before the first completion, a time left only once it is sound."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill_lab import activity
from distill_lab.activity import Activity, Decoding
from distill_lab.config import SamplingConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.formatting import duration
from distill_lab.generation.decoding.slices import Slices
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.generation.generate import generate
from distill_lab.generation.progress import Progress, Tracker
from distill_lab.terminal import Terminal
from distill_lab.types import Completion, Prompt
from tests.helpers import assert_equals_generate, by_id, make_engine, make_prompts, passes, with_system


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def slow(engine: TransformersEngine, clock: Clock, *, seconds_per_token: float) -> None:
    """Let every pass of the model take so long by the clock."""
    forward = engine.model.forward

    @functools.wraps(forward)
    def passing(*args: Any, **kwargs: Any) -> Any:
        clock.now += seconds_per_token * kwargs["input_ids"].numel()
        return forward(*args, **kwargs)

    engine.model.forward = passing
    engine.slices = Slices(first=64, maximum=engine.slices.maximum, clock=clock)  # as many as for a large model


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15, num_attention_heads=4, num_key_value_heads=2)


def test_slices_follow_the_measured_pace() -> None:
    clock = Clock()
    slices = Slices(first=1000, maximum=4000, clock=clock)

    def read(num_tokens: int, seconds: float) -> int:
        with slices.timed(num_tokens):
            clock.now += seconds
        return slices.size

    assert [read(1000, 0.1), read(2000, 0.1), read(4000, 0.1)] == [2000, 4000, 4000]
    assert read(10, 0.0) == 4000, "a small pass says nothing of a large one"
    assert [read(4000, 2.0), read(4000, 9.0), read(2000, 5.0)] == [4000, 2000, 1000]
    assert read(200, 9.0) == 100, "so few tokens took long: fewer still"
    assert read(100, 9.0) == 64
    assert [len(part) for part in slices.of(range(224))] == [64, 64, 96]
    assert Slices(first=1e9, maximum=8192).size == 8192


def test_long_prompts_are_read_in_slices_and_answered_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_lab.generation.engines.transformers.extra_bytes", lambda device: 1)
    engine = make_engine(folder)
    prompts = [
        *with_system(make_prompts(9, longest=12), words=150),
        *(replace(prompt, id=f"long {prompt.id}") for prompt in make_prompts(3, longest=200)[1:]),
    ]
    engine.slices = Slices(first=64, maximum=64)
    seen = passes(engine)
    # Shared prefixes and single long prompts, each in slices; the tokens are those of transformers' own generate.
    list(engine.generate(prompts, SamplingConfig(max_new_tokens=1)))
    assert max(seen) <= 96
    assert sum(size > 32 for size in seen) > 4
    assert_equals_generate(engine, prompts, SamplingConfig(max_new_tokens=12))


def test_prompts_of_several_samples_are_read_in_slices(folder: Path) -> None:
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0, num_samples=3, seed=4)
    prompts = make_prompts(6, longest=150)
    whole = by_id(make_engine(folder).generate(prompts, sampling))
    engine = make_engine(folder)
    engine.slices = Slices(first=64, maximum=64)
    seen = passes(engine)
    assert by_id(engine.generate(prompts, sampling)) == whole
    assert max(seen) <= 96


def test_progress_comes_every_few_seconds_before_the_first_answer(folder: Path, tmp_path: Path) -> None:
    engine, clock = make_engine(folder), Clock()
    slow(engine, clock, seconds_per_token=0.02)  # a large model on a CPU
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, (each.to_json() for each in with_system(make_prompts(40, longest=30), words=300)))
    told: list[tuple[float, str]] = []
    progress: list[Progress] = []

    def on_progress(state: Progress) -> None:
        told.append((clock.now, state.detail))
        progress.append(state)

    def heard(doing: Activity | None) -> None:
        told.append((clock.now, str(doing)))

    with activity.listening(heard):
        generate(
            prompts, tmp_path / "out.jsonl", lambda: engine, SamplingConfig(max_new_tokens=40), on_progress=on_progress
        )
    times = [when for when, _ in told]
    assert max(later - earlier for earlier, later in pairwise(times)) < 11
    texts = [text for _, text in told]
    assert any(text.startswith("reading the shared prompt") for text in texts)
    first = next(place for place, state in enumerate(progress) if state.done)
    assert len({state.reading for state in progress[:first] if state.reading}) > 3
    assert all(state.reading is None or state.reading[1] == 40 for state in progress)
    assert any(state.tokens and not state.done for state in progress), "tokens of unfinished answers count"
    assert all(state.seconds_left is None for state in progress[:first])
    assert [state.seconds_left for state in progress][-1] == 0


def test_the_time_left_is_that_of_the_rest() -> None:
    seen: list[Progress] = []
    clock = Clock()
    tracker = Tracker(total=100, done=0, max_new_tokens=50, on_progress=seen.append, clock=clock)
    tracker.started()
    with tracker.listening():
        activity.report("reading", decoding=Decoding(100, 10, 0, 5.0, 0.0))
        assert (seen[-1].reading, seen[-1].seconds_left) == ((10, 100), None)
        # 40 prompts at 0.5 s each, then 40 tokens of each of them at 0.01 s a token.
        clock.now += 36
        activity.report("decoding", decoding=Decoding(100, 40, 1600, 20.0, 16.0))
        assert (seen[-1].seconds_left, seen[-1].unfinished, seen[-1].tokens) == (None, 40, 1600)
        tracker.completed(40)
        tracker.completed(40)
        assert seen[-1].seconds_left is None, "two answers say nothing yet"
        tracker.completed(40)
        # Answers are as long as the limit for all that is known: 60 prompts to read, 97 x 50 - 37 x 40 tokens to write.
        assert seen[-1].seconds_left == pytest.approx(60 * 0.5 + (97 * 50 - 37 * 40) * 0.01)
        for _ in range(37):
            tracker.completed(40)
        assert seen[-1].seconds_left == pytest.approx(60 * (0.5 + 40 * 0.01))


def test_the_time_left_without_reports_is_that_of_completions() -> None:
    clock = Clock()
    tracker = Tracker(total=100, done=90, max_new_tokens=50, on_progress=None, clock=clock)
    tracker.started()
    for number in range(3):
        clock.now += 2
        tracker.completed(5)
        assert tracker.progress().seconds_left == (None if number < 2 else 14)


class Talking(Terminal):
    """A face whose output a test reads."""

    def __init__(self, clock: Clock, *, terminal: bool = False) -> None:
        super().__init__(clock=clock, ticking=False)
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=80, soft_wrap=True, highlight=False)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


@pytest.fixture
def talking() -> Iterator[Callable[..., Talking]]:
    made: list[Talking] = []

    def make(clock: Clock, **more: Any) -> Talking:
        made.append(Talking(clock, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_log_has_a_line_within_ten_seconds_whatever_a_step_reports(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock)
    face.stage("teacher answers")
    for _ in range(25):
        clock.now += 1
        face.tick()
    assert face.lines == ["> teacher answers", "  teacher answers, 9 s so far", "  teacher answers, 18 s so far"]
    with activity.doing("loading Qwen"):
        for _ in range(10):
            clock.now += 1
            face.tick()
    assert face.lines[3:] == ["  loading Qwen, for 2 s"]
    for number in range(12):
        clock.now += 1
        activity.report("reading prompts", number, 12)
    assert face.lines[4:] == ["  reading prompts 0 of 12, 36 s so far", "  reading prompts 9 of 12, about 3 s left"]
    face.finished("teacher answers")
    clock.now += 1000
    face.tick()
    assert len(face.lines) == 6, "nothing runs, nothing is said"


def test_a_long_stage_has_fewer_lines(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock)
    face.stage("student")
    for _ in range(3600):
        clock.now += 1
        face.tick()
    assert 100 < len(face.lines) < 160


def test_the_time_left_of_counted_steps_comes_from_their_pace(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock)
    face.stage("student")
    for step in range(5):
        clock.now += 10
        face.log({"step": step, "num_steps": 100, "loss": 1.5})
    assert face.lines[1] == "  0/100, loss 1.500, 10 s so far"
    assert face.lines[2] == "  1/100, loss 1.500, 20 s so far", "one step is no pace"
    assert face.lines[3] == "  2/100, loss 1.500, about 16 min left"


def test_a_caller_without_a_sound_figure_gets_none_shown(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock)
    face.stage("answers")
    for done in range(5):
        clock.now += 10
        face.progress(done, 300, detail="12 tok/s", seconds_left=None)
    assert not [line for line in face.lines if "left" in line]
    clock.now += 10
    face.progress(5, 300, detail="12 tok/s", seconds_left=7200)
    assert face.lines[-1] == "  5/300, 12 tok/s, about 2 h 00 min left"


def test_a_terminal_shows_one_line_that_fits_and_is_gone_at_the_end(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock, terminal=True)
    face.stage("teacher answers")
    with activity.doing("loading " + "a/very/long/name/" * 8):
        clock.now += 14
        assert face._live is not None
        with face.console.capture() as shown:
            face.console.print(face._line())
        assert all(len(line) <= 80 for line in shown.get().splitlines())
        assert "loading a/very" in shown.get()
    face.note("a note keeps the line alive")
    assert face._live is not None
    face.finished("teacher answers")
    assert face._live is None


def test_durations_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0, 14.2, 99, 150, 5999, 7500)] == [
        *("0 s", "14 s", "99 s", "2 min", "1 h 40 min", "2 h 05 min")
    ]


def test_an_engine_that_reports_nothing_still_has_progress(tmp_path: Path) -> None:
    class Plain:
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            for prompt in prompts:
                yield Completion(prompt.id, 0, "x", None, "stop", 3)

    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, (each.to_json() for each in make_prompts(5)))
    seen: list[Progress] = []
    generate(prompts, tmp_path / "out.jsonl", Plain, SamplingConfig(), on_progress=seen.append)
    assert [state.done for state in seen] == list(range(6))
    assert [state.tokens for state in seen] == [0, 3, 6, 9, 12, 15]


def test_while_a_shared_prompt_is_read_the_line_shows_that_and_the_time(talking: Callable[..., Talking]) -> None:
    clock = Clock()
    face = talking(clock)
    face.stage("answers")
    face.progress(0, 20, detail="reading prompts 0 of 20", seconds_left=None)
    activity.report("reading the shared prompt", 0, 600)
    clock.now += 3
    activity.report("reading the shared prompt", 100, 600)
    clock.now += 9
    activity.report("reading the shared prompt", 200, 600)
    assert face.lines[1:] == ["  0/20, reading the shared prompt 200 of 600, 12 s so far"]
    clock.now += 10
    face.progress(0, 20, detail="20 tokens in 20 answers, 3 tok/s", seconds_left=None)
    assert face.lines[2:] == ["  0/20, 20 tokens in 20 answers, 3 tok/s, 22 s so far"]


def test_the_table_of_models_fits_into_eighty_columns(talking: Callable[..., Talking]) -> None:
    from distill_lab.evaluation.summary_file import ModelSummary
    from distill_lab.report.result_text import model_table

    model = {
        "score": 1.0, "ci95": [0.886, 1.0], "cut_share": 1.0, "tokens_per_s": 1234.5, "latency_p50_s": 9.87,
        "latency_p95_s": 9.99, "num_parameters": 7_615_616_512, "peak_memory_bytes": 15_234_567_890,
    }  # fmt: skip
    unknown = {"score": 0.5}
    small = {**model, "num_parameters": 494_032_768, "peak_memory_bytes": 2_100_000_000, "latency_p95_s": None}
    models = {"teacher": model, "base": unknown, "student": small}
    face = talking(Clock())
    face.print(model_table({name: ModelSummary(**figures) for name, figures in models.items()}))
    assert all(len(line) <= 80 for line in face.lines)
    shown = "\n".join(face.lines)
    assert "\u2026" not in shown
    for text in (
        "100.0% [88.6, 100.0]",
        "100%",
        "1,234",
        "9.87/9.99 s",
        "9.87/- s",
        "7.6B",
        "494M",
        "14.2 GiB",
        "2.0 GiB",
    ):
        assert text in shown
