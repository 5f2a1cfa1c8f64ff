"""Columns that are passed through: which type they get, and what becomes of each value."""

from datetime import date
from typing import Any

import pytest

from pipeline.dataset import kept_columns
from pipeline.dataset.kept_columns import ColumnTypes, to_json, typed_texts, values


@pytest.mark.parametrize(
    ("given", "kind", "kept"),
    [
        ([1, None, 2], "int64", [1, None, 2]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([True, None], "bool", [True, None]),
        ([True, 1], "string", ["true", "1"]),
        ([1, "a"], "string", ["1", "a"]),
        (["007", "é"], "string", ["007", "é"]),
        ([float("nan"), 1.5], "double", [None, 1.5]),
        ([2**63], "string", [str(2**63)]),
        ([date(2026, 11, 26)], "string", ["2026-11-26"]),
        ([{"b": 1, "a": [2]}], "string", ['{"a": [2], "b": 1}']),
    ],
    ids=str,
)
def test_a_column_has_the_narrowest_type_that_holds_all(given: list[Any], kind: str, kept: list[Any]) -> None:
    rows = [to_json({"column": value, "other": 1}, ["column"]) for value in given]
    types = ColumnTypes(["column"])
    for row in rows:
        types.add(row)
    assert types.types() == {"column": kind}
    found = [values(row, types.types())[0] for row in rows]
    assert found == kept and [type(value) for value in found] == [type(value) for value in kept]


@pytest.mark.parametrize(
    ("texts", "typed"),
    [
        (["7", "", "-3"], [7, None, -3]),
        (["7", "007"], ["7", "007"]),
        (["1.5", "2"], [1.5, 2]),
        (["1e5", "1.5"], ["1e5", "1.5"]),
        (["true", "false"], [True, False]),
        (["yes"], ["yes"]),
        ([None, ""], [None, None]),
    ],
    ids=str,
)
def test_text_becomes_a_number_only_where_nothing_is_lost(texts: list[str | None], typed: list[Any]) -> None:
    assert typed_texts(texts) == typed


def test_names_of_the_index_are_not_taken() -> None:
    fields = kept_columns.fields({"owner": "string", "url": "string"}, ["key", "url"])
    assert [field.name for field in fields] == ["owner", "kept_url"]


def test_a_column_without_a_value_is_known() -> None:
    types = ColumnTypes(["owner", "licence"])
    types.add(to_json({"owner": "me"}, ["owner", "licence"]))
    assert types.empty == ["licence"]
