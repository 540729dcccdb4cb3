"""What the notebook's cells call: settings and flags, what stays of a command's output, time and memory, results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from distill_lab.commands import _cell_output, _notebook
from distill_lab.commands._cell_output import CellLine, CellReporter, keep_line
from distill_lab.commands._usage import Usage
from distill_lab.errors import UserError
from distill_lab.report.inline import figures_html, page_html, result_lines
from tests.made_runs import made_run
from tests.typed import settings


class Screen:
    """Stands for a notebook's `display`: what was shown, each text in the place of the one before."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.number = 0

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Screen:
        self.number += 1
        self.update(data, raw=raw)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.texts.append(data["text/plain"])


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen()
    monkeypatch.setattr(_cell_output, "notebook_display", lambda: found)
    monkeypatch.setattr(_cell_output, "EVERY_S", 0.0)
    return found


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("> teacher answers", False),
        ("= teacher answers: already done, nothing changed", False),
        ("  12/300, 40 tokens/s, about 3 min left", False),
        ("  loading tiny:teacher, 9 s so far", False),
        ("  300 in, 300 kept", False),
        ("", False),
        ("  300 in, 298 kept, 2 dropped: cut", True),
        ("  the student is in ./distilled-tiny", True),
        ("Invalid student model: nobody/nothing", True),
    ],
)
def test_progress_titles_and_whole_counts_do_not_stay(line: str, kept: bool) -> None:
    assert keep_line(line) is kept


def test_a_recipe_takes_one_line_in_a_notebook(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    with CellLine() as line:
        reporter = CellReporter(line)
        for stage in ("answers", "student"):
            reporter.stage(stage)
            for done in range(1, 40):
                reporter.progress(done, 40, detail="12 tokens/s")
            reporter.note("40 in, 40 kept")
        reporter.log({"step": 3, "num_steps": 9, "loss": 0.5})
        reporter.log({"note": "memory was short: \x1b[31mhalved"})
    assert screen.number == 1
    assert "answers: 39/40, 12 tokens/s, 0 s so far" in screen.texts
    assert screen.texts[-2:] == ["student: 3/9, loss 0.500, 0 s so far", "done"]
    assert capsys.readouterr().out == "memory was short: [31mhalved\n"


def test_a_process_takes_one_line_in_a_notebook_and_all_lines_elsewhere(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = ["> answers", "  1/9, 9 s so far", "  the answers are in a.json"]
    with _notebook.cell_lines() as read:
        for line in heard:
            read(line)
    assert capsys.readouterr().out == "  the answers are in a.json\n"
    assert screen.texts == ["> answers", "1/9, 9 s so far", "done"]
    monkeypatch.setattr(_cell_output, "notebook_display", lambda: None)
    with _notebook.cell_lines() as read:
        for line in heard:
            read(line)
    assert capsys.readouterr().out.splitlines() == heard


def test_a_block_that_fails_says_where(screen: Screen) -> None:
    line = CellLine()
    line.show("answers: 3/9")
    line.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert screen.texts[-1] == "stopped: answers: 3/9"


SETTINGS: dict[str, Any] = {
    "data.split": "distill[:9]", "test.path": "", "num_test": 3, "train.num_epochs": 2, "measure": False, "relabel": True,
}  # fmt: skip


def test_settings_of_a_cell_are_those_of_the_command_it_prints() -> None:
    _, config = _notebook.recipe_config("logits", "tiny", SETTINGS)
    words = ["distill", "logits", "--preset", "tiny", *_notebook.flags(SETTINGS)]
    assert settings(shlex.join(words)) == config
    assert (config.data.split, config.num_test, config.measure, config.test.path) == ("distill[:9]", 3, False, "")


@pytest.mark.parametrize(
    ("name", "preset", "changes", "said"),
    [
        ("logits", "llama", {}, "logits has no preset llama; choose from tiny, qwen2.5"),
        ("logits", "tiny", {"train.epochs": 2}, "logits: train.epochs: "),
        ("cot", "tiny", {"train.num_epochs": -1}, "cot: train.num_epochs: "),
    ],
)
def test_a_wrong_setting_is_a_sentence(
    name: str, preset: str, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError):
        _notebook.recipe_config(name, preset, changes)
    assert _notebook.recipe(name, preset, changes) is None
    assert capsys.readouterr().out.startswith(said)


def test_real_models_are_only_estimated_unless_the_user_says_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_notebook, "_estimate", lambda name, config, place: asked.append(name) or False)
    monkeypatch.setattr(_notebook, "run_command", lambda words: pytest.fail("it does not fit"))
    for run in ("auto", "estimate only", "yes"):
        assert _notebook.recipe("system1", "qwen2.5", run=run) is None
    assert asked == ["system1"] * 3
    printed = capsys.readouterr().out
    assert printed.count("In a terminal: distill system1 --preset qwen2.5 --run runs/system1\n") == 3
    assert printed.count("This was the estimate alone") == 2


def test_time_and_memory_are_measured() -> None:
    with Usage() as usage:
        block = bytearray(8 << 20)
        block[::4096] = b"1" * len(block[::4096])
    assert usage.seconds > 0
    assert 50e6 < usage.host_bytes < 100e9
    assert re.match(r"\d+ \w+, at most \d+\.\d GB of memory", str(usage))


def test_a_result_has_its_lines_figures_and_page(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    lines = list(result_lines(run))
    assert max(map(len, lines[1:8])) <= 80
    assert any("score [95%]" in line for line in lines)
    figures = figures_html(run)
    assert figures.count("<svg") >= 2
    assert figures.count("<style>") == 1
    (run / "report.html").write_text("<p class=\"x\">'quoted' & <script>alert(1)</script></p>", encoding="utf-8")
    page = page_html(run)
    assert page.count("<") == 2  # the frame alone: everything of the page is in its attribute, escaped
    assert "&lt;script&gt;" in page
    (run / "report.html").unlink()
    assert "The page is in" in page_html(run)
