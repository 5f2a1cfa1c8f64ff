"""The one rule that makes a class name of what a file says: a cell of a table, a member of an archive. Pure.

Text stays as written. Numbers become their decimal text, or the name that the file's metadata gives them. Nothing, an
empty text, NaN and -1 are no label.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import IgptError
from pipeline.store.path_text import escape

_NO_LABEL = frozenset({"", "-1", "nan", "NaN"})


def class_name(value: Any, names: Sequence[str] = ()) -> str | None:
    """The class of a value, None for no label; `names` are those of the classes 0, 1, ..."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return None if value in _NO_LABEL else escape(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    if value == -1:
        return None
    return names[value] if 0 <= value < len(names) else str(value)


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
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(text)["info"]["features"][column] if text else None
        return tuple(str(name) for name in feature["names"]) if feature else ()
    except (ValueError, KeyError, TypeError):
        return ()
