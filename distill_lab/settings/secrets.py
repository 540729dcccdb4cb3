"""Keys and passwords among the fields of a request: which values they are, and the fields without them, for files.

    secrets_in({"user": "a", "api_key": "sk-1"})         -> ["sk-1"]
    without_secrets({"user": "a", "api_key": "sk-1"})    -> {"user": "a", "api_key": "***"}

A value is a secret by its field's name, at any depth, by being a header, by its form (`Bearer ...`, `sk-...`), or because
an environment variable of ENVIRONMENT has it. The same value in another field is one, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from distill_lab.types import Fields, JsonObject

ENVIRONMENT = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Environment variables whose value is never printed or recorded."""
MARK = "***"
"""What files and screens show instead of a secret."""

_NAME = re.compile(
    r"(?:api|access|auth|secret|private|subscription|service|account|client|license|encryption|signing)keys?(?:id)?$"
    r"|^keys?$|^auth$|^token$|authorization|authentication|bearer|passw|passphrase|secret|credential|cookie"
    r"|(?:access|auth|api|id|refresh|session|security|personal|client|hub|hf)token$|headers?$"
)
"""Names of fields, in lower case and without other characters, whose value is a secret. `max_tokens`, `stop_token_ids` and
`prompt_cache_key` are not among them."""
_FORM = re.compile(
    r"\s*(?:(?:bearer|basic|token)\s+\S{6,}|(?:sk|pk|rk|xoxb|ghp|gsk|nvapi)[-_]\S{8,}|hf_\S{8,})\s*", re.I
)
_WORD = re.compile(r"[^a-z0-9]+")


def secrets_in(fields: object) -> list[str]:
    """The values that are secrets, each once, the longest first: a secret may be a part of another."""
    known = {os.environ.get(name, "").strip() for name in ENVIRONMENT}
    found = {value for value in _secrets(fields, known, hidden=False) if value.strip()}
    # `Bearer KEY` is a secret, and KEY alone is the same one.
    found |= {value.split()[-1] for value in found if len(value.split()) == 2}
    return sorted(found, key=lambda value: (-len(value), value))


def without_secrets(fields: Fields) -> JsonObject:
    """The same fields with MARK in place of every secret; anything else is unchanged."""
    marked = _marked(fields, set(secrets_in(fields)))
    assert isinstance(marked, dict)
    return marked


def _secrets(value: object, known: set[str], *, hidden: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _secrets(below, known, hidden=hidden or bool(_NAME.search(_WORD.sub("", str(name).lower()))))
    elif isinstance(value, list):
        for below in value:
            yield from _secrets(below, known, hidden=hidden)
    elif isinstance(value, str) and (hidden or value.strip() in known or _FORM.fullmatch(value)):
        yield value
    elif hidden and isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _marked(value: object, secrets: set[str]) -> object:
    if isinstance(value, dict):
        return {_marked(name, secrets): _marked(below, secrets) for name, below in value.items()}
    if isinstance(value, list):
        return [_marked(below, secrets) for below in value]
    if isinstance(value, str):
        return MARK if value in secrets else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return MARK if is_number and str(value) in secrets else value
