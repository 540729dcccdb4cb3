"""Memory between stages: no model outlives its stage, a judge is loaded once, gone before speeds; these may fail."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab import cli
from distill_lab.activity import ProgressReporter
from distill_lab.config import DataConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.generation.engines import load_engine
from distill_lab.recipes import cot, prompt, system1, verified

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=12, thinking=False)
TRAIN = TrainConfig(learning_rate=1e-4, tokens_per_batch=512, max_length=256, max_steps=1, save_steps=1)
SPARE = 200_000
"""Bytes of tensors that libraries may keep (tables of a tokenizer, random state); the smallest model has 1.7 million."""


def small(recipe: Any, task: str, **changes: Any) -> Any:
    settings = {
        "data": DataConfig(path=f"tiny:{task}", split="distill[:40]"),
        "test": DataConfig(path=f"tiny:{task}", split="test[:4]"),
        "test_sampling": SHORT,
        "train": TRAIN,
        "measure": False,
    }
    return recipe.PRESETS["tiny"].model_copy(update=settings | changes)


def tensor_bytes() -> int:
    """Of all tensors that anything refers to, cycles included, storage shared by several counted once."""
    found = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type != "meta":
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Scales(ProgressReporter):
    """Weighs what is left when a stage begins."""

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}

    def stage(self, title: str) -> None:
        self.weights[title] = tensor_bytes()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which on a large heap may not come by for minutes: only what is given back goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_no_model_outlives_its_stage(quantization: str, tmp_path: Path) -> None:
    student = ModelConfig(model="tiny:student", quantization=quantization)  # pyright: ignore[reportArgumentType]
    train = TRAIN.model_copy(update={"lora": LoraConfig(r=4)}) if quantization == "4bit" else TRAIN
    before, scales = tensor_bytes(), Scales()
    system1.run(
        small(system1, "instructions", student=student, train=train, sampling=SHORT), tmp_path / "run", watch=scales
    )
    after = {name: weight - before for name, weight in scales.weights.items()} | {"the end": tensor_bytes() - before}
    assert {"teacher answers", "student", "test answers of the student"} < after.keys()
    assert {name: weight for name, weight in after.items() if weight > SPARE} == {}


class Loads:
    """Counts what the judge's engine is loaded for, and keeps track of whether it is still there."""

    def __init__(self) -> None:
        self.engines: list[weakref.ref[Any]] = []

    def load(self, *arguments: Any, **named: Any) -> Any:
        engine = load_engine(*arguments, **named)
        self.engines.append(weakref.ref(engine))
        return engine

    @property
    def alive(self) -> int:
        return sum(engine() is not None for engine in self.engines)


@pytest.mark.parametrize("recipe", ["system1", "prompt"])
def test_a_judge_is_loaded_once_and_gone_before_speeds(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, alive = Loads(), []
    monkeypatch.setattr("distill_lab.grading.graders._asking.load_engine", loads.load)

    def measured(*arguments: Any, **settings: Any) -> Any:
        alive.append(loads.alive)
        raise ModelError("tiny:teacher", "no room")

    monkeypatch.setattr("distill_lab.pipeline.proof.measure", measured)
    changes = {"grader": "judge:tiny:student", "measure": True, "sampling": SHORT}
    if recipe == "system1":
        system1.run(small(system1, "instructions", **changes), tmp_path / "run")
    else:
        changes["sampling"] = SamplingConfig(max_new_tokens=24, temperature=0.15)
        prompt.run(small(prompt, "labels", **changes), tmp_path / "run")
    assert len(loads.engines) == 1
    assert alive == [0]


FAILURES = [
    ModelError("tiny:teacher", "measuring its memory ended with exit code 1"),
    UserError("no prompt that every model can take"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_speeds_that_cannot_be_taken_are_a_note(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []

    def measured(*arguments: Any, **settings: Any) -> Any:
        # A process that the system kills here leaves scores, summary and page.
        seen.append((tmp_path / "run" / "report.html").is_file())
        seen.append(
            json.loads((tmp_path / "run" / "summary.json").read_text())["models"]["student"]["score"] is not None
        )
        raise failure

    monkeypatch.setattr("distill_lab.pipeline.proof.measure", measured)
    flags = ["--data.split", "distill[:40]", "--test.split", "test[:4]", "--train.max-steps", "1"]
    flags += ["--test-sampling.max-new-tokens", "12", "--sampling.max-new-tokens", "12"]
    assert cli.main(["system1", "--preset", "tiny", "--run", str(tmp_path / "run"), *flags]) == 0
    # Models that do not fit together are timed again, one after the other.
    attempts = 2 if isinstance(failure, (MemoryError, torch.OutOfMemoryError)) else 1
    assert seen == [True, True] * attempts
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.models["student"].score is not None
    assert summary.speedup is None
    note = f"Speed not measured: {str(failure) or type(failure).__name__}"
    assert note in summary.notes
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(("recipe", "task"), [(verified, "problems"), (prompt, "labels"), (cot, "problems")])
def test_other_recipes_end_without_speeds_too(
    recipe: Any, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: Any, **settings: Any) -> Any:
        raise ModelError("tiny:teacher", "no room")

    monkeypatch.setattr("distill_lab.pipeline.proof.measure", measured)
    train = recipe.PRESETS["tiny"].train.model_copy(update={"max_steps": 1})
    summary: Any = recipe.run(small(recipe, task, measure=True, train=train), tmp_path / "run")
    assert summary.notes[-1] == "Speed not measured: tiny:teacher: no room"
    assert summary == read_summary(tmp_path / "run" / "summary.json")
    assert "Speed not measured" in (tmp_path / "run" / "report.html").read_text()
    if recipe is verified:
        assert all(found is not None for found in (summary.tokens, summary.best_of_k, summary.iterations))
    if recipe is prompt:
        assert summary.cost.ratio.tokens > 1
        assert summary.cost.ratio.seconds is None


def test_questions_without_answers_are_scored_against_the_teachers(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Make this upper case: word{n}"}) + "\n" for n in range(40)))
    config = small(system1, "instructions", data=DataConfig(path=str(data)), test=DataConfig(path=""), num_test=4)
    summary: Any = system1.run(config, tmp_path / "run")
    assert summary.metric.name == "ROUGE-L overlap against the teacher's answers"
    assert summary.models.keys() == {"base", "student"}
    assert summary.kpis == {}
    page = unescape((tmp_path / "run" / "report.html").read_text())
    assert "Score: ROUGE-L overlap against the teacher's answers" in page
