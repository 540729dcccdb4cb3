"""What a user may type for a flag: other spellings, short forms, and mistakes -> the flags that tyro reads.

spell_out(system1.Config, ["--teacher", "tiny:teacher"])     -> ["--teacher.model", "tiny:teacher"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


def take_options(arguments: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Values of `--name value` and `--name=value` for the given names, and the remaining arguments."""
    from distill_lab.errors import UserError

    found, rest, position = {}, [], 0
    while position < len(arguments):
        flag, has_value, value = arguments[position].partition("=")
        position += 1
        if flag.removeprefix("--") not in names or not flag.startswith("--"):
            rest.append(arguments[position - 1])
            continue
        if not has_value:
            if position >= len(arguments):
                raise UserError(f"{flag} needs a value")
            value = arguments[position]
            position += 1
        if not value.strip():
            raise UserError(f"{flag} is empty; give a value, or leave out {flag}")
        found[flag.removeprefix("--")] = value
    return found, rest


def spell_out(kind: type[BaseModel], arguments: list[str]) -> list[str]:
    """Expand `--teacher M` to `--teacher.model M` (a group's name sets its first field) and `--dtype D` to every dtype."""
    from pydantic import BaseModel

    long: dict[str, str] = {"--max-cost": "--engine.price.max-cost"} if "engine" in kind.model_fields else {}
    dtypes: list[str] = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            first = next(iter(field.annotation.model_fields))
            long[f"--{name.replace('_', '-')}"] = f"--{name.replace('_', '-')}.{first.replace('_', '-')}"
            if "dtype" in field.annotation.model_fields:
                dtypes.append(f"--{name.replace('_', '-')}.dtype")
    first_ones: list[str] = []
    if dtypes:
        found, arguments = take_options(arguments, ("dtype",))
        # In front, so that a group's own dtype flag overrides it.
        first_ones = [word for flag in dtypes for value in found.values() for word in (flag, value)]
    spelled = first_ones
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        _reject_one_dash(kind, flag)
        flag = long.get(flag, flag)
        if value.lower() in ("true", "false") and field_type(kind, flag[2:].replace("-", "_").split(".")) is bool:
            group, dot, name = flag[2:].rpartition(".")
            flag, equals, value = f"--{group}{dot}{'' if value.lower() == 'true' else 'no-'}{name}", "", ""
        spelled.append(flag + equals + value)
    return spelled


def field_type(kind: object, names: Sequence[str]) -> object:
    """The type of the setting `names` lead to, such as ["train", "lora"]; None if there is none."""
    for name in names:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field is not None else None
    return kind


def _reject_one_dash(kind: type[BaseModel], argument: str) -> None:
    """Raise UserError for `-preset tiny`, which tyro does not take for `--preset tiny`."""
    from distill_lab.errors import UserError

    name = argument.removeprefix("-")
    if not name.startswith("-") and name != argument and name.partition(".")[0].replace("-", "_") in (
        *kind.model_fields, "preset", "config", "run",
    ):  # fmt: skip
        raise UserError(f"{argument}: write it with two dashes, --{name}")


def reject_empty_paths(kind: type[BaseModel], arguments: list[str]) -> None:
    """Raise UserError for `--out ""`, which would mean the folder the user is in."""
    from distill_lab.errors import UserError

    paths = {
        f"--{name.replace('_', '-')}" for name, field in kind.model_fields.items() if "Path" in str(field.annotation)
    }
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        flag, equals, value = argument.partition("=")
        if flag in paths and not (value if equals else following).strip():
            raise UserError(f"{flag} is empty; give a path")


def refuse_options(refused: dict[str, str], arguments: list[str]) -> None:
    """Raise UserError for a command's REFUSED options of other programs: option -> what to type instead."""
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in refused:
            from distill_lab.errors import UserError

            raise UserError(f"{argument.partition('=')[0]}: {refused[flag]}")


def other_spellings(aliases: dict[str, tuple[str, ...]], arguments: list[str]) -> list[str]:
    """The arguments with a command's ALIASES (`--input-file`: the flags it means) expanded.

    All but the last of those flags are defaults: they go first, so that flags the user typed override them.
    """
    first: list[str] = []
    spelled: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        *defaults, own = aliases.get(flag.replace("_", "-"), (flag,))
        first += defaults
        spelled.append(own + equals + value)
    return [*first, *spelled]
