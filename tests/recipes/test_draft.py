"""The draft recipe and `distill eval --draft`: the whole line, heads with different numbers of rows, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab import cli
from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.models.loading import load_model
from distill_lab.recipes import draft
from distill_lab.train.loss_module import decoder_and_head

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=12, thinking=False)


def tiny(**changes: Any) -> draft.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:instructions", split="distill[:40]"),
        "test": DataConfig(path="tiny:instructions", split="test[:6]"),
        "sampling": SHORT.model_copy(update={"temperature": 1.0}),
        "test_sampling": SHORT,
        "train": TrainConfig(learning_rate=1e-3, tokens_per_batch=256, save_steps=0.5, validation_fraction=0.2),
        "cache_mode": "off",
        "num_timed": 2,
    }
    return draft.PRESETS["tiny"].model_copy(update=settings | changes)


def head_of(folder: Path) -> torch.Tensor:
    return decoder_and_head(load_model(ModelConfig(model=str(folder), dtype="fp32"))[0])[1].linear.weight


def test_the_whole_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = draft.run(tiny(), run)
    assert summary == read_summary(run / "summary.json")
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert {"student", "greedy test answers of the target", "draft figures"} <= stages.keys()
    assert "draft base" not in stages
    report = json.loads((run / "draft.json").read_text())
    assert summary.draft is not None
    assert json.loads(json.dumps(summary.draft.to_json())) == report
    assert summary.test_overlap is not None
    assert summary.test_overlap.rows_in == 40
    assert {kind: each["rows_in"] for kind, each in report["answers"].items()} == {"sampled": 6, "greedy": 6}
    assert set(report["drafts"]) == {"base", "draft"}
    for found in report["drafts"].values():
        assert found["acceptance"]["greedy"]["num_answers"] == found["acceptance"]["sampled"]["num_answers"] == 6
        assert 1 <= found["num_drafted"] <= 8
        assert found["same_answers"] == report["num_timed"] == 2
        assert found["speedup"]["value"] > 0
    assert report["gain_sampled"][1][0] <= report["gain_sampled"][0] <= report["gain_sampled"][1][1]
    assert "vllm serve tiny:teacher --speculative-config" in summary.notes[-1]
    assert str(run / "student") in summary.notes[-1]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "of the draft&#x27;s tokens at temperature 1" in page or "of the draft's tokens at temperature 1" in page


def test_a_draft_gets_as_many_rows_as_its_target(random_model: Callable[..., Path], tmp_path: Path) -> None:
    small = random_model(hidden=32, layers=1)
    rows = len(head_of(small))
    big = random_model(hidden=32, layers=2, seed=1, vocab_size=rows + 64, tie_word_embeddings=False)
    run = tmp_path / "run"
    config = tiny(
        teacher=ModelConfig(model=str(big), dtype="fp32"),
        student=ModelConfig(model=str(small), dtype="fp32"),
        relabel=False,
        sampling=SHORT,
    )
    summary = draft.run(config, run)
    assert len(head_of(run / "student")) == rows + 64
    assert summary.draft is not None
    assert summary.draft.no_time == ""
    base = head_of(run / "draft_base")
    torch.testing.assert_close(base[rows:], base[:rows].mean(0).expand(64, -1), rtol=1e-4, atol=1e-6)
    assert (base[:rows] == head_of(small)).all()


def test_eval_measures_drafts_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "draft.json"
    command = [
        *("eval", "--model", "tiny:teacher", "--draft", "tiny:student", "--base-draft", "tiny:student"),
        *("--data", "tiny:instructions", "--data.split", "test[:3]", "--sampling.max-new-tokens", "8"),
        *("--sampling.thinking", "False"),
        *("--out", str(out)),
    ]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["gain_greedy"][0] == report["gain_sampled"][0] == 0.0
    assert "tokens accepted" in shown
    assert "vllm serve tiny:teacher" in shown
    assert [line for line in shown.splitlines() if len(line) > 80 and str(tmp_path) not in line][1:] == []  # vllm serve
    # Another draft needs another output; the same command is done at once.
    assert cli.main([*command[:4], "tiny:teacher", *command[5:]]) == 2
    assert "Choose another output name" in capsys.readouterr().err


def test_what_belongs_to_a_score_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["eval", "--model", "tiny:teacher", "--draft", "tiny:student", "--data", "tiny:instructions"]
    out = ["--out", str(tmp_path / "draft.json")]
    for more, message in (
        ([], "no output file; give --out draft.json"),
        ([*out, "--base", "tiny:student"], "--base belongs to a score"),
        ([*out, "--grader", "exact"], "--grader belongs to a score"),
        ([*out, "--sampling.temperature", "0.5"], "remove --sampling.temperature"),
        ([*out, "--sampling.top-k", "5", "--sampling.num-samples", "4"], "--sampling.top-k, --sampling.num-samples"),
        ([*out, "--base-draft", "openai:small"], "a server gives tokens, not distributions"),
    ):
        assert cli.main([*start, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "draft.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ModelConfig(model="openai:big")}, "a server gives tokens, not distributions"),
        ({"grader": "exact"}, "--grader belongs to a score"),
        (
            {"test_sampling": SHORT.model_copy(update={"num_samples": 4, "temperature": 0.7})},
            "--test-sampling.temperature",
        ),
    ],
)
def test_what_cannot_work_is_refused_first(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        draft.run(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "data.jsonl").exists()
