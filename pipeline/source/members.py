"""The scan of a container: a table of its images, and of members that look like images and cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.config import DatasetConfig
from pipeline.dataset import kept_columns
from pipeline.errors import IgptError

MEMBERS = pa.schema(
    [
        ("name", pa.string()),  # of the member in the container; unique there, and empty for the container as a whole
        ("offset", pa.int64()),  # tar: offset of its bytes; zip: of its header; Parquet: number of its row
        ("length", pa.int64()),  # bytes
        ("etag", pa.string()),  # digest of its bytes
        ("label", pa.string()),  # from the container, or null
        ("part", pa.int32()),  # Parquet: row group; other containers: 0
        ("split", pa.string()),  # what the split column says, or null
        ("kept", pa.string()),  # JSON of the kept columns; null when none are kept
        ("problem", pa.string()),  # why it cannot be read; null for an image
    ]
)
# Whether the container says of each image which class it has: then neither its name nor its folder does.
_LABELS = b"labels"
_NO_IMAGES = b"no_images"


class DamagedContainerError(IgptError):
    """A container cannot be read as a whole. Its images are lost, those of other containers are not."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """The settings that decide what a scan finds."""

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    keep_columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: DatasetConfig) -> "ScanOptions":
        """The options of a dataset."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    @property
    def nothing_kept(self) -> str | None:
        """The kept columns of an image that has none of them, as JSON."""
        return kept_columns.to_json({}, self.keep_columns) if self.keep_columns else None


def member_etag(checksum: str) -> str:
    """The etag of a member: the first 128 bits of the SHA-256 of its bytes."""
    return checksum[:32]


@dataclass(kw_only=True)
class Members:
    """The rows of a scan, as they come by."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)

    def add(self, name: str, offset: int, length: int, etag: str, *, part: int = 0, problem: str | None = None) -> None:
        """Append an image, or a member with a problem."""
        self.names.append(name)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.etags.append(etag)
        self.parts.append(part)
        self.problems.append(problem)

    def table(
        self,
        labels: Sequence[str | None],
        *,
        has_labels: bool,
        splits: Sequence[str | None] | None = None,
        kept: Sequence[str | None] | None = None,
    ) -> pa.Table:
        """The scan; schema MEMBERS."""
        columns = [self.names, self.offsets, self.lengths, self.etags, labels, self.parts]
        nothing = [None] * len(self.names)
        table = pa.table([*columns, splits or nothing, kept or nothing, self.problems], schema=MEMBERS)
        return table.replace_schema_metadata({_LABELS: b"own"}) if has_labels else table


class Links:
    """Links in an archive, which are other names of its members."""

    def __init__(self) -> None:
        self._in_order: list[tuple[str, str]] = []

    def add(self, name: str, target: str) -> None:
        """Note a link from one name to another."""
        self._in_order.append((name, target))

    def targets(self) -> set[str]:
        """The names of what links lead to, over further links."""
        leads_to = dict(self._in_order)
        return {self._end(target, leads_to) for _, target in self._in_order}

    def resolve(self, members: Members, others: Mapping[str, tuple[int, int, str]]) -> None:
        """Append each link to the members, with the address of what it leads to, or with a problem.

        `others` are offset, length and etag of members that are no images by their names.
        """
        row_of = {name: row for row, name in enumerate(members.names)}
        leads_to = dict(self._in_order)
        for name, target in self._in_order:
            end = self._end(target, leads_to)
            if (row := row_of.get(end)) is not None:
                address = members.offsets[row], members.lengths[row], members.etags[row]
                members.add(name, *address, problem=members.problems[row])
            elif end in others:
                members.add(name, *others[end])
            else:
                why = f"a link to {target}, which is not in the archive; write the archive anew"
                members.add(name, 0, 0, "", problem=why)

    @staticmethod
    def _end(target: str, leads_to: Mapping[str, str]) -> str:
        """What a link leads to over further links; a loop ends somewhere in it."""
        passed: set[str] = set()
        while target in leads_to and target not in passed:
            passed.add(target)
            target = leads_to[target]
        return target


def is_damage(error: Exception) -> bool:
    """Whether an exception of a reader tells of the file's content, and not of the store that it comes from.

    For damaged files readers raise exceptions of any kind.
    """
    of_store = isinstance(error, FileNotFoundError | PermissionError | IgptError)
    return not of_store and not (isinstance(error, OSError) and error.errno is not None)


def has_labels(members: pa.Table) -> bool:
    """Whether the container has labels of its own, be it for some images only."""
    return _LABELS in (members.schema.metadata or {})


def damaged(why: str) -> pa.Table:
    """The scan of a container that cannot be read."""
    members = Members()
    members.add("", 0, 0, "", problem=why)
    return members.table([None], has_labels=True)


def without_images(why: str) -> pa.Table:
    """The scan of a file that is whole and holds no images."""
    return MEMBERS.empty_table().replace_schema_metadata({_NO_IMAGES: why})


def why_without_images(members: pa.Table) -> str | None:
    """Why a file holds no images; None when it is one that may."""
    why = (members.schema.metadata or {}).get(_NO_IMAGES)
    return None if why is None else why.decode()
