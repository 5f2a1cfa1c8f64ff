"""List raw images with their labels and splits: image folders, tars and Parquet files of images on any store."""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config import DatasetConfig
from pipeline.dataset import kept_columns
from pipeline.dataset.keys import key_of
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError
from pipeline.images import formats
from pipeline.progress import Progress, silent
from pipeline.source import containers, left_out
from pipeline.source.listing import NO_SPLIT, Batch, Listing
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile

_BATCH_ROWS = 10_000
_SPLIT_FOLDER = re.compile(r"(train|training|val|valid|validation|dev|test)(?=[-_.]|$)", re.IGNORECASE)
_SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}


class Scanner(Protocol):
    """Returns the members of each container, in the order of the containers."""

    def __call__(self, files: Sequence[StoredFile]) -> Iterable[pa.Table]: ...


def scan_here(files: Sequence[StoredFile]) -> Iterator[pa.Table]:
    """Scan containers one by one in this process."""
    return map(containers.scan, files)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The listing of a source, its containers, and counts."""

    listing: Listing
    containers: tuple[StoredFile, ...]
    left_out: dict[str, int]
    """Number of files that are neither images nor containers by their names, by extension."""
    unlabelled: int
    """Number of images that the label file does not name; 0 if there is none."""
    kept_types: dict[str, str]
    """The type of each kept column."""


def list_source(
    config: DatasetConfig,
    listing: Listing,
    *,
    scan: Scanner = scan_here,
    progress: Progress = silent,
) -> Source:
    """List the images of `config.raw` into an empty listing: a folder (any depth), a tar or Parquet file, or one image.

    The class of an image comes from the label file, else from its container, else it is the name of its folder. Raises
    IgptError when the source does not exist, is empty, has no image, or lacks the labels or splits that it should have.
    """
    url = objects.absolute(config.raw)
    objects.check_reachable(url)
    dataset = objects.absolute(config.dataset)
    if dataset.rstrip("/") == url.rstrip("/"):
        raise IgptError(f"raw and dataset are both {url}: give the dataset a folder of its own")
    labels = None if config.labels is None else Labels.read(config.labels, config.keep_columns)
    rows = _Rows(listing, labels, config, progress)
    container_files: list[tuple[str, StoredFile]] = []
    files, others = 0, Counter[str]()
    label_file = None if config.labels is None else objects.absolute(config.labels)

    def count_link(path: str) -> None:
        others[left_out.DANGLING_LINKS] += not containers.is_hidden(path[len(url) :].lstrip("/"))

    for file in bulk.list_files(url, without=dataset, on_dangling=count_link):
        name = file.url[len(url) :].lstrip("/") or file.url.rsplit("/", 1)[-1]
        if (file.size == 0 and file.url.endswith("/")) or containers.is_hidden(name) or file.url == label_file:
            continue
        files += 1
        if formats.has_image_extension(name):
            rows.add(name, file.url, -1, file.size, file.etag, containers.folder_of(name))
        elif containers.is_container(name):
            container_files.append((name, file))
        else:
            others[left_out.kind_of(name)] += 1
    container_files.sort()
    is_source = files == 1 and len(container_files) == 1 and container_files[0][1].url == url
    scanned = scan([file for _, file in container_files])
    for (name, file), members in zip(container_files, scanned, strict=True):
        rows.add_container("" if is_source else f"{name}/", file, members)
        others.update(left_out.attached(members))
    rows.flush()
    if not files and others:
        raise IgptError(f"{url}: {left_out.describe(others)}; fetch what they point to, or give another folder")
    if not files:
        raise IgptError(f"{url}: nothing is there; give the folder, prefix or file that holds the raw images")
    if not len(listing):
        raise IgptError(
            f"{url}: none of its {files} files is an image, a tar or a Parquet file of images "
            f"(by extension: {', '.join(sorted(formats.EXTENSIONS))}, {', '.join(containers.EXTENSIONS)})"
        )
    if rows.kept_types.empty:
        raise IgptError(
            f"{url}: no image has a value of {', '.join(rows.kept_types.empty)}, which keep_columns names; correct the "
            "name, or leave it out"
        )
    return Source(
        listing=listing,
        containers=tuple(file for _, file in container_files),
        left_out=dict(others),
        unlabelled=rows.unlabelled,
        kept_types=rows.kept_types.types(),
    )


class _Rows:
    """Collects rows into batches, with their labels and splits."""

    def __init__(self, listing: Listing, labels: "Labels | None", config: DatasetConfig, progress: Progress) -> None:
        self._listing, self._labels, self._config, self._progress = listing, labels, config, progress
        self._batch = Batch()
        self._groups = 0
        self.unlabelled = 0
        self.kept_types = kept_columns.ColumnTypes(config.keep_columns)
        self._nothing_kept = containers.nothing_kept(config.keep_columns)

    def add(self, name: str, url: str, offset: int, length: int, etag: str, label: str | None) -> None:
        self._append(name, url, offset, length, etag, label, self._nothing_kept, group=-1, whole=False)

    def add_container(self, prefix: str, file: StoredFile, members: pa.Table) -> None:
        whole = file.url.lower().endswith(".parquet")
        previous_part = None
        columns = [members[field].to_pylist() for field in ("name", "offset", "length", "etag", "label", "part")]
        kept = members["kept"].to_pylist() if self._config.keep_columns else [None] * len(members)
        for name, offset, length, etag, label, part, values in zip(*columns, kept, strict=True):
            if part != previous_part:
                self._groups += 1
                previous_part = part
            self._append(prefix + name, file.url, offset, length, etag, label, values, group=self._groups, whole=whole)

    def _append(
        self,
        name: str,
        url: str,
        offset: int,
        length: int,
        etag: str,
        label: str | None,
        kept: str | None,
        *,
        group: int,
        whole: bool,
    ) -> None:
        batch = self._batch
        split = NO_SPLIT
        if self._config.splits == "folders":
            split, label = _split_of(name, label)
        batch.names.append(name)
        batch.urls.append(url)
        batch.offsets.append(offset)
        batch.lengths.append(length)
        batch.etags.append(etag)
        batch.labels.append(label)
        batch.kept.append(kept)
        batch.splits.append(split)
        batch.groups.append(group)
        batch.whole_groups.append(whole)
        if len(batch.names) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        batch, self._batch = self._batch, Batch()
        if self._labels is not None:
            batch.labels = self._labels.of(batch.names)
            self.unlabelled += batch.labels.count(None)
            if self._labels.kept is not None:
                batch.kept = self._labels.kept_of(batch.names, batch.kept)
        for kept in batch.kept:
            if kept is not None:
                self.kept_types.add(kept)
        self._listing.add(batch)
        self._progress("list", len(self._listing), 0, "images")


def _split_of(name: str, label: str | None) -> tuple[int, str | None]:
    """The split named by a folder or container in a path, as a position in SPLITS, and the label.

    A folder that names the split is no label. Raises IgptError when no folder names a split.
    """
    for part in name.split("/")[:-1]:
        split = _SPLIT_FOLDER.match(part)
        if split:
            word = split.group(1).lower()
            return SPLITS.index(_SPLIT_NAMES.get(word, word)), None if label == part else label
    raise IgptError(
        f"splits is 'folders' and {name!r} lies in no folder train, val or test; move it into one or set splits to hash"
    )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The contents of a label file, in 12 bytes per image."""

    hashes: np.ndarray  # uint64 [n], hashes of the names, ascending
    numbers: np.ndarray  # int32 [n], positions in `classes`
    classes: tuple[str, ...]
    kept: list[str] | None
    """JSON of the kept columns by row; None if the file has none of them."""

    @classmethod
    def read(cls, url: str, keep_columns: Sequence[str] = ()) -> "Labels":
        """Read a CSV or Parquet file with the columns file_name and label. Raises IgptError when it is unusable."""
        url = objects.absolute(url)
        try:
            data = io.BytesIO(objects.read_bytes(url))
        except (FileNotFoundError, IsADirectoryError):
            raise IgptError(f"{url}: no label file there; correct labels or leave it empty") from None
        try:
            is_parquet = url.lower().endswith(".parquet")
            # Kept columns are read as text, and numbers made of it only where that loses nothing.
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(keep_columns, pa.string()))
            table = pq.read_table(data) if is_parquet else pyarrow.csv.read_csv(data, convert_options=as_text)
        except pa.ArrowInvalid as error:
            raise IgptError(f"{url}: not a readable CSV or Parquet file ({error})") from None
        missing = {"file_name", "label"} - set(table.column_names)
        if missing:
            raise IgptError(
                f"{url}: no column {' or '.join(sorted(missing))} among {', '.join(table.column_names)}; "
                "name the columns file_name (the path below the source) and label"
            )
        encoded = pc.dictionary_encode(pc.cast(table["label"], pa.string()).combine_chunks())
        numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
        names = pc.cast(table["file_name"], pa.string()).to_pylist()
        hashes = np.array([_name_hash(str(name)) for name in names], np.uint64)
        order = np.argsort(hashes, kind="stable")
        twice = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if len(twice):
            raise IgptError(f"{url}: {names[order[twice[0]]]!r} is named twice; keep one of its rows")
        return cls(
            hashes=hashes[order],
            numbers=numbers[order],
            classes=tuple(encoded.dictionary.to_pylist()),
            kept=_kept(table.take(order), keep_columns, as_text=not is_parquet),
        )

    def of(self, names: Sequence[str]) -> list[str | None]:
        """The label of each name, None if the file has none."""
        numbers = [-1 if row < 0 else self.numbers[row] for row in self._rows(names)]
        return [None if number < 0 else self.classes[number] for number in numbers]

    def kept_of(self, names: Sequence[str], others: Sequence[str | None]) -> list[str | None]:
        """The kept columns of each name; those of `others` if the file has no row for it."""
        assert self.kept is not None
        return [other if row < 0 else self.kept[row] for row, other in zip(self._rows(names), others, strict=True)]

    def _rows(self, names: Sequence[str]) -> list[int]:
        """The row of each name, -1 if the file has none."""
        if not len(self.hashes) or not names:
            return [-1] * len(names)
        wanted = np.array([_name_hash(name) for name in names], np.uint64)
        positions = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[positions] == wanted, positions, -1).tolist()


def _kept(table: pa.Table, keep_columns: Sequence[str], *, as_text: bool) -> list[str] | None:
    """JSON of the kept columns of each row of a label file; None if it has none of them."""
    there = [name for name in keep_columns if name in table.column_names]
    if not there:
        return None
    columns = [table[name].to_pylist() for name in there]
    if as_text:
        columns = [kept_columns.typed_texts(column) for column in columns]
    rows = (dict(zip(there, row, strict=True)) for row in zip(*columns, strict=True))
    return [kept_columns.to_json(row, keep_columns) for row in rows]


def _name_hash(name: str) -> int:
    # macOS programs decompose accents in file names into a letter and a mark, label files usually have one character.
    return int(key_of(unicodedata.normalize("NFC", name))[:16], 16)
