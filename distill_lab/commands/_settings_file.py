"""The settings of a recipe or command, read from its file as text: nothing is imported, so that help is there at once.

settings = settings_of(Path("distill_lab/recipes/system1.py"))
[setting.flag for setting in settings]               ['--teacher.model', '--teacher.revision', ...]
preset_names(path), docstring(path)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
REQUIRED = "(required)"
KINDS = {"int": "INT", "float": "FLOAT", "str": "STR", "Path": "PATH", "Any": "VALUE"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag."""

    name: str
    """Dotted, as in YAML: train.lora.r."""
    kind: str
    """What follows the flag: INT, {auto,full}; empty for a switch."""
    default: str
    text: str
    group: tuple[str, ...]
    """The descriptions of the groups it is in, outermost first."""

    @property
    def flag(self) -> str:
        """As typed: --train.lora.r."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    classes: dict[str, ast.ClassDef]
    values: dict[str, ast.expr]
    imported: dict[str, tuple[str, str]]
    """Local name -> module and name there; the name is empty for a module."""


@dataclass(frozen=True, slots=True)
class _Field:
    file: _File
    annotation: ast.expr
    default: ast.expr | None
    default_file: _File
    text: str


def docstring(path: Path) -> str:
    """What a file says of itself."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def preset_names(path: Path) -> list[str]:
    """The presets of a recipe."""
    value = _read(path).values.get("PRESETS")
    return [str(ast.literal_eval(key)) for key in value.keys if key] if isinstance(value, ast.Dict) else []


def settings_of(path: Path) -> list[Setting] | None:
    """All settings of the class `Config` in a file, in the order of the flags; None if there is no such class."""
    file = _read(path)
    found = file.classes.get("Config")
    return list(_settings(_fields(file, found), {}, file, "", ())) if found else None


@lru_cache
def _read(path: Path) -> _File:
    classes: dict[str, ast.ClassDef] = {}
    values: dict[str, ast.expr] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.Assign):
            values |= _assigned(node.targets[0], node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            values[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distill_lab"):
            for name in node.names:
                imported[name.asname or name.name] = (node.module or "", name.name)
    return _File(path, classes, values, imported)


def _assigned(target: ast.expr, value: ast.expr) -> dict[str, ast.expr]:
    """Name -> value of an assignment, also of several at once."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=True)
        return {name.id: each for name, each in pairs if isinstance(name, ast.Name)}
    return {}


def _module(name: str) -> _File | None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file() and path != PACKAGE:
            return _read(candidate)
    return None


def _find(file: _File, name: ast.expr | None) -> tuple[_File, ast.ClassDef | ast.expr] | None:
    """The class or value that an expression names, through imports of the package; None for anything else."""
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        module, inner = file.imported.get(name.value.id, ("", ""))
        other = _module(f"{module}.{inner}") if module else None
        return _find(other, ast.Name(name.attr)) if other else None
    if not isinstance(name, ast.Name):
        return None
    if name.id in file.classes:
        return file, file.classes[name.id]
    if name.id in file.values:
        return file, file.values[name.id]
    if name.id in file.imported:
        module, inner = file.imported[name.id]
        other = _module(module)
        return _find(other, ast.Name(inner)) if other else None
    return None


def _fields(file: _File, found: ast.ClassDef) -> dict[str, _Field]:
    """Name -> field, those of base classes first; a field that is given again keeps its place and its description."""
    fields: dict[str, _Field] = {}
    for base in found.bases:
        above = _find(file, base)
        if above and isinstance(above[1], ast.ClassDef):
            fields |= _fields(above[0], above[1])
    for node, after in zip(found.body, [*found.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name, text = node.target.id, ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = " ".join(after.value.value.split())
        before = fields.get(name)
        fields[name] = _Field(file, node.annotation, node.value, file, text or (before.text if before else ""))
    return fields


def _settings(
    fields: Mapping[str, _Field], given: Mapping[str, ast.expr], file: _File, prefix: str, groups: tuple[str, ...]
) -> Iterator[Setting]:
    """The settings of a class, its own first and then those of its groups. given: defaults that the group's owner sets."""
    nested = []
    for name, field in fields.items():
        default, where = (given[name], file) if name in given else (field.default, field.default_file)
        found = _find(field.file, field.annotation)
        if found and isinstance(found[1], ast.ClassDef):
            nested.append((name, field, found, default, where))
            continue
        kind = _kind(field.file, field.annotation)
        yield Setting(f"{prefix}{name}", kind, _shown(where, default), field.text, groups)
    for name, field, (there, inner), default, where in nested:
        assert isinstance(inner, ast.ClassDef)
        call = _find(where, default) if isinstance(default, ast.Name) else (where, default)
        values: dict[str, ast.expr] = {}
        if call and isinstance(call[1], ast.Call):
            values = {each.arg: each.value for each in call[1].keywords if each.arg}
        owner = call[0] if call else where
        yield from _settings(_fields(there, inner), values, owner, f"{prefix}{name}.", (*groups, field.text))


def _kind(file: _File, annotation: ast.expr) -> str:
    """How a value is written."""
    if isinstance(annotation, ast.BinOp):
        return _kind(file, annotation.left)
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value)
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if outer == "Annotated":
            return _kind(file, parts[0])
        if outer == "Literal":
            return "{" + ",".join(str(ast.literal_eval(part)) for part in parts) + "}"
        return f"[{_kind(file, parts[0])} ...]"
    if ast.unparse(annotation) == "bool":
        return ""
    found = _find(file, annotation)
    if found and not isinstance(found[1], ast.ClassDef):
        return _kind(found[0], found[1])
    return KINDS.get(ast.unparse(annotation), "VALUE")


def _shown(file: _File, default: ast.expr | None) -> str:
    """A default for people."""
    if default is None:
        return REQUIRED
    found = _find(file, default)
    if found and not isinstance(found[1], ast.ClassDef):
        return _shown(found[0], found[1])
    if isinstance(default, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in default.values]
        return "".join(_shown(file, part) for part in parts)
    try:
        value = ast.literal_eval(default)
    except ValueError:
        if isinstance(default, ast.Call) and len(default.args) == 1 and ast.unparse(default.func) == "Path":
            return _shown(file, default.args[0])
        return ast.unparse(default)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return repr(value) if value == "" else str(value)
