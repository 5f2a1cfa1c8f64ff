"""The one rule that makes a class name of what a file says: a cell of a table, a member of an archive. Pure.

Text stays as written. Numbers become their decimal text, or the name that the file's metadata gives them. Nothing, an
empty text, NaN and -1 are no label.
"""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from pipeline.errors import IgptError
from pipeline.store.path_text import escape

_NO_LABEL = frozenset({"", "-1", "nan", "NaN"})
_LABEL = "label"
_EXACT = 2**53  # larger floats stand for many integers


def class_name(value: Any, names: Sequence[str] = ()) -> str | None:
    """The class of a value, None for no label; `names` are those of the classes 0, 1, ..."""
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        value = int(value) if is_whole else float(value) if value.is_nan() else str(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return None if value in _NO_LABEL else escape(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    if value == -1:
        return None
    return (names[value] or None) if 0 <= value < len(names) else str(value)


def check_single(schema: pa.Schema, name: str, url: str) -> None:
    """Raise IgptError when several columns of a table have one name."""
    count = schema.names.count(name)
    if count > 1:
        raise IgptError(f"{url}: {count} columns are named {name!r}; keep one of them")


def check_column(schema: pa.Schema, name: str, url: str, setting: str) -> None:
    """Raise IgptError when a column of a table cannot say one thing of each image.

    `setting` is the one that chooses another column.
    """
    check_single(schema, name, url)
    kind = schema.field(name).type
    if pa.types.is_nested(kind):
        raise IgptError(
            f"{url}: the column {name!r} is {kind}, and an image has one value; make one of each, or choose another "
            f"column with {setting}"
        )


def names_in_metadata(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names of the classes 0, 1, ... of a column, if the file has the metadata of Hugging Face datasets."""
    return _class_labels(schema).get(column, ())


def label_column_of(schema: pa.Schema) -> str | None:
    """The column with the classes, if no setting chooses one: `label`, else the only one that metadata calls so."""
    if _LABEL in schema.names:
        return _LABEL
    others = [name for name in schema.names if name.lower() == _LABEL] or [
        name for name in _class_labels(schema) if name in schema.names
    ]
    return others[0] if len(others) == 1 else None


def has_choice_of_labels(schema: pa.Schema) -> bool:
    """Whether there are columns with classes of which a setting has to choose one: fine_label and coarse_label."""
    is_any = bool(_class_labels(schema)) or any(name.lower().endswith(_LABEL) for name in schema.names)
    return is_any and label_column_of(schema) is None


def _class_labels(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The columns that metadata of Hugging Face datasets calls ClassLabel, with the names of the classes 0, 1, ..."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
        classes = {}
        for column, feature in features.items():
            if isinstance(feature, dict) and isinstance(names := feature.get("names"), list | dict):
                # In a README they are a map: {"0": "cat", "1": "dog"}.
                ordered = [names[number] for number in sorted(names, key=int)] if isinstance(names, dict) else names
                classes[column] = tuple(str(name) for name in ordered)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return classes
