"""Arrow tables -> rows of plain Python values that mean what the file's author meant.

float32 0.1 is 0.1, not 0.10000000149; a class label is its name, not its number; nulls that only fill up the fields of a
nested object, because every row of a column has the same fields, are left out; maps are objects. A value that cannot be
converted is `Unusable` and does not stop the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from distill_lab.data._row_types import Unusable
from distill_lab.formatting import one_line
from distill_lab.types import Fields, JsonObject

Convert = Callable[[Any], object]
"""From a value that is not null, of the type that Arrow has for it."""


class Scalar(Protocol):
    """A value of a pyarrow column."""

    def as_py(self) -> object: ...


class ArrowType(Protocol):
    """A pyarrow type; a nested one has one or more of these."""

    @property
    def value_type(self) -> ArrowType: ...
    @property
    def item_type(self) -> ArrowType: ...
    def __iter__(self) -> Iterator[Field]: ...


class Field(Protocol):
    """A column of a table, or a field of a struct."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> ArrowType: ...


class Schema(Protocol):
    """A pyarrow schema."""

    @property
    def names(self) -> list[str]: ...
    @property
    def metadata(self) -> Mapping[bytes, bytes] | None: ...
    def __iter__(self) -> Iterator[Field]: ...


class Batch(Protocol):
    """A pyarrow record batch or table."""

    @property
    def num_rows(self) -> int: ...
    @property
    def schema(self) -> Schema: ...
    def column(self, i: str, /) -> Iterable[Scalar]: ...
    def to_pylist(self) -> list[JsonObject]: ...


class Converter:
    """Converts the rows of tables with one schema; knows class labels from the features that `datasets` stores in it."""

    def __init__(self, schema: Schema) -> None:
        features = _features(schema)
        self.converters: dict[str, Convert] = {}
        for field in schema:
            convert = _converter(field.type, features.get(field.name))
            if convert is not None:
                self.converters[field.name] = convert

    def rows(self, batch: Batch) -> Iterator[JsonObject]:
        """The rows of a record batch or table."""
        for row in _pylist(batch):
            yield self.row(row)

    def row(self, row: Fields) -> JsonObject:
        """One row whose values are Python's already."""
        return {name: _converted(self.converters.get(name), value) for name, value in row.items()}


def _converted(convert: Convert | None, value: object) -> object:
    return value if value is None or convert is None or isinstance(value, Unusable) else convert(value)


def _pylist(batch: Batch) -> list[JsonObject]:
    try:
        return batch.to_pylist()
    except Exception:  # whatever a type's conversion raises
        # One value (a time beyond year 9999, text that is not UTF-8) fails the batch: convert each by itself.
        columns = {name: [_value(value) for value in batch.column(name)] for name in batch.schema.names}
        return [{name: column[number] for name, column in columns.items()} for number in range(batch.num_rows)]


def _value(scalar: Scalar) -> object:
    try:
        return scalar.as_py()
    except Exception as error:  # whatever the library for this type raises is the reason
        return Unusable(one_line(error))


def _features(schema: Schema) -> JsonObject:
    """The features of `datasets` in a schema's metadata; empty if there are none."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _converter(kind: ArrowType, feature: object) -> Convert | None:
    """How to convert a value of an Arrow type; None if it stays as it is."""
    import pyarrow.types as types

    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return _label(feature["names"])
    if types.is_float16(kind) or types.is_float32(kind):
        return _shortest
    if types.is_dictionary(kind):
        return _converter(kind.value_type, None)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _converter(kind.value_type, _inner(feature))
        return None if inner is None else lambda values: [_converted(inner, value) for value in values]
    if types.is_struct(kind):
        named = {field.name: _converter(field.type, _child(feature, field.name)) for field in kind}
        return lambda value: {
            name: _converted(named.get(name), item) for name, item in value.items() if item is not None
        }
    if types.is_map(kind):
        item = _converter(kind.item_type, None)
        return lambda pairs: {str(key): _converted(item, value) for key, value in pairs}
    return None


def _label(names: list[object]) -> Convert:
    def name(value: object) -> object:
        if not isinstance(value, int):
            return value
        return str(names[value]) if 0 <= value < len(names) else None  # -1 means that there is no label

    return name


def _shortest(value: float) -> float:
    """The shortest number that is the same float32."""
    import numpy as np

    return float(str(np.float32(value)))


def _inner(feature: object) -> object:
    if isinstance(feature, list):
        return feature[0] if feature else None
    return feature.get("feature") if isinstance(feature, dict) else None


def _child(feature: object, name: str) -> object:
    """The feature of a struct's field; the old Sequence of a dict of features is stored as a struct of lists."""
    if not isinstance(feature, dict):
        return None
    inner = feature.get("feature")
    if feature.get("_type") == "Sequence" and isinstance(inner, dict):
        return {"_type": "List", "feature": inner.get(name)}
    return feature.get(name)
