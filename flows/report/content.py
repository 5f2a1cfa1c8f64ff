"""What a report holds: sections of texts, numbers, tables, curves and pictures. Commands fill it, `page` renders it.

Texts come from outside too (labels, keys, addresses); `page` makes them harmless. A section without blocks is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

MAX_ROWS = 200
"""Rows of a table that are shown; a line says how many more there are."""


Mark = Literal["", "right", "wrong"]
"""Whether a picture is what it should be; empty where that is no question."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A named value; `link` is the http(s) address of a page about it."""

    name: str
    value: str
    note: str = ""
    link: str = ""

    def __post_init__(self) -> None:
        if self.link and not self.link.startswith(("http://", "https://")):
            object.__setattr__(self, "link", "")  # a script, or a place that no browser opens


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Named values, one below the other."""

    kind: ClassVar[str] = "facts"
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values; numbers stand to the right."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    caption: str = ""
    more_rows: int = 0
    """How many rows are left out."""

    @classmethod
    def of(cls, rows: Sequence[dict[str, object]], caption: str = "") -> "Table":
        """A table of rows by column, of which the first `MAX_ROWS` are shown."""
        columns = tuple(rows[0])
        shown = tuple(tuple(row[name] for name in columns) for row in rows[:MAX_ROWS])
        return cls(columns=columns, rows=shown, caption=caption, more_rows=len(rows) - len(shown))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A drawing of our own as an SVG element, and its content in words."""

    kind: ClassVar[str] = "curve"
    svg: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """How many images of each class (row) were taken for each class (column), int64 [K, K]."""

    kind: ClassVar[str] = "matrix"
    classes: tuple[str, ...]
    counts_KK: np.ndarray

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """The name of each class, and its counts with their share of the row in percent."""
        totals_K = np.maximum(self.counts_KK.sum(1), 1)
        percents_KK = np.rint(100 * self.counts_KK / totals_K[:, None]).astype(int)
        pairs = (
            list(zip(*row, strict=True)) for row in zip(self.counts_KK.tolist(), percents_KK.tolist(), strict=True)
        )
        return list(zip(self.classes, pairs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a file that browsers show, and the keys of the images of the dataset that can be seen in it."""

    data: bytes
    alt: str
    caption: str = ""
    keys: tuple[str, ...] = ()
    mark: Mark = ""
    moves: bool = False

    @property
    def media_type(self) -> str:
        """The type of the file, which is WebP or PNG."""
        return "image/png" if self.data.startswith(b"\x89PNG") else "image/webp"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures in a row that belong together. An image without a picture of it has a row of its own with its text."""

    pictures: tuple[Picture, ...] = ()
    title: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures in groups: small ones (`tiles`), in a line of their own (`rows`), or sheets (`wide`)."""

    kind: ClassVar[str] = "gallery"
    groups: tuple[Group, ...]
    layout: Literal["tiles", "rows", "wide"] = "tiles"
    caption: str = ""
    left_out: int = 0
    """How many pictures are left out, so that the report stays small."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of all groups."""
        return tuple(picture for group in self.groups for picture in group.pictures)

    def smaller(self) -> "Gallery":
        """Without moving pictures beside still ones, which are the heaviest; then half: of each group, then of them."""
        still = [tuple(picture for picture in group.pictures if not picture.moves) for group in self.groups]
        if any(kept and len(kept) < len(group.pictures) for kept, group in zip(still, self.groups, strict=True)):
            groups = tuple(
                replace(group, pictures=kept or group.pictures) for kept, group in zip(still, self.groups, strict=True)
            )
        elif any(len(group.pictures) > 1 for group in self.groups):
            groups = tuple(
                replace(group, pictures=group.pictures[: -(-len(group.pictures) // 2)]) for group in self.groups
            )
        else:
            groups = self.groups[: len(self.groups) // 2]
        kept = sum(len(group.pictures) for group in groups)
        return replace(self, groups=groups, left_out=self.left_out + len(self.pictures) - kept)


Block = Facts | Text | Table | Curve | Matrix | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report with a heading; a collapsed one is opened by a click."""

    name: str
    """Its anchor, a word."""
    title: str
    blocks: tuple[Block, ...]
    collapsed: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report says."""

    title: str
    subtitle: str
    headline: tuple[Fact, ...]
    """The few numbers that a reader wants first."""
    dataset: str
    """URL of the dataset whose images it shows."""
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(section for section in self.sections if section.blocks))
