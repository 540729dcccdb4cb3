"""The commands of the pages that need neither hub nor GPU nor server are run, as they are written, on one small run.

tests/test_requirements.py and tests/docs/test_extending.py run their pages whole. What takes minutes with the tiny family
(a recipe's whole preset, an experiment) is run on less data by the test that ELSEWHERE or tests/recipes/ has for it.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.files.jsonl import write_jsonl
from scripts.architecture import ROOT
from tests.pages import FENCED, PAGES, RUN_ELSEWHERE, commands

pytestmark = pytest.mark.slow

NOT_HERE = re.compile(
    r"Qwen/|openai:|qwen2\.5|qwen3|--engine (vllm|ray)|--to (mlx|hub)|models/|results/|/shared/|distill serve"
)
"""What needs the hub, a server, a GPU, a Mac, or files that the reader has."""
ELSEWHERE = {
    "distill demo": "tests/commands/test_demo.py",
    "distill experiment": "tests/commands/test_experiment.py",
    "distill rate": "tests/commands/test_rate.py",
    "distill run": "tests/easydistill/test_easydistill.py",
    "distill export": "tests/export/test_export.py",
}
"""Commands whose own tests run them from end to end, and the file."""
RUN_BY_ITSELF = ("docs/synthesize.md",)
"""Pages whose commands go one after the other, run by tests/docs/test_synthesize_page.py."""
NAMED = re.compile(r"distill \w[\w-]*")


@pytest.fixture
def handlers() -> Iterator[None]:
    """`cli.main` takes SIGTERM over; given back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def offline() -> list[str]:
    """The commands to run, in the order of the pages: those of whole presets are left out."""
    found: dict[str, None] = {}
    for page, text in PAGES.items():
        if page in (*RUN_ELSEWHERE, *RUN_BY_ITSELF):
            continue
        for command in commands(text):
            named = NAMED.match(command)
            if named and len(command.split()) > 2 and named[0] not in ELSEWHERE and "--preset" not in command:
                found |= {} if NOT_HERE.search(command) else {command: None}
            elif command in ("distill runs", "distill doctor", "distill cache"):
                found[command] = None
    return list(found)


@pytest.mark.usefixtures("handlers")
def test_what_runs_offline_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    [example] = [body for language, body in FENCED.findall(PAGES["docs/using.md"]) if language == "python"]
    exec(compile(example, "docs/using.md", "exec"), {})
    for name in ("first", "system1", "a", "b", "c"):
        shutil.copytree("runs/mine", f"runs/{name}")
    rows = [{"question": f"Say pear {number} times.", "answer": "pear"} for number in range(1, 4)]
    for name in ("questions", "train", "test"):
        write_jsonl(Path(f"{name}.jsonl"), rows)
    Path("mine.csv").write_text("title,body,result.text,picture\nSay,pear,pear,x.png\n", encoding="utf-8")
    for command in offline():
        if "--suite" in command and find_spec("lm_eval") is None:
            continue  # an optional package
        monkeypatch.setattr("sys.stdin", io.StringIO("Say pear.\n"))
        assert cli.main(shlex.split(command)[1:]) == 0, f"{command}\n{capsys.readouterr()}"
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert made >= {"comparison.html", "data.html", "report.md", "report.tex", "report.csv", "answers.jsonl"}


def test_what_is_run_elsewhere_is_run() -> None:
    assert len(offline()) > 12
    for command, file in ELSEWHERE.items():
        assert command.split()[1] in (ROOT / file).read_text(encoding="utf-8"), file
    for recipe in map(cli._spelled, cli._names("recipes")):
        assert f"distill {recipe} --preset tiny" in commands(PAGES[f"docs/{recipe}.md"]), recipe
        module = recipe.replace("-", "_")
        files = (ROOT / "tests" / "recipes").glob(f"test_{module}*.py")
        tests = "".join(path.read_text(encoding="utf-8") for path in files)
        assert f'{module}.PRESETS["tiny"]' in tests, recipe
        assert "def test_the_whole_line" in tests, recipe
