"""Choose the initial settings of a recipe: its presets, and the user's models and data -> settings and the reason.

    base, why, notes = start(system1.PRESETS, system1.Config, preset=None, given={"data": "my_instructions.jsonl"})

The preset tiny has a toy's learning rate, lengths and test set: by default it is used only if all given models and data sets
are tiny, or none is given. Otherwise a run starts from the recipe's defaults, as in Python. With other data and no test
set, rows of the data are held out for the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from distill_lab.config import DataConfig, RecipeConfig
from distill_lab.errors import UserError
from distill_lab.types import Fields, JsonObject

FIELDS = {"teacher": "model", "student": "model", "data": "path", "test": "path", "prompt_file": ""}
"""Settings that name a model or data, and the field of the group that contains the name."""


def is_tiny(name: str) -> bool:
    """Whether a model or data set belongs to the embedded tiny family."""
    return name.startswith("tiny:")


def given(yaml: Fields, flags: Sequence[str]) -> dict[str, str]:
    """Models and data in YAML settings and expanded flags (`--teacher.model M`): teacher, student, data, test -> name."""
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
    presets: Mapping[str, RecipeConfig],
    defaults: Callable[[], RecipeConfig],
    *,
    preset: str | None,
    given: Mapping[str, str],
) -> tuple[RecipeConfig, str, list[str]]:
    """The initial settings, their name with the reason, and notes for the user.

    presets: those of the recipe, may be empty. defaults: the recipe's settings. preset: the requested one. given: the
    result of the function `given`. Raises UserError for an unknown preset.
    """
    name, why = _choose(presets, preset, given)
    base = presets[name] if name else defaults()
    data, notes = given.get("data"), []
    if data and data != base.data.path:
        test, own = base.test.path, not is_tiny(data)
        changes: JsonObject = {}
        if own:
            changes["data"] = DataConfig(path=data)  # no slice of other data
        if test and "test" not in given:
            changes["test"] = DataConfig(path="")
            notes.append(f"the test set is held-out rows of {data}, not {test}; --test sets other data")
        base = base.model_copy(update=changes)
    return base, f"preset {name} ({why})" if name else why, notes


def _choose(
    presets: Mapping[str, RecipeConfig], preset: str | None, given: Mapping[str, str]
) -> tuple[str | None, str]:
    if preset is not None:
        if preset not in presets:
            raise UserError(f"--preset {preset}: no such preset; choose from {', '.join(presets) or 'none at all'}")
        return preset, "as requested"
    foreign = [name for name in given.values() if not is_tiny(name)]
    if foreign:
        return None, f"this recipe's defaults ({foreign[0]} is not tiny; --preset chooses other settings)"
    if given and "tiny" in presets:
        return "tiny", "all given models and data are tiny"
    if given or not presets:
        return None, "this recipe's defaults"
    if len(presets) == 1 or "tiny" not in presets:
        return next(iter(presets)), "the recipe's first preset"
    from distill_lab.planning.machine import this_machine
    from distill_lab.planning.method import preset_for

    return preset_for(presets, this_machine())
