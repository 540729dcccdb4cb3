"""Read a YAML file of settings into a dict, by YAML 1.2: `2e-5` is a number, `no` is text, a duplicate key is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from distill_lab.errors import UserError
from distill_lab.types import Fields, JsonObject


class _Constructor(SafeConstructor):
    """Keeps dates as text: no setting is a date, but a model's revision may look like one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


def read_yaml(path: Path) -> JsonObject:
    """The settings in a YAML file. Raises UserError with file and line for anything that is not a mapping of settings."""
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _Constructor
        data = yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = (error.problem or error.context or "").splitlines()[0]
        if isinstance(error, DuplicateKeyError):
            key = problem.removeprefix("found duplicate key ").split(" with value")[0]
            raise UserError(f"{place}: {key} is given twice; keep only one") from None
        raise UserError(f"{place}: not YAML ({problem})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; settings are at most a few levels deep") from None
    except (YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # The constructor raises Python's own errors for a list as a name, or for a number of thousands of digits.
        raise UserError(f"{path}: not YAML that can be read ({' '.join(str(error).split())[:200]})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected settings as `name: value`, found {type(data).__name__}")
    _check_names(data, path)
    return data


def _check_names(data: Mapping[object, object], path: Path) -> None:
    """Raise UserError if the name of a setting is not text."""
    for name, value in data.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {str(name)[:60]!r} is not the name of a setting; names are text")
        if isinstance(value, Mapping):
            _check_names(value, path)


def merge_settings(base: Fields, change: Fields) -> dict[str, Any]:
    """`base` updated with the values of `change`; nested mappings are merged recursively."""
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merge_settings(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
