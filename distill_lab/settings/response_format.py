"""The form of structured answers: a JSON schema from a file, text or mapping -> `response_format` of a request.

    response_format("answer.schema.json")       -> '{"json_schema":{"name":"answer","schema":{...}},"type":"json_schema"}'
    response_format("json")                     -> '{"type":"json_object"}'

A plain JSON schema is wrapped as OpenAI's protocol wants it; a whole `response_format` is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from distill_lab.errors import UserError

MAX_BYTES = 1 << 20
KINDS = ("json_schema", "json_object", "text")


def response_format(given: object) -> str:
    """The request's `response_format` as canonical JSON text; empty for nothing. Raises UserError.

    given: a mapping, JSON text, a file with it, or `json` for any JSON object.
    """
    value, where = _read(given)
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        raise UserError(
            f"response_format: {where} is a JSON {type(value).__name__}; give a JSON schema, which is an object"
        )
    if value.get("type") not in KINDS:
        whole = isinstance(value.get("schema"), Mapping)
        inner = dict(value) if whole else {"name": "answer", "schema": value}
        if not whole and _is_strict(value):
            inner["strict"] = True
        value = {"type": "json_schema", "json_schema": {"name": "answer", **inner}}
    schema = value.get("json_schema")
    if value["type"] == "json_schema" and not (
        isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping)
    ):
        raise UserError(
            f"response_format: {where} has no schema; give a JSON schema, or a response_format with json_schema"
        )
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _read(given: object) -> tuple[object, str]:
    """The JSON value, and what to call it in errors."""
    if not isinstance(given, str):
        return given or None, "it"
    text = given.strip()
    if not text:
        return None, ""
    if text in ("json", "json_object"):
        return {"type": "json_object"}, text
    where = "the text"
    if not text.startswith(("{", "[")):
        where = text
        try:
            with Path(text).expanduser().open("rb") as file:
                text = file.read(MAX_BYTES).decode()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"response_format: {where} cannot be read ({reason}); give a file with a JSON schema"
            ) from None
    try:
        return json.loads(text), where
    except (ValueError, RecursionError) as error:
        raise UserError(f"response_format: {where} is not JSON ({error})") from None


def _is_strict(schema: object) -> bool:
    """Whether a schema meets OpenAI's rules for strict mode: objects are closed and need all their properties."""
    if isinstance(schema, list):
        return all(_is_strict(part) for part in schema)
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, Mapping):
        named = set(properties) if isinstance(properties, Mapping) else set()
        if schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != named:
            return False
    return all(_is_strict(part) for part in schema.values())
