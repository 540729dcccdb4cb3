"""docs/trackers.md: its commands parse, and it names what trackers get and the settings that hold."""

from __future__ import annotations

import re

from distill_lab.report.trackers import WRITERS
from distill_lab.settings.secrets import ENVIRONMENT
from distill_lab.train.trackers import FILE, PROJECT
from distill_lab.train.trainer import TOKENS_PER_ANSWER, VALIDATION_LOSS
from scripts.architecture import PACKAGE, ROOT
from tests.typed import settings

TEXT = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")


def test_commands_parse() -> None:
    commands = re.findall(r"^    (?:WANDB_MODE=offline )?(distill .*)$", TEXT, re.MULTILINE)
    assert len(commands) == 4
    trackers = {name for command in commands for name in settings(command).train.report_to}
    assert trackers == set(WRITERS)


def test_what_is_named_is_there() -> None:
    for name in (FILE, PROJECT, f"train/{VALIDATION_LOSS}", f"train/{TOKENS_PER_ANSWER}", *WRITERS):
        assert name in TEXT
    source = (PACKAGE / "train" / "trackers.py").read_text(encoding="utf-8")
    for variable in re.findall(r'environ\.get\("(\w+)"\)', source):
        assert f"`{variable}" in TEXT
    assert {"OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"} <= set(ENVIRONMENT)
