"""Every config is checked however it is made, and its sections may be left out where fields are given."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from pipeline.errors import IgptError
from pipeline.typed_config.config import Config, SectionedConfig
from pipeline.typed_config.ranges import Range


@dataclass(frozen=True, kw_only=True)
class Size(Config):
    """A section."""

    shown_by = "nothing"

    width: Annotated[int, Range(at_least=1)] = 2
    """Its width."""
    height: int = 3
    """Its height."""


@dataclass(frozen=True, kw_only=True)
class Picture(SectionedConfig):
    """A config with a section."""

    shown_by = "nothing"

    size: Size = field(default_factory=Size)
    """Its size."""
    title: str
    """Its title."""


def test_fields_are_read_flat_and_nested() -> None:
    expected = Picture(size=Size(width=5), title="a")
    assert Picture.from_fields(size={"width": 5}, title="a") == expected
    assert Picture.from_fields(width="5", title="a") == expected
    assert TypeAdapter(Picture).validate_python({"width": 5, "title": "a"}) == expected
    assert TypeAdapter(Picture).validate_python(expected) is expected


def test_a_copy_has_other_values_in_their_sections() -> None:
    picture = Picture(title="a")
    assert picture.with_fields(width=7) == Picture(size=Size(width=7), title="a")
    assert picture.with_fields(width=7, height=1, title="b") == Picture(size=Size(width=7, height=1), title="b")
    assert picture == Picture(title="a")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Picture(size=Size(width=0), title="a"),
        lambda: Picture(title="a").with_fields(width=0),
        lambda: Picture.from_fields(width=0, title="a"),
        lambda: TypeAdapter(Picture).validate_python({"size": {"width": 0}, "title": "a"}),
    ],
)
def test_a_value_out_of_range_is_refused_however_it_comes(make: object) -> None:
    with pytest.raises(IgptError, match="width is 0: it must be at least 1"):
        make()  # type: ignore[operator]


def test_the_form_shows_sections_and_forbids_no_field_without_them() -> None:
    schema = TypeAdapter(Picture).json_schema()
    assert "additionalProperties" not in schema and "required" not in schema
    size = schema["$defs"]["Size"]["properties"]
    assert (size["width"]["minimum"], size["width"]["description"]) == (1, "Its width.")
