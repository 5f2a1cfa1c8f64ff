"""Which rank writes which tensor."""

from hypothesis import given
from hypothesis import strategies as st

from igpt_model.runs.sharded import shares


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10**9), max_size=40), st.integers(1, 8))
def test_every_tensor_has_one_writer_and_the_load_is_balanced(sizes: dict[str, int], parts: int) -> None:
    owners = shares(sizes, parts)
    assert owners.keys() == sizes.keys()
    loads = [sum(size for name, size in sizes.items() if owners[name] == part) for part in range(parts)]
    assert max(loads) <= sum(sizes.values()) / parts + max(sizes.values(), default=0)
