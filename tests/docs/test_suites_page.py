"""docs/suites.md: its commands parse, its settings exist, its messages are the package's, and its own task runs."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.evaluation.evaluate import read_score
from distill_lab.settings.suite import SuiteConfig
from scripts.architecture import PACKAGE, ROOT
from tests.typed import settings

TEXT = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
[OWN] = re.findall(r"^```sh\n(distill .*)\n```$", TEXT, re.MULTILINE)


def test_commands_parse_and_settings_exist() -> None:
    commands = re.findall(r"^    (distill .*)$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in (*commands, OWN):
        assert settings(command).suite.name
    named = set(re.findall(r"--suite\.([\w-]+)", TEXT))
    assert {name.replace("_", "-") for name in SuiteConfig.model_fields} - {"name"} == named
    for flag in ("--max-samples 3", "--against x.jsonl", "--base tiny:student"):
        assert flag.split()[0] in TEXT
        assert settings(f"distill eval --suite gsm8k --model tiny:teacher {flag}") is not None


def test_messages_are_the_packages() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    words = re.sub(r'"\s*f?"', "", source)
    messages = re.findall(
        r"^\| `([^`]*)` \| (?!in the|examples|only|what)", TEXT.partition("## What goes wrong")[2], re.MULTILINE
    )
    assert len(messages) == 6
    for message in messages:
        assert message in words, message


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_task_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert cli.main(OWN.split()[1:]) == 0
    assert read_score(tmp_path / "colors.jsonl").n == 3
