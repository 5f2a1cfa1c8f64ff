"""Ranges of config fields, declared in the field's type: Annotated[int, Range(at_least=1)].

Python enforces it here; pydantic turns it into the limits of a JSON schema, which Prefect's form shows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a field accepts."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    multiple_of: int | None = None

    @property
    def text(self) -> str:
        """The range in words that follow "it must be"."""
        if self.at_least is not None and self.at_most is not None:
            limits = f"from {self.at_least} to {self.at_most}"
        else:
            named = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
            limits = " and ".join(f"{word} {limit}" for word, limit in named.items() if limit is not None)
        if self.multiple_of is None:
            return limits
        return f"{'an even number' if self.multiple_of == 2 else f'a multiple of {self.multiple_of}'} {limits}"

    def check(self, value: float, place: str) -> None:
        """Raise IgptError when a value is outside the range; `place` names the field."""
        inside = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )
        if not inside:
            raise IgptError(f"{place} is {value}: it must be {self.text}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Add the limits to the schema of the annotated type, without importing pydantic."""
        limits = {"ge": self.at_least, "gt": self.above, "le": self.at_most, "lt": self.below}
        limits["multiple_of"] = self.multiple_of
        return {**handler(source), **{name: limit for name, limit in limits.items() if limit is not None}}


@dataclass(frozen=True, kw_only=True)
class NotEmpty:
    """Text that must not be empty."""

    give: str = "it a value"
    """What to give instead, in words that follow "give"."""

    @property
    def text(self) -> str:
        """The rule in words that follow "it must be"."""
        return "not empty"

    def check(self, value: str, place: str) -> None:
        """Raise IgptError when a text is empty; `place` names the field."""
        if not value:
            raise IgptError(f"{place} is empty: give {self.give}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Add the minimum length to the schema of the annotated type."""
        return {**handler(source), "min_length": 1}


Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
"""A seed that NumPy and scikit-learn accept."""
WideSeed = Annotated[int, Range(at_least=-(2**63), at_most=2**63 - 1)]
"""A seed that PyTorch accepts, as those of trainings that exist may be."""
