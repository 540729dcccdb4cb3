"""The proof of a run, where the teacher's answers are the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import NoData
from distill_lab.files.jsonl import write_jsonl
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Prompt


def test_a_reference_that_no_answer_gives_stops_the_proof(random_model: Callable[..., Path], tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    write_jsonl(test, [Prompt("a", [{"role": "user", "content": "which language?"}]).to_json()])
    model = ModelConfig(model=str(random_model()))
    setups = ask_alike(dict.fromkeys(("teacher", "base", "student"), model), SamplingConfig(max_new_tokens=2))
    with Run.open(tmp_path / "run", recipe="prompt", config={}) as run:
        pipeline = Pipeline(run, engine=EngineConfig(engine="transformers"))
        with pytest.raises(NoData, match="the teacher gave no readable answer in the test"):
            evaluate_models(
                pipeline, setups, test, grader="label", labels=("de", "en"), teacher_is_reference=True,
                measure_speed=False,
            )  # fmt: skip
    assert not (tmp_path / "run" / "eval" / "student.completions.jsonl").exists()
