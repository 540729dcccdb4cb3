"""`distill data`: what it prints at 80 columns, the page, hostile text, and exit code 2 with a remedy."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from distill_lab.cli import main
from distill_lab.commands._data_text import marked_text
from distill_lab.data.profile import Piece
from distill_lab.files.jsonl import write_jsonl

HOSTILE = "\x1b]0;owned\x07\x1b[31m[/red] <script>alert(1)</script> \u202egnp.exe"
QUESTION = "Why do two high tides reach most coasts each day although the moon is overhead only once?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": f"{QUESTION} ({number}) {HOSTILE}",
            "completion": f"Two bulges. {HOSTILE}",
            "<b>note\x1b[2J": HOSTILE,
        }
        for number in range(3)
    ]
    write_jsonl(tmp_path / "data.jsonl", [*rows, rows[0]])
    write_jsonl(tmp_path / "test.jsonl", [{"question": QUESTION + " 0 " + HOSTILE, "answer": HOSTILE}])
    return tmp_path / "data.jsonl"


@pytest.mark.parametrize("model", [[], ["--student", "tiny:student", "--thinking", "False"]])
def test_text_and_page(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page, test = data.with_name("page.html"), data.with_name("test.jsonl")
    assert main(["data", str(data), "--test", str(test), "--html", str(page), *model]) == 0
    printed = capsys.readouterr().out
    assert "prompt_completion" in printed
    assert "not used" in printed
    assert "[[Two bulges." in printed
    assert "repeated prompts: 1" in printed
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    # Paths are not wrapped, so that they can be copied.
    assert all(len(line) <= 80 for line in printed.splitlines() if str(data.parent) not in line)
    written = page.read_text(encoding="utf-8")
    assert "<script>" not in written
    assert "\x1b" not in written
    assert html.escape("<script>alert(1)</script>") in written
    assert "<mark>Two bulges." in written
    assert "default-src 'none'" in written
    assert main(["data", str(data), "--html", str(page)]) == 0  # its page is replaced


def test_wrong_use_exits_with_2_and_a_remedy(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = data.with_name("mine.html")
    own.write_text("<p>my page</p>")
    empty = data.with_name("empty.jsonl")
    empty.write_text("")
    for arguments, remedy in (
        ([], "distill data questions.jsonl"),
        (["missing.jsonl"], "check the path"),
        ([str(empty)], "no row"),
        ([str(data), "--split", "train[::2]"], "write it like"),
        ([str(data), "--html", str(own)], "choose another name"),
        ([str(data), "--html", str(data)], "must end in .html"),
        ([str(data), "--student", str(data.with_name("model"))], "model"),
        ([str(data), "--data", "other.jsonl"], "give one of them"),
        (["tiny:problems"], "train[:1000]"),
    ):
        assert main(["data", *arguments]) == 2, arguments
        assert remedy in capsys.readouterr().err, arguments
    assert own.read_text() == "<p>my page</p>"


def test_trained_text_is_green_or_in_brackets() -> None:
    pieces = [Piece("ask ", False), Piece("answer", True)]
    assert marked_text(pieces, color=False).plain == "ask [[answer]]"
    colored = marked_text(pieces, color=True)
    assert colored.plain == "ask answer"
    assert [(colored.plain[span.start : span.end], span.style) for span in colored.spans] == [("answer", "green")]
