"""What the lab says it is doing: stages of a run, a training before, during and after its steps, graders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from distill_lab import activity
from distill_lab.activity import Activity, ProgressReporter
from distill_lab.files.jsonl import write_jsonl
from distill_lab.run import Run
from distill_lab.types import Completion, Prompt


def test_a_run_tells_its_watch_what_is_being_done_and_that_it_is_over(tmp_path: Path) -> None:
    class Heard(ProgressReporter):
        said: ClassVar[list[str]] = []

        def stage(self, title: str) -> None:
            self.said.append(f"> {title}")

        def doing(self, activity: Activity | None) -> None:
            self.said.append(str(activity))

        def finished(self, title: str) -> None:
            self.said.append(f"< {title}")

    def work(path: Path) -> None:
        with activity.doing("loading"):
            path.write_text("x")

    outer: list[Activity | None] = []
    with activity.listening(outer.append), Run.open(tmp_path / "run", recipe="r", config={}, watch=Heard()) as run:
        run.stage("one", "one.txt", inputs={}, work=work)
    assert Heard.said == ["> one", "loading", "None", "< one"]
    assert outer == []
    assert activity._listeners == []


def test_training_says_what_it_does_before_during_and_after_its_steps(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    from distill_lab.config import ModelConfig, TrainConfig
    from distill_lab.train.student import train_student

    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n} " * 9}],
            "completion": [{"role": "assistant", "content": "x " * 9}],
        }
        for n in range(40)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = TrainConfig(
        max_length=64, tokens_per_batch=128, gradient_accumulation_steps=2, validation_fraction=0.2, max_steps=4
    )
    heard: list[str] = []
    with activity.listening(lambda doing: heard.append(str(doing))):
        train_student(ModelConfig(model=str(random_model())), tmp_path / "rows.jsonl", tmp_path / "out", config)
    kinds = list(dict.fromkeys(text.split(",")[0].split(" /")[0] for text in heard))
    assert kinds == [
        *("loading", "None", "reading the training rows of", "validation loss", "training"),
        # None after the last step: the student itself is saved next.
        *(f"saving a checkpoint after step {step}" for step in (1, 2, 3)),
        "saving the student",
    ]
    steps = [text for text in heard if text.startswith("training")]
    assert steps == [f"training, micro-batch {number} of 8" for number in range(1, 9)]
    assert any(text.startswith("validation") for text in heard[: heard.index(steps[0])])


def test_graders_that_look_at_each_answer_say_how_far_they_are(tmp_path: Path) -> None:
    from distill_lab.grading.grade import grade

    prompts = [Prompt(str(n), [{"role": "user", "content": "?"}], answer="1") for n in range(5)]
    write_jsonl(tmp_path / "p.jsonl", (each.to_json() for each in prompts))
    answers = (Completion(str(n), 0, "1", None, "stop", 1).to_json() for n in range(5))
    write_jsonl(tmp_path / "c.jsonl", answers)
    heard: list[str] = []
    with activity.listening(lambda doing: heard.append(str(doing))):
        grade(tmp_path / "p.jsonl", tmp_path / "c.jsonl", tmp_path / "g.jsonl", "exact")
    assert list(dict.fromkeys(heard)) == [f"grading {n} of 5" for n in range(5)]
