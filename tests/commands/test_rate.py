"""`distill rate`: blind, resumable, in summary and page, and refused without a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.commands.rate import rate
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.ratings import FILE, find_answers, latest, make_cards
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import read_summary, write_summary
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.graders import metric_of
from distill_lab.report.page import write_report
from distill_lab.run import Run
from tests.helpers import ROOT, eval_row


def run_dir(folder: Path, *, grader: str = "exact") -> Path:
    """A finished run with 4 test prompts; the student answers one of them as its base does."""
    for model in ("teacher", "base", "student"):
        rows = []
        for n in range(4):
            said = "base" if n == 0 and model == "student" else model
            grade = {"score": 0.75, "answer": "4", "status": "ok"}
            rows.append(eval_row(f"p{n}", output=f"{said} {n}", grade=grade))
        write_jsonl(folder / "eval" / f"{model}.jsonl", rows)
    with Run.open(folder, recipe="system1", config={}):
        pass
    scores = {model: read_score(path) for model, path in find_answers(folder).items()}
    write_summary(folder / "summary.json", summarize("system1", 4, scores=scores, metric=metric_of(grader)))
    write_report(folder)
    return folder


def scripted(*replies: str) -> Callable[[str], str]:
    waiting: Iterator[str] = iter(replies)

    def ask(_: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return ask


def test_a_session_is_blind_kept_and_goes_on(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run")
    cards, shown = make_cards(find_answers(folder), seed=0, number=30), list[str]()
    assert len(cards) == 4 * 3 - 1
    given = rate(cards, folder / FILE, rater="me", ask=scripted("9", "5", "g", "s", "3", "q"), show=shown.append)
    assert given == 2
    assert list(latest(folder / FILE).values()) == [5, 3]
    known = latest(folder / FILE)
    assert known["me", cards[0].digest] == 5
    assert ("me", cards[1].digest) not in known
    assert known["me", cards[2].digest] == 3
    screens = "\n".join(shown)
    assert "  4" in screens, "the gold answer, when asked"
    assert "student:" not in screens
    assert "teacher:" not in screens
    shown.clear()
    assert rate(cards, folder / FILE, rater="me", ask=scripted(*"1" * 20), show=shown.append) == len(cards) - 2
    assert "2 of 11 answers are rated" in shown[0]
    assert rate(cards, folder / FILE, rater="ana", ask=scripted("2"), show=shown.append) == 1
    assert {row["rater"] for row in read_jsonl(folder / FILE)} == {"me", "ana"}


def test_back_replaces_the_rating_before(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run")
    cards = make_cards(find_answers(folder), seed=0, number=1)
    rate(cards, folder / FILE, rater="me", ask=scripted("1", "b", "4", "q"), show=lambda _: None)
    assert latest(folder / FILE) == {("me", cards[0].digest): 4}


def test_without_a_terminal_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir(tmp_path / "run")
    monkeypatch.setattr(sys, "stdin", io.StringIO("5\n5\n"))
    assert cli.main(["rate", str(folder)]) == 2
    assert "needs a terminal" in capsys.readouterr().err
    assert not (folder / FILE).exists()
    assert cli.main(["rate", str(tmp_path)]) == 2
    assert "neither a run directory nor" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.parametrize("grader", ["exact", "judge:tiny:teacher"])
def test_on_a_terminal_the_ratings_reach_summary_and_page(tmp_path: Path, grader: str) -> None:
    import pty

    folder = run_dir(tmp_path / "run", grader=grader)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "distill_lab.cli", "rate", str(folder), "--number", "2"],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(slave)
    os.write(master, b"5\n4\n3\n2\nq\n")
    output = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(master)
    assert process.wait() == 0, output.decode(errors="replace")
    found = read_summary(folder / "summary.json").ratings
    assert found is not None
    assert found.ratings == 4
    assert "of 5 [" in output.decode(errors="replace")
    page = (folder / "report.html").read_text()
    assert "Rated by people" in page
    assert ("No judge graded" in page) == (grader == "exact")
    assert (found.agreement is None) == (grader == "exact")
    assert json.loads((folder / "summary.json").read_text())["ratings"]["raters"] == 1
