"""What people are told to type, read as the command line reads it: `distill ...` -> settings, nothing run."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

from distill_lab import cli
from distill_lab.commands._spelling import other_spellings, spell_out, take_options
from distill_lab.planning.presets import given, start


def settings(line: str) -> Any:
    """The settings that a typed command makes. tyro exits, and a UserError is raised, where a word of it is unknown."""
    program, name, *arguments = shlex.split(line)
    assert program == "distill", line
    package = cli._package_of(name)
    module = importlib.import_module(f"distill_lab.{package}.{name.replace('-', '_')}")
    if package == "recipes":
        options, arguments = take_options(arguments, ("preset", "config", "run"))
        asked = options.get("preset", "tiny" if not given({}, spell_out(module.Config, arguments)) else None)
        base, _, _ = start(
            module.PRESETS, module.Config, preset=asked, given=given({}, spell_out(module.Config, arguments))
        )
        return cli._flags(module.Config, base, arguments, prog=line, description="")
    if getattr(module, "TAKES_RECIPE", False) and arguments and not arguments[0].startswith("-"):
        return settings(shlex.join([program, *arguments]))
    arguments = other_spellings(getattr(module, "ALIASES", {}), arguments)
    return cli._flags(module.Config, None, arguments, prog=line, description="")
