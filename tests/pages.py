"""The documentation as data: its pages, the commands in their code blocks and the code in their text.

for command in commands(PAGES["docs/system1.md"]): settings(command)         tests/typed.py parses it
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache

from distill_lab import cli
from distill_lab.commands._settings_file import settings_of
from scripts.architecture import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
RUN_ELSEWHERE = ("docs/requirements.md", "docs/extending.md")
"""Pages whose code blocks tests/test_requirements.py and tests/docs/test_extending.py run from top to bottom."""
FENCED = re.compile(r"(?ms)^```(\w*)[^\n]*\n(.*?)^```$")
OF_RECIPES = {"--preset", "--config", "--run", "--dtype"}
OF_ALL = {"--help", "--help-all", "--version"}
PLACEHOLDERS = {"COMMAND", "RECIPE"}


def code_lines(text: str) -> list[str]:
    """The lines of shell blocks: fenced as sh, or indented by four spaces. Continued lines are one."""
    fenced = "".join(body for language, body in FENCED.findall(text) if language == "sh")
    indented = re.findall(r"(?m)^ {4}(\S.*)$", FENCED.sub("", text))
    return [*fenced.replace("\\\n", " ").splitlines(), *indented]


def commands(text: str, program: str = "distill") -> list[str]:
    """The calls of a program in the code blocks, as `PROGRAM WORDS`: without folder, variables, pipes and explanations."""
    found = []
    for line in code_lines(text):
        for piece in re.split(r" {3,}| \| | && | > ", line):
            call = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\.venv[\w-]*/bin/)?", "", piece.strip())
            if call.startswith(f"{program} ") and not PLACEHOLDERS & set(call.split()):
                found.append(call)
    return found


def spans(text: str) -> list[str]:
    """The code in the text, outside of code blocks."""
    plain = re.sub(r"(?m)^ {4}\S.*$", "", FENCED.sub("", text))
    return [" ".join(code.split()) for code in re.findall(r"(?s)`([^`]+)`", plain)]


@lru_cache
def flags_of(name: str) -> frozenset[str]:
    """Every flag of a recipe or command, short forms and other spellings included."""
    package = cli._package_of(name)
    module = name.replace("-", "_")
    found = set(OF_ALL)
    for each in settings_of(cli._folder(package) / f"{module}.py") or []:
        stem, dot, last = each.flag.removeprefix("--").rpartition(".")
        found |= {each.flag, f"--{stem.partition('.')[0]}"} if dot else {each.flag}
        if not each.kind:
            found.add(f"--{stem}{dot}no-{last}")
        if each.flag == "--engine.price.max-cost":
            found.add("--max-cost")
    if package == "recipes":
        return frozenset(found | OF_RECIPES)
    aliases = getattr(importlib.import_module(f"distill_lab.commands.{module}"), "ALIASES", {})
    return frozenset(found | set(aliases))


def all_flags() -> frozenset[str]:
    """The flags of all recipes and commands."""
    return frozenset().union(
        *(flags_of(cli._spelled(name)) for package in cli.PACKAGES for name in cli._names(package))
    )
