"""Python enforces the same ranges as the schema of Prefect's form."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from pipeline.errors import IgptError
from pipeline.typed_config import values
from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import NotEmpty, Range


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    """One field of each range."""

    shown_by = "nothing"

    count: Annotated[int, Range(at_least=1)] = 1
    """At least."""
    share: Annotated[float, Range(above=0, below=1)] = 0.5
    """Above and below."""
    even: Annotated[int, Range(at_least=4, at_most=8, multiple_of=2)] | None = None
    """From, to and a multiple, or none."""
    many: tuple[Annotated[float, Range(at_most=2)], ...] = ()
    """Items at most."""
    text: Annotated[str, NotEmpty()] = "t"
    """Not empty."""


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [
        *(("count", value, value >= 1) for value in (-1, 0, 1, 2)),
        *(("share", value, 0 < value < 1) for value in (-0.1, 0.0, 0.1, 0.9, 1.0)),
        *(("even", value, value in (None, 4, 6, 8)) for value in (None, 2, 4, 5, 6, 8, 10)),
        *(("many", value, max(value, default=0) <= 2) for value in ([], [1.0], [2.0, -5.0], [1.0, 2.5])),
        *(("text", value, bool(value)) for value in ("", "x")),
    ],
)
def test_python_files_and_the_schema_take_the_same(field: str, value: Any, fits: bool) -> None:
    adapter = TypeAdapter(Example)
    schema = adapter.json_schema()

    def in_schema(given: dict) -> Any:
        try:
            return jsonschema.validate(given, schema)
        except jsonschema.ValidationError as error:
            raise IgptError(str(error)) from None

    makers = (
        lambda given: Example(**given),
        lambda given: values.read(Example, given),
        adapter.validate_python,
        in_schema,
    )
    for make in makers:
        if fits:
            make({field: value})
        else:
            with pytest.raises(IgptError):
                make({field: value})


def test_no_number_is_in_no_range() -> None:
    with pytest.raises(IgptError, match="share is nan: it must be above 0 and below 1"):
        Example(share=math.nan)
