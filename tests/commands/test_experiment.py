"""`distill experiment` as it is typed: a dry run, a whole run with a user's file, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill_lab import cli
from tests.helpers import ROOT
from tests.typed import settings

PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")


def test_the_pages_commands_parse() -> None:
    typed = [line.strip() for line in PAGE.splitlines() if line.startswith("    distill ")]
    assert len(typed) >= 5
    for line in typed:
        assert settings(line) is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["z"], "no experiment 'z'"),
        (["all", "--data", "x.jsonl"], "one experiment at a time"),
        (["a", "--test", "x.jsonl"], "--test goes with --data"),
        (["a", "--preset", "real"], "go together"),
        (["a", "--preset", "tiny", "--judge", "no-such/model-here-at-all/x"], "judge"),
        (["none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_work_is_refused_first(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["experiment", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_lists_the_variants_and_counts_the_teacher_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["experiment", "all", "--preset", "tiny", "--dry-run", "--scale", "0.02"]) == 0
    printed = capsys.readouterr().out
    lines = re.findall(r"^  (.+?)  +([\d,]+) +([\d,]+) +[\d,]+ +~ \d+ ", printed, re.MULTILINE)
    rows = {name: int(number.replace(",", "")) for name, number, _ in lines}
    new = {name: int(number.replace(",", "")) for name, _, number in lines}
    assert new["500 rows"] == rows["500 rows"] <= 10
    assert new["500 rows"] + new["2,000 rows"] == rows["2,000 rows"] <= 40
    assert new["500 rows"] + new["2,000 rows"] + new["8,000 rows"] == rows["8,000 rows"] <= 160
    assert new["the data set's"] == 0
    assert new["1 layer"] == rows["1 layer"] == rows["2 layers"]
    assert new["2 layers"] == 0
    assert printed.count("shares the student of a variant above") == 7
    assert not list((tmp_path / "runs" / "experiments").glob("students/*"))


@pytest.mark.slow
def test_the_file_on_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(
        text.replace('split: "distill[:1000]"}', 'split: "distill[:1000]"}\n      measure: false')
    )
    assert cli.main(["experiment", "mine.yaml", "--preset", "tiny", "--scale", "0.02"]) == 0
    printed = capsys.readouterr().out
    assert "0.001" in printed
    assert "the score" in printed
    assert (tmp_path / "runs/experiments/mine/report.html").is_file()
    assert (tmp_path / "runs/experiments/index.html").is_file()
