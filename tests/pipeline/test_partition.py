"""Rows divided into consecutive parts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.partition import divide, part_of


@given(st.integers(0, 1000), st.integers(1, 50))
def test_parts_cover_every_row_once_and_differ_by_at_most_one(total: int, count: int) -> None:
    parts = [part_of(total, number, count) for number in range(count)]
    assert [row for part in parts for row in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 1000), st.integers(1, 50))
def test_rows_are_divided_into_as_few_parts_as_the_bound_allows(total: int, at_most: int) -> None:
    parts = divide(np.arange(total), at_most)
    assert np.concatenate([np.zeros(0, int), *parts]).tolist() == list(range(total))
    assert all(0 < len(part) <= at_most for part in parts)
    assert (len(parts) - 1) * at_most < total or not parts
