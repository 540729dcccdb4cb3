"""docs/requirements.md: every command in it is run, section by section, and prints what stands there; a row names commands,
or is declared with a reason.

The blocks for a GPU are parsed, presets and flags, as the command line would.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distill_lab import cli
from tests.helpers import ROOT
from tests.typed import settings

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## (?=\d)", TEXT, flags=re.MULTILINE)[1:]}
FENCED = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
DECLARED = "declared"
"""In place of commands: the lab does not do what is asked, and the row says why."""
FILES = ("json", "jsonl")
"""Languages of the blocks that are files."""


@dataclass(frozen=True)
class Block:
    """A fenced block: ```language argument."""

    language: str
    argument: str
    body: str

    def commands(self) -> list[str]:
        """The commands of a shell block, each on one line."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def numbers(self) -> list[str]:
        """The numbers it gives its commands: `# 1a`."""
        return re.findall(r"^# (\d[a-z])$", self.body, re.MULTILINE)


def blocks(section: str) -> list[Block]:
    return [Block(*found.groups()) for found in FENCED.finditer(section)]


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines][1:]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_row_names_commands_that_are_run_and_every_command_is_named(title: str) -> None:
    found = blocks(SECTIONS[title])
    assert {block.language for block in found} <= {"sh", "python", "text", *FILES}
    run = [number for block in found if block.argument != "gpu" for number in block.numbers()]
    parsed = [number for block in found if block.argument == "gpu" for number in block.numbers()]
    assert len(set(run + parsed)) == len(run + parsed)
    for asked, how, commands in rows(SECTIONS[title]):
        if commands == DECLARED:
            assert len(how) >= 40, f"{asked}: a reason"
            continue
        assert numbers_in(commands) & set(run), f"{commands}: none of them is run"
    prose = re.sub(FENCED, "", SECTIONS[title])
    assert numbers_in(prose) == set(run + parsed)


def numbers_in(text: str) -> set[str]:
    """The numbers of commands in a text, 1a-1c written out."""
    return set(re.findall(r"(?<![\w.])\d[a-z]\b(?!-\d)", re.sub(r"\b(\d)([a-z])-\d([a-z])\b", spelled_out, text)))


def spelled_out(found: re.Match[str]) -> str:
    section, first, last = found.groups()
    return " ".join(f"{section}{chr(letter)}" for letter in range(ord(first), ord(last) + 1))


@pytest.fixture
def handlers() -> Iterator[None]:
    """`cli.main` takes SIGTERM over; given back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_run_and_print_what_stands_there(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "notebook.ipynb").symlink_to(ROOT / "notebook.ipynb")
    names: dict[str, object] = {}
    printed = ""
    for block in blocks(SECTIONS[title]):
        if block.language == "text":
            for line in block.body.splitlines():
                assert " ".join(line.split()) in printed, f"{line}\nis not in\n{printed}"
            continue
        if block.language in FILES:
            Path(block.argument).parent.mkdir(exist_ok=True)
            Path(block.argument).write_text(block.body, encoding="utf-8")
            continue
        if block.argument == "gpu":
            assert all(settings(line) for line in block.commands())
            continue
        if block.language == "python":
            exec(compile(block.body, f"{title}: python", "exec"), names)
        else:
            expected = int(block.argument.removeprefix("exit=") or 0)
            for line in block.commands():
                assert cli.main(shlex.split(line)[1:]) == expected, f"{line}\n{capsys.readouterr()}"
        captured = capsys.readouterr()
        # Columns are as wide as what stands in them.
        printed = re.sub(" +", " ", captured.out + captured.err)
    assert not list(tmp_path.glob("distilled-none*"))
