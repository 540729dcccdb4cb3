"""Values of a row as plain JSON data, and fields that hold JSON as text (in a CSV column, for example) as what they hold."""

from __future__ import annotations

import ast
import datetime
import decimal
import io
import itertools
import json
import math
import tokenize
import uuid
from collections.abc import Mapping

from distill_lab.data._row_types import Unusable
from distill_lab.types import JsonObject

STRUCTURED = frozenset(
    """
    messages conversations conversation dialogue history turns tools functions choices options endings answers chosen
    rejected generations correctness_math_verify correctness_llama is_reasoning_complete prompt completion instances
    """.split()
)
"""Fields that are lists or objects in some data sets and hold them as text in others."""
TEXTS_TOO = ("prompt", "completion", "chosen", "rejected")
"""Fields that are text in others, so that only a list of turns is read from it."""


def plain_row(fields: Mapping[str, object]) -> JsonObject:
    """The row with plain values; what has no JSON form is `Unusable`. Raises ValueError for a name that is broken text."""
    row: JsonObject = {}
    for name, value in fields.items():
        name = str(plain(name if isinstance(name, str) else str(name), str(name)))
        try:
            row[name] = plain(value, name)
        except ValueError as error:
            row[name] = Unusable(str(error))
        except RecursionError:
            row[name] = Unusable(f"field {name!r} is nested too deeply")
    return row


def plain(value: object, field: str) -> object:
    """Convert a value to plain JSON data: NaN, which tables use for missing values, is None; dates and decimals are text.

    Raises ValueError naming the field if the value has no JSON form.
    """
    if isinstance(value, str):
        try:
            if not value.isascii():
                value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"field {field!r} contains broken text (not UTF-8, or half a character); give the file's --data.encoding"
            ) from None
        return value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"field {field!r} contains {value}, which is not JSON")
        return None if math.isnan(value) else value
    if isinstance(value, (list, tuple)):
        return [plain(item, field) for item in value]
    if isinstance(value, dict):
        return {plain(str(key), field): plain(item, field) for key, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, (datetime.timedelta, uuid.UUID)):
        return str(value)
    if isinstance(value, bytes):
        return _text_of(value, field)
    if isinstance(value, Unusable):
        raise ValueError(f"field {field!r} cannot be read ({value.reason})")
    raise ValueError(f"field {field!r} contains {type(value).__name__}, which has no JSON form")


def _text_of(value: bytes, field: str) -> str:
    """Text that a table stores as bytes, as some writers of Parquet do. Raises ValueError if it is not text."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"field {field!r} contains bytes that are not text, which have no JSON form")
    return text


def unpacked(row: JsonObject) -> JsonObject:
    """The row, with lists and objects in place of the text that holds them: JSON, or as Python prints them."""
    for name in row.keys() & STRUCTURED:
        value = row[name]
        if isinstance(value, str) and value.strip()[:1] in ("[", "{") and value.strip()[-1:] in ("]", "}"):
            found = _parsed(value.strip())
            if found is not None and (name not in TEXTS_TOO or _is_conversation(found)):
                row[name] = found
    return row


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # numpy prints lists of texts without commas, and Python would join the texts.
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        if any(first == second == tokenize.STRING for first, second in itertools.pairwise(tokens)):
            return None
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None


def _is_conversation(value: object) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(isinstance(turn, dict) and ({"role", "from"} & turn.keys()) for turn in turns)
