"""`distill runs`, `distill compare-runs` and `distill report`: readable at 80 columns, and as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.files.locks import take_lock
from tests.made_runs import made_run, manifest

LONG = "a-run-with-a-name-that-says-what-was-changed/learning-rate-4e-3-and-five-epochs"


def distill(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(each) for each in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs" / "first", num=40)
    made_run(tmp_path / "runs" / LONG, num=40, seed=3)
    made_run(tmp_path / "runs" / "likeness", num=10, grader="overlap")
    return tmp_path / "runs"


def test_the_table_fits_80_columns_and_breaks_no_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = distill(capsys, "runs")
    assert code == 0
    lines = printed.splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines), max(lines, key=len)
    assert f"runs/{LONG}" in lines
    place = lines.index("runs/first")
    summary = json.loads((folder / "first" / "summary.json").read_text())
    score, base, retention = (summary["models"][name]["score"] for name in ("student", "base")), 0, summary["retention"]
    student, base = score
    figures = lines[place + 1].split()
    assert figures[0] == f"{100 * student:.1f}%"
    assert figures[4] == f"{100 * base:.1f}%"
    assert figures[5:7] == [f"{100 * summary['gain']:+.1f}", "pts"]
    assert figures[7] == f"{100 * retention:.0f}%"
    assert figures[9:] == ["2026-11-30", "done"]
    said = " ".join(" ".join(lines[place + 2 : place + 4]).split())
    assert said == (
        "system1: tiny:teacher -> tiny:student, tiny:instructions distill[:800], 790 rows, exact match on 40 prompts"
    )
    kept = lines[lines.index("runs/likeness") + 1].split()[7]
    assert kept == "-", "similarity to a reference is not retained"


def test_csv_has_every_digit_and_markdown_a_row_for_each_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = distill(capsys, "runs", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert code == 0
    assert [row["run"] for row in rows] == [f"runs/{name}" for name in (LONG, "first", "likeness")]
    summary = json.loads((folder / "first" / "summary.json").read_text())
    assert float(rows[1]["score"]) == summary["models"]["student"]["score"]
    assert float(rows[1]["gain_points"]) == 100 * summary["gain"]
    assert (rows[1]["rows"], rows[1]["teacher"], rows[1]["state"]) == ("790", "tiny:teacher", "done")
    code, printed, _ = distill(capsys, "runs", "--format", "md")
    lines = printed.splitlines()
    assert len(lines) == 5
    assert {line.count(" | ") for line in lines} == {13}


def test_unfinished_runs_say_where_they_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = manifest()
    stopped["stages"]["student"]["status"] = "running"
    for name in ("stopped", "busy"):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(json.dumps(stopped))
        (folder / name / ".lock").touch()
    held = take_lock(folder / "busy" / ".lock", busy="")
    try:
        _, printed, _ = distill(capsys, "runs")
    finally:
        held.close()
    lines = printed.splitlines()
    assert lines[lines.index("runs/stopped") + 1].split()[-1] == "stopped"
    assert "stopped in student" in " ".join(printed.split())
    assert lines[lines.index("runs/busy") + 1].split()[-1] == "running"


def test_an_old_summary_is_listed_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "first" / "summary.json").write_text('{"version": 1}')
    _, printed, _ = distill(capsys, "runs")
    assert "runs/first/summary.json is of an earlier version" in " ".join(printed.split())


def test_compare_runs_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare-runs", "runs/first", f"runs/{LONG}", "runs/likeness"]
    code, printed, _ = distill(capsys, *command)
    assert code == 0
    assert all(len(line) <= 80 or " " not in line.strip() for line in printed.splitlines())
    assert "on 40 common prompts" in " ".join(printed.split())
    assert "runs/likeness cannot be compared: its scores are ROUGE-L overlap" in " ".join(printed.split())
    for name in ("c.html", "c.csv", "c.md"):
        for _ in range(2):  # its own file is written again
            assert distill(capsys, *command, "--out", name)[0] == 0
    assert len(list(csv.DictReader(io.StringIO(Path("c.csv").read_text())))) == 3
    assert Path("c.md").read_text().count("\n") == 4
    assert "Content-Security-Policy" in Path("c.html").read_text()


@pytest.mark.parametrize("name", ["mine.html", "mine.csv", "mine.md", "folder.html", "no/such.txt", "plain"])
def test_compare_runs_writes_over_nothing_else(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mine in ("mine.html", "mine.csv", "mine.md"):
        Path(mine).write_text("mine")
    Path("folder.html").mkdir()
    code, _, error = distill(capsys, "compare-runs", "runs/first", f"runs/{LONG}", "--out", name)
    assert code == 2
    assert name in error
    assert all(Path(mine).read_text() == "mine" for mine in ("mine.html", "mine.csv", "mine.md"))


@pytest.mark.parametrize("name", ["html", "md", "tex", "csv"])
def test_report_writes_each_form(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["runs/first"], ["--run", "runs/first"]):
        code, printed, _ = distill(capsys, "report", *arguments, "--format", name)
        assert (code, printed.strip()) == (0, f"runs/first/report.{name}")
    assert (folder / "first" / f"report.{name}").stat().st_size > 500


def test_report_needs_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["runs/first", "--run", "runs/likeness"]):
        code, _, error = distill(capsys, "report", *arguments)
        assert (code, "run" in error) == (2, True)
