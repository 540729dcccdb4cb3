"""`distill synthesize`: the first request before anything is paid, the histogram in 80 columns, exit 2 with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.cli import main
from distill_lab.commands.synthesize import histogram_lines
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from tests.hostile_server import HostileServer
from tests.writing_server import write

pytestmark = pytest.mark.usefixtures("openai_environment")

HOSTILE = "\x1b]0;owned\x07\x1b[31m[/red] <script>alert(1)</script>"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} plus 1? {HOSTILE}", "output": f"It is {n + 1}."} for n in range(3)]
    write_jsonl(Path("data.jsonl"), [*rows, {"question": "And 9 plus 1?"}])
    return Path("data.jsonl")


def test_a_dry_run_shows_the_first_request_and_asks_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = ["--engine.base-url", "http://127.0.0.1:1/v1"]
    arguments = ["synthesize", "rate", "--model", "openai:m", "--data", str(data), "--out", "out.jsonl", *address]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "What is 0 plus 1?" in printed
    assert "Rating: N" in printed
    assert "4 in, 3 kept, 1 dropped: no completion; nothing was asked" in printed
    assert "\x1b" not in printed
    assert [path.name for path in Path.cwd().iterdir()] == ["data.jsonl"]


def test_ratings_are_shown(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with HostileServer(rule=write) as server:
        arguments = ["rate", "--teacher-model", "openai:m", "--input-file", str(data), "--output-file", "out.jsonl"]
        assert main(["synthesize", *arguments, "--engine.base-url", server.url]) == 0
    printed = capsys.readouterr().out
    assert "correctness      3 of 3 yes" in printed
    assert "4 in, 3 kept, 1 dropped: no completion; in out.jsonl" in printed
    assert all(row["meta"]["helpfulness"] == 1 for row in read_jsonl(Path("out.jsonl")))
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_the_histogram_fits() -> None:
    numbers = {value: 10**6 - value for value in range(10)}
    lines = histogram_lines({"cognitive_difficulty": numbers, "logical_correctness": {0: 1, 1: 2}})
    assert len(lines) == 12
    assert lines[0] == "cognitive_difficulty  mean 4.5 of 9"
    assert max(map(len, lines)) <= 80
    assert histogram_lines({}) == []
    assert histogram_lines({"depth": dict.fromkeys(range(10), 0)})[0] == "depth  mean 0.0 of 9"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["improve"], "choose from balance"),
        (["refine", "--num-shown", "2"], "--num-shown is for expand; remove it"),
        (["refine", "--template", "absent.txt"], "give a text file"),
        (["refine", "--engine", "none"], "no engine"),
        (["refine", "--data.split", "train[:0]"], "No data for distill synthesize refine"),
        (["refine", "--out", "out.csv"], "must end in .jsonl"),
    ],
)
def test_wrong_use_exits_with_2_and_a_remedy(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], remedy: str
) -> None:
    model = "tiny:student" if "--engine" in arguments else "openai:m"
    given = ["--model", model, "--data", str(data), "--out", "out.jsonl", *arguments[1:]]
    assert main(["synthesize", arguments[0], "--engine.base-url", "http://127.0.0.1:1/v1", *given]) == 2
    assert remedy in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
