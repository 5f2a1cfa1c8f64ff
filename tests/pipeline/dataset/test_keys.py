"""Keys and versions of images, and the digest of a source."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.keys import Keys, key_of, match, source_digest, version_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("etag", 400, "cat"), ("etag2", 400, "cat")),
        (("etag", 400, "cat"), ("etag", 401, "cat")),
        (("etag", 400, "cat"), ("etag", 400, "dog")),
        (("etag", 400, None), ("etag", 400, "")),
    ],
)
def test_what_changes_an_image_changes_its_version(one: tuple, other: tuple) -> None:
    assert version_of(*one) != version_of(*other)
    assert version_of(*one) == version_of(*one)


@given(
    keys=st.lists(st.integers(0, 400), unique=True, max_size=100),
    among=st.lists(st.integers(0, 400), unique=True, max_size=100),
)
def test_a_match_is_the_place_of_the_same_key(keys: list[int], among: list[int]) -> None:
    places = match(Keys.of([key_of(str(n)) for n in keys]), Keys.of([key_of(str(n)) for n in among]))
    assert places.tolist() == [among.index(n) if n in among else -1 for n in keys]


def test_keys_that_share_their_upper_half_are_told_apart() -> None:
    one, other = "0123456789abcdef0001", "0123456789abcdef0002"
    assert match(Keys.of([one]), Keys.of([other])).tolist() == [-1]
    assert Keys.of([one, other]).text() == [one, other]


def test_the_digest_of_a_source_is_independent_of_the_order() -> None:
    keys = Keys.of([key_of(str(number)) for number in range(50)])
    versions = np.arange(50, dtype=np.uint64)
    splits = (np.arange(50) % 3).astype(np.int8)
    order = np.random.default_rng(0).permutation(50)
    digest = source_digest(keys, versions, splits)
    assert source_digest(keys.take(order), versions[order], splits[order]) == digest
    other = splits.copy()
    other[3] = 1 - other[3] % 2
    assert source_digest(keys, versions, other) != digest
    assert source_digest(keys, versions + np.uint64(1), splits) != digest
