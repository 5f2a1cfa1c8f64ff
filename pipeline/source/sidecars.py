"""What WebDataset has beside the images of a tar or zip: their classes, splits and columns."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.dataset import kept_columns
from pipeline.errors import IgptError
from pipeline.source import left_out, names
from pipeline.source.class_names import class_name
from pipeline.source.members import Members, ScanOptions, without_images

_LONGEST_LABEL_BYTES = 1000
_LARGEST_JSON_BYTES = 1 << 20


class Sidecars:
    """What WebDataset has beside the images of an archive, by sample: {sample}.cls with the class, {sample}.json.

    The JSON has the columns that settings name.
    """

    def __init__(self, options: ScanOptions) -> None:
        self._options = options
        self._others: Counter[str] = Counter()  # members that are neither images nor beside one, by extension
        self._archive: str | None = None  # the first of these that is an archive
        self._labels: dict[str, str | None] = {}
        self._splits: dict[str, str | None] = {}
        self._kept: dict[str, str] = {}

    def leave_out(self, name: str) -> None:
        """Count a member that is neither an image nor beside one."""
        self._others[left_out.kind_of(name)] += 1
        if self._archive is None and names.is_archive(name):
            self._archive = name

    def wants(self, name: str, size: int) -> bool:
        """Whether a member is one of these."""
        options, lower = self._options, name.lower()
        has_columns = bool(options.keep_columns or options.label_column or options.split_column)
        is_json = has_columns and lower.endswith(".json") and size <= _LARGEST_JSON_BYTES
        return is_json or (lower.endswith(".cls") and size <= _LONGEST_LABEL_BYTES)

    def add(self, name: str, data: bytes) -> None:
        """Take in a member. Raises IgptError for a label or split that is a list."""
        if name.lower().endswith(".cls"):
            text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
            self._labels.setdefault(name[:-4], class_name(text))
            return
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            fields = None
        known, options = fields if isinstance(fields, dict) else {}, self._options
        sample = name[:-5]
        self._kept[sample] = kept_columns.to_json(known, options.keep_columns)
        for column, values in ((options.label_column, self._labels), (options.split_column, self._splits)):
            if column is not None and column in known:
                if isinstance(known[column], list | dict):
                    raise IgptError(f"{name}: {column} is a list, and an image has one value; choose another column")
                values[sample] = class_name(known[column])

    def table(self, members: Members) -> pa.Table:
        """The scan of the archive: the class of an image is what is beside it, else the name of its folder."""
        if not members.names and self._archive is not None:
            why = f"it holds archives, such as {self._archive}, and no image; unpack it and give the folder"
            return left_out.attach(without_images(why), self._others)
        labels, splits, kept = [], [], []
        for name in members.names:
            sample = self._sample(self._labels, name)
            labels.append(names.folder_of(name) if sample is None else self._labels[sample])
            splits.append(self._splits.get(self._sample(self._splits, name) or ""))
            kept.append(self._kept.get(self._sample(self._kept, name) or "", self._options.nothing_kept))
        members.names = _unique(members.names)
        table = members.table(labels, splits=splits, kept=kept, has_labels=bool(self._labels))
        return left_out.attach(table, self._others)

    @staticmethod
    def _sample(known: Mapping[str, object], name: str) -> str | None:
        """The sample that an image belongs to, if that is known."""
        # WebDataset ends a key at the first dot; some tools write keys with dots.
        samples = (name.rpartition(".")[0], names.sample_of(name)) if known else ()
        return next((sample for sample in samples if sample in known), None)


def _unique(member_names: Sequence[str]) -> list[str]:
    """Make names unique by appending #2, #3, ...: an archive may hold several members of one name."""
    counts: Counter[str] = Counter()
    unique_names = []
    for name in member_names:
        counts[name] += 1
        unique_names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return unique_names
