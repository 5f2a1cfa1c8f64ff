"""Columns that come with raw images and are passed through to the index: a licence, an owner, a caption. Pure.

A listing holds the values of an image as JSON, a list in the order of `keep_columns`. The index has a column of its own
for each, of the narrowest type that holds all values of the build: bool, int64, double or string.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import pyarrow as pa

_ORDER = ("bool", "int64", "double", "string")
_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}


def to_json(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of an image's columns as JSON; missing ones are null, times are ISO 8601, nested values are text."""
    return json.dumps([_plain(values.get(name)) for name in names], ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def typed_texts(texts: Sequence[str | None]) -> list[Any]:
    """The values of a column of text: numbers or true and false if every text is one as a program writes it.

    So `7` becomes a number, and a column with `007` or `1e5` stays text. Empty texts are null.
    """
    given = [text or None for text in texts]
    for read in (_bool, _int, _float):
        values = [None if text is None else read(text) for text in given]
        if all(value is not None or text is None for value, text in zip(values, given, strict=True)):
            return values
    return given


def _bool(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text)


def _int(text: str) -> int | None:
    try:
        return int(text) if str(int(text)) == text else None
    except ValueError:
        return None


def _float(text: str) -> float | int | None:
    try:
        return float(text) if repr(float(text)) == text and math.isfinite(float(text)) else _int(text)
    except ValueError:
        return None


class ColumnTypes:
    """The type of each kept column, as the values come by."""

    def __init__(self, names: Sequence[str]) -> None:
        self._types: dict[str, str | None] = dict.fromkeys(names)

    def add(self, kept: str) -> None:
        """Note the types of an image's values, in JSON."""
        for (name, known), value in zip(self._types.items(), json.loads(kept), strict=True):
            if value is not None and known != "string":
                self._types[name] = _wider(known, value)

    @property
    def empty(self) -> list[str]:
        """The columns that no image has a value of."""
        return [name for name, kind in self._types.items() if kind is None]

    def types(self) -> dict[str, str]:
        """The name of the type of each column."""
        return {name: kind or "string" for name, kind in self._types.items()}


def _wider(known: str | None, value: Any) -> str:
    kind = {bool: "bool", int: "int64", float: "double"}.get(type(value), "string")
    if known is None or known == kind:
        return kind
    return "string" if "bool" in (known, kind) else max(known, kind, key=_ORDER.index)


def fields(types: Mapping[str, str], taken: Sequence[str]) -> list[pa.Field]:
    """The columns of an index; one whose name is `taken` by the index itself is called kept_NAME."""
    return [pa.field(f"kept_{name}" if name in taken else name, _TYPES[kind]) for name, kind in types.items()]


def values(kept: str | None, types: Mapping[str, str]) -> list[Any]:
    """The values of an image's columns, each of its column's type."""
    if kept is None:
        return [None] * len(types)
    return [_cast(value, kind) for value, kind in zip(json.loads(kept), types.values(), strict=True)]


def _cast(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value)
    return float(value) if kind == "double" else value
