"""What a recipe's settings start from: its presets, and the models and data that were given -> settings and the reason.

    base, why, notes = start(system1.PRESETS, asked=None, given={"data": "my_instructions.jsonl"})

The preset tiny holds a toy's learning rate, lengths and test set: unasked it is taken only where every model and data set
given is of the embedded family, or none is given. Anything else starts from the recipe's own defaults, as from Python.
A data set brings its own test: the rows held out of it, where no test is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_lab.config import Config, DataConfig
from distill_lab.errors import UserError

FIELDS = {"teacher": "model", "student": "model", "data": "path", "test": "path", "prompt_file": ""}
"""Settings that name a model or data, and the field of their group that holds the name."""


def is_tiny(name: str) -> bool:
    """Whether a model or a data set is of the embedded family."""
    return name.startswith("tiny:")


def given(yaml: Mapping[str, Any], flags: Sequence[str]) -> dict[str, str]:
    """What YAML settings and flags (spelled out, `--teacher.model M`) name: teacher, student, data, test -> name."""
    found: dict[str, str] = {}
    for role, field in FIELDS.items():
        value = yaml.get(role)
        value = value.get(field) if isinstance(value, Mapping) else value
        found[role] = value if isinstance(value, str) else ""
    spelled = {f"{role}.{field}" if field else role: role for role, field in FIELDS.items()}
    for flag, after in zip(flags, [*flags, ""][1:], strict=True):
        name, equals, value = flag.partition("=")
        role = spelled.get(name[2:].replace("-", "_")) if name.startswith("--") else None
        if role:
            found[role] = value if equals else after
    return {role: name for role, name in found.items() if name}


def start(
    presets: Mapping[str, Config], *, asked: str | None, given: Mapping[str, str]
) -> tuple[Config, str, list[str]]:
    """The settings to begin with, which those are and why, and what else is worth a note.

    asked: a preset by name. given: as the function `given` found it. Raises UserError for a preset that there is not.
    """
    name, why = _choose(presets, asked, given)
    base: Any = presets[name] if name else type(presets["tiny"])()
    data, notes = given.get("data"), []
    if data and data != base.data.path:
        test, own = base.test.path, not is_tiny(data)
        changes: dict[str, Any] = {}
        if own:
            changes["data"] = DataConfig(path=data)  # no slice of other data
        if test and "test" not in given:
            changes["test"] = DataConfig(path="")
            notes.append(f"scores are taken on rows held out of {data}, not on {test}; --test names other data")
        base = base.model_copy(update=changes)
    return base, f"preset {name} ({why})" if name else why, notes


def _choose(presets: Mapping[str, Config], asked: str | None, given: Mapping[str, str]) -> tuple[str | None, str]:
    if asked is not None:
        if asked not in presets:
            raise UserError(f"--preset {asked}: no such preset; there are {', '.join(presets)}")
        return asked, "as asked"
    foreign = [name for name in given.values() if not is_tiny(name)]
    if foreign:
        return None, f"this recipe's own defaults ({foreign[0]} is not of the tiny family; --preset starts elsewhere)"
    if given:
        return "tiny", "what was given is of the tiny family"
    from distill_lab.planning.machine import this_machine
    from distill_lab.planning.method import preset_for

    return preset_for(presets, this_machine())
