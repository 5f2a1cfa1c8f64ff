"""Values of files, command lines and JSON become what the field's type is, or one line that names the field."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from igpt_model.config import PretrainConfig
from pipeline.errors import IgptError
from pipeline.typed_config import values
from pipeline.typed_config.values import Plain, read


def test_an_integer_too_large_for_a_number_is_refused() -> None:
    with pytest.raises(IgptError, match="it must be a number"):
        values.read(PretrainConfig, {"runs": "r", "learning_rate": 10**400})


@dataclass(frozen=True, kw_only=True)
class Place:
    """A section, with a field that has no default."""

    name: str
    floor: int = 0


@dataclass(frozen=True, kw_only=True)
class Example:
    """A field of every type that a config may have."""

    switch: bool = False
    count: int = 0
    share: float | None = None
    word: str = ""
    kind: Literal["a", "b"] = "a"
    when: datetime | None = None
    items: tuple[int, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    place: Place | None = None


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("switch", Plain("on"), True),
        ("switch", "No", False),
        ("count", Plain("1_000"), 1000),
        ("count", "-7", -7),
        ("share", Plain("1e-3"), 0.001),
        ("share", Plain("~"), None),
        ("share", "", None),
        ("word", Plain("1e-3"), "1e-3"),
        ("kind", "b", "b"),
        ("when", "2026-01-05T04:00:00Z", datetime(2026, 1, 5, 4, tzinfo=UTC)),
        ("items", ["1", 2], (1, 2)),
        ("parameters", {"a": Plain("1"), "b": [Plain("yes")], "c": "1"}, {"a": 1, "b": [True], "c": "1"}),
        ("place", {"name": "x", "floor": "2"}, Place(name="x", floor=2)),
        ("place", None, None),
    ],
)
def test_the_type_of_a_field_decides(name: str, given: Any, expected: Any) -> None:
    value = getattr(read(Example, {name: given}), name)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("switch", 1, "switch is 1: it must be true or false"),
        ("count", True, "count is True: it must be a whole number"),
        ("count", "007", "count is '007': it must be a whole number"),
        ("share", "nan", "share is 'nan': it must be a number"),
        ("word", 5, "word is 5: it must be text; put it in quotes"),
        ("kind", "c", "kind is 'c': it must be a or b"),
        ("when", "tomorrow", "when is 'tomorrow': it must be a time, as 2026-01-05T04:00:00Z"),
        ("items", "1", "items is '1': it must be a list, as in [1, 2]"),
        ("items", [1, "x"], "items.1 is 'x': it must be a whole number"),
        ("parameters", [1], "parameters is [1]: it must be a mapping"),
        ("place", {"floor": 1}, "place.name is missing"),
        ("place", {"name": "x", "roof": 1}, "unknown field place.roof"),
        ("plaice", 1, "unknown field plaice, perhaps place"),
    ],
)
def test_what_a_type_does_not_take_is_refused_in_one_line(name: str, given: Any, line: str) -> None:
    with pytest.raises(IgptError) as raised:
        read(Example, {name: given})
    assert str(raised.value).partition(";")[0] == line.partition(";")[0]


def test_what_is_no_mapping_of_fields_is_refused() -> None:
    for given in ([], "words", None):
        with pytest.raises(IgptError, match=r"a config is .*: it must be a mapping of fields"):
            read(Example, given)
