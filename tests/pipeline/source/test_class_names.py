"""The rule of labels: what becomes of each kind of value."""

import json
import math
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import IgptError
from pipeline.source.class_names import check_column, class_name, names_in_metadata


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("cat", "cat"),
        ("01", "01"),
        ("1", "1"),
        ("1e5", "1e5"),
        (" cat ", " cat "),
        ("[/i]", "[/i]"),
        ("a" * 300, "a" * 300),
        ("e\u0301", "e\u0301"),
        ("NULL", "NULL"),
        ("-2", "-2"),
        (b"cat", "cat"),
        ("caf\u00e9".encode(), "caf\u00e9"),
        (b"caf\xe9", "caf\\xe9"),
        (5, "5"),
        (0, "0"),
        (5.0, "5"),
        (1e3, "1000"),
        (1e300, "1e+300"),
        (Decimal("2.00"), "2"),
        (Decimal("2.50"), "2.50"),
        (Decimal("-1"), None),
        (Decimal("NaN"), None),
        (Decimal("Infinity"), "Infinity"),
        (0.5, "0.5"),
        (True, "True"),
        (date(2026, 1, 2), "2026-01-02"),
        (None, None),
        ("", None),
        (b"", None),
        ("-1", None),
        (-1, None),
        (-1.0, None),
        (math.nan, None),
        ("nan", None),
        ("NaN", None),
    ],
)
def test_the_class_of_a_value(value: Any, label: str | None) -> None:
    assert class_name(value) == label


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "cat"), (1.0, "dog"), (2, "2"), (-1, None), (math.nan, None), (0.5, "0.5"), ("0", "0"), (True, "True")],
)
def test_numbers_have_the_names_of_the_metadata(value: Any, label: str | None) -> None:
    assert class_name(value, ("cat", "dog")) == label


def with_metadata(text: str) -> pa.Schema:
    return pa.schema([("label", pa.int64())], metadata={"huggingface": text})


@pytest.mark.parametrize("text", ["", "no JSON", "{}", "[]", '{"info": {"features": {"label": {"_type": "Value"}}}}'])
def test_metadata_without_names(text: str) -> None:
    assert names_in_metadata(with_metadata(text), "label") == ()


def test_metadata_of_hugging_face() -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "fine": {"names": ["tabby"]}}
    schema = with_metadata(json.dumps({"info": {"features": features}}))
    assert names_in_metadata(schema, "label") == ("cat", "dog")
    assert names_in_metadata(schema, "fine") == ("tabby",)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (pa.list_(pa.int64()), "'label' is list<"),
        (pa.struct([("a", pa.int64())]), "'label' is struct<"),
        (pa.map_(pa.string(), pa.int64()), "'label' is map<"),
    ],
)
def test_nested_columns_are_refused(kind: pa.DataType, words: str) -> None:
    with pytest.raises(IgptError, match=words) as raised:
        check_column(pa.schema([("label", kind)]), "label", "a.parquet", "label_column")
    assert "label_column" in str(raised.value) and "\n" not in str(raised.value)


def test_a_column_twice_is_refused() -> None:
    with pytest.raises(IgptError, match=r"a\.parquet: 2 columns are named 'label'"):
        check_column(pa.schema([("label", pa.int64())] * 2), "label", "a.parquet", "label_column")
