"""A run's proof in its trackers: the same run as the losses, each result once, no secret, and never the run's end.

The event files of TensorBoard are read back where tensorboard is installed; trackio and wandb are tried by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import write_jsonl
from distill_lab.planning.preflight import check_trackers
from distill_lab.report import trackers
from distill_lab.report.trackers import NUM_ANSWERS, Proof, log_proof, read_proof
from distill_lab.run import Run
from distill_lab.train.student import train_student
from distill_lab.train.trackers import FILE, TrackerRun, current, named, run_beside, tracker_run
from tests.helpers import FAST, toy_rows
from tests.made_runs import made_run

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
KEY = "wb-0123456789abcdef0123456789abcdef01234567"


class Notes(ProgressReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def open_run(folder: Path, *names: str, **config: Any) -> Run:
    settings = {"train": {"report_to": names}, **config}
    return Run.open(folder, recipe="system1", config=settings, watch=Notes())


def events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Scalars as (step, value) and the last text of each tag, from the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    found: Any = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {}
    for tag in found.Tags()["tensors"]:
        value = found.Tensors(tag)[-1].tensor_proto.string_val
        if value:
            texts[tag.removesuffix("/text_summary")] = value[0].decode()
    return scalars, texts


@needs_tensorboard
@pytest.mark.slow
def test_a_tracker_gets_losses_scores_token_statistics_and_answers_in_one_run(
    random_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = made_run(tmp_path / "run")
    place = tracker_run(folder)
    write_jsonl(tmp_path / "train.jsonl", toy_rows(20))
    config = FAST.model_copy(update={"report_to": ("tensorboard",), "num_epochs": 1.0})
    log = tmp_path / "run" / "training_log.jsonl"
    with named(place):
        result = train_student(
            ModelConfig(model=str(random_model())), tmp_path / "train.jsonl", folder / "student", config, log_file=log
        )
    assert not (folder / "student.work").exists()
    assert "tokens_per_answer" not in log.read_text()
    (folder / "training.json").write_text(json.dumps({"steps": result.steps}))
    summary = read_summary(folder / "summary.json")
    secret = {"engine": {"extra_body": {"api_key": KEY}}, "student": {"model": f"https://x:{KEY}@host"}}
    with open_run(folder, "tensorboard", **secret) as run:
        log_proof(run, summary)
        scalars, texts = events(place.tensorboard)
        log_proof(run, summary)
        assert len(events(place.tensorboard)[0]["eval/student/score"]) == 1
        assert isinstance(run.watch, Notes)
        assert len(run.watch.notes) == 1
    assert len(scalars["train/loss"]) > 1
    assert scalars["train/validation_loss"]
    assert all(value > 1 for _, value in scalars["train/tokens_per_answer"])
    student = summary.models["student"]
    assert scalars["eval/student/score"] == [(result.steps, pytest.approx(student.score))]
    assert student.ci95 is not None
    assert scalars["eval/student/score_low"][0][1] == pytest.approx(student.ci95[0])
    assert scalars["eval/retention"][0][1] == pytest.approx(summary.retention)
    assert scalars["eval/speedup_high"][0][1] == pytest.approx(summary.speedup_ci95[1])  # pyright: ignore[reportOptionalSubscript]
    assert scalars["tokens/student/median"][0][1] == student.median_tokens
    assert texts["answers"].count("\n| Question") == NUM_ANSWERS
    assert texts["result"] == summary.result
    written = b"".join(file.read_bytes() for file in place.tensorboard.iterdir())
    assert KEY.encode() not in written
    assert b"***" in written


@needs_tensorboard
@pytest.mark.slow
def test_a_training_by_itself_has_its_events_beside_the_student(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", toy_rows(20))
    config = FAST.model_copy(update={"report_to": ("tensorboard",), "num_epochs": 1.0})
    train_student(ModelConfig(model=str(random_model())), tmp_path / "train.jsonl", tmp_path / "student", config)
    scalars, _ = events(tmp_path / "student.trackers" / "tensorboard")
    assert scalars["train/loss"]
    assert not (tmp_path / "student.work").exists()


def test_a_run_keeps_its_name_in_trackers_when_it_is_moved(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    place = tracker_run(folder)
    assert tracker_run(folder) == place
    folder.rename(tmp_path / "second")
    moved = tracker_run(tmp_path / "second")
    assert (moved.name, moved.id) == (place.name, place.id)
    assert moved.folder == tmp_path / "second"
    (tmp_path / "second" / FILE).write_text("{")
    assert tracker_run(tmp_path / "second").id != place.id


def test_what_is_trained_in_a_run_belongs_to_it(tmp_path: Path) -> None:
    alone, place = run_beside(tmp_path / "student", "abcdef" * 8), TrackerRun("run", "1", tmp_path)
    assert current(alone) == alone
    with named(place):
        assert current(alone) == place
        with named(alone):
            assert current(place) == alone
        assert current(alone) == place
    assert current(alone) == alone


def test_the_proof_has_figures_with_intervals_tokens_and_answers_half_of_them_failed(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run")
    summary = read_summary(folder / "summary.json")
    with open_run(folder, "tensorboard", engine={"extra_body": {"api_key": KEY}}) as run:
        proof = read_proof(run, summary)
    assert proof.figures["eval/gain"] == summary.gain
    assert {
        "eval/gain_low",
        "eval/gain_high",
        "eval/teacher/latency_p95_s",
        "tokens/base/longest",
    } <= proof.figures.keys()
    assert proof.columns == ("prompt", "gold answer", "teacher", "base", "student")
    assert len(proof.answers) == NUM_ANSWERS
    assert sum(row[-1].startswith("(0.00)") for row in proof.answers) == NUM_ANSWERS // 2
    assert proof.config["engine"] == {"extra_body": {"api_key": "***"}}


def test_a_tracker_that_fails_is_a_note_and_gets_the_proof_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_run(tmp_path / "run")
    summary = read_summary(folder / "summary.json")
    sent: list[Proof] = []

    def away(place: TrackerRun, proof: Proof) -> str:
        raise ConnectionError("no route to host")

    def there(place: TrackerRun, proof: Proof) -> str:
        sent.append(proof)
        return "here"

    with open_run(folder, "wandb", "mlflow", "none") as run:
        assert isinstance(run.watch, Notes)
        monkeypatch.setitem(trackers.WRITERS, "wandb", away)
        log_proof(run, summary)
        assert "did not reach wandb (no route to host)" in run.watch.notes[0]
        assert "mlflow has the losses" in run.watch.notes[1]
        monkeypatch.setitem(trackers.WRITERS, "wandb", there)
        log_proof(run, summary)
        log_proof(run, summary)
    assert len(sent) == 1


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run")
    with open_run(folder, "none") as run:
        log_proof(run, read_summary(folder / "summary.json"))
    assert not (folder / FILE).exists()


def test_wandb_without_a_key_is_refused_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(known, lambda: ["wandb"])
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"no key for it; run `wandb login`.*WANDB_MODE=offline"):
        check_trackers(("wandb",))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    check_trackers(("wandb",))
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(("wandb",))
    assert TrainConfig().report_to == ()
