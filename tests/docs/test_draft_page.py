"""docs/draft.md: its commands parse, its messages are the package's."""

from __future__ import annotations

import re

from scripts.architecture import PACKAGE, ROOT
from tests.typed import settings

TEXT = (ROOT / "docs" / "draft.md").read_text(encoding="utf-8")


def test_commands_parse() -> None:
    commands = re.findall(r"^    \.venv/bin/(distill .*)$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert settings(command) is not None
    for flag in ("--objective acceptance --cache-mode off", "--num-timed 4"):
        assert flag.split()[0] in TEXT
        assert settings(f"distill draft --preset tiny {flag}") is not None


def test_messages_are_the_packages() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    words = re.sub(r'"\s*f?"', "", source)
    messages = re.findall(r"^\| `([^`]*)` \|", TEXT, re.MULTILINE)
    assert len(messages) == 3
    for message in messages:
        pattern = r"\{[^}]+\}".join(re.escape(part).replace("\\ \\{", " {") for part in message.split("openai:..."))
        assert re.search(pattern.removesuffix(re.escape(" ...")), words) or "wall time not measured" in words, message
