"""List raw images with their labels and splits: image folders, archives and Parquet files of images on any store."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.config import DatasetConfig
from pipeline.dataset import kept_columns
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError
from pipeline.images import formats
from pipeline.progress import Progress, silent
from pipeline.source import containers, label_file, left_out, names
from pipeline.source.label_file import LabelFile
from pipeline.source.listing import NO_SPLIT, Batch, Listing
from pipeline.source.members import ScanOptions, has_labels, why_without_images
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile

_BATCH_ROWS = 10_000


class Scanner(Protocol):
    """Returns the members of each container, in the order of the containers."""

    def __call__(self, files: Sequence[StoredFile]) -> Iterable[pa.Table]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """The listing of a source, its containers, and counts."""

    listing: Listing
    containers: tuple[StoredFile, ...]
    left_out: dict[str, int]
    """Number of files without images, by extension, and of links that lead nowhere."""
    unlabelled: int
    """Number of images without a label."""
    unmatched_labels: int
    """Number of rows of the label file that name no image of the source."""
    problem: str | None
    """What cannot be read, containers and members of them: the first, and how many more there are."""
    kept_types: dict[str, str]
    """The type of each kept column."""


def list_source(
    config: DatasetConfig,
    listing: Listing,
    *,
    scan: Scanner | None = None,
    progress: Progress = silent,
) -> Source:
    """List the images of `config.raw` into an empty listing: a folder (any depth), an archive, or one image.

    docs/data.md has the rule of labels. `scan` reads the containers; none: one by one in this process. Raises IgptError
    when the source does not exist, is empty, has no image, or lacks the labels or splits that it should have.
    """
    url = objects.absolute(config.raw)
    objects.check_reachable(url)
    dataset = objects.absolute(config.dataset)
    if dataset.rstrip("/") == url.rstrip("/"):
        raise IgptError(f"raw and dataset are both {url}: give the dataset a folder of its own")
    labels = label_file.read(config)
    rows = _Rows(listing, labels, config, progress)
    files = _Files(url)
    for file in bulk.list_files(url, without=dataset, on_unusable=files.add_unusable):
        if labels is None or file.url != labels.url:
            files.add(file, rows)
    files.containers.sort(key=lambda named: named[0])
    scanned = (scan or _scan_here(config))([file for _, file in files.containers])
    for (name, file), members in zip(files.containers, scanned, strict=True):
        files.scanned(name, file, members)
        rows.add_container(name, file, members, files.class_of(name, config), is_source=files.are(file))
    rows.flush()
    files.check(rows)
    if labels is not None and labels.unmatched == len(labels):
        raise label_file.no_image_named(labels, rows.example)
    if rows.kept_types.empty:
        raise IgptError(
            f"{url}: no image has a value of {', '.join(rows.kept_types.empty)}, which keep_columns names; correct the "
            "name, or leave it out"
        )
    return Source(
        listing=listing,
        containers=tuple(file for _, file in files.containers),
        left_out=dict(+files.others),
        unlabelled=rows.unlabelled,
        unmatched_labels=0 if labels is None else labels.unmatched,
        problem=rows.problem,
        kept_types=rows.kept_types.types(),
    )


def _scan_here(config: DatasetConfig) -> Scanner:
    options = ScanOptions.of(config)

    def scan(files: Sequence[StoredFile]) -> Iterator[pa.Table]:
        return (containers.scan(file, options) for file in files)

    return scan


class _Files:
    """The files of a source, as they are listed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.containers: list[tuple[str, StoredFile]] = []
        self.count = 0
        self.others: Counter[str] = Counter()
        self._without_images: list[str] = []
        self._classes: Counter[str] | None = None

    def add(self, file: StoredFile, rows: "_Rows") -> None:
        name = names.below(self._url, file.url)
        if (file.size == 0 and file.url.endswith("/")) or names.is_hidden(name):
            return
        self.count += 1
        if formats.has_image_extension(name):
            rows.add(name, file)
        elif containers.is_container(name):
            self.containers.append((name, file))
        else:
            self.others[left_out.kind_of(name)] += 1

    def add_unusable(self, path: str, dangling: bool) -> None:
        kind = left_out.DANGLING_LINKS if dangling else left_out.SPECIAL_FILES
        self.others[kind] += not names.is_hidden(names.below(self._url, path))

    def scanned(self, name: str, file: StoredFile, members: pa.Table) -> None:
        """Note what a container has besides images; one without any is left out as a whole."""
        self.others.update(left_out.attached(members))
        if not len(members):
            self.others[left_out.kind_of(name)] += 1
            if why := why_without_images(members):
                self._without_images.append(f"{file.url}: {why}")

    def are(self, file: StoredFile) -> bool:
        """Whether a file is the whole source, so that its name is no part of the names of its members."""
        return self.count == 1 and file.url == self._url

    def class_of(self, name: str, config: DatasetConfig) -> str | None:
        """The class that the place of a container gives to the images at its top."""
        if self._classes is None:
            own = (name for name, _ in self.containers if not names.is_one_of_many(name))
            self._classes = Counter(name.rpartition("/")[0] for name in own)
        return names.class_of_archive(
            name,
            stands_for_a_class=self._classes[name.rpartition("/")[0]] > 1,
            label_column=config.label_column or "label",
        )

    def check(self, rows: "_Rows") -> None:
        """Raise IgptError when there is no image."""
        if rows.images:
            return
        if rows.problem is not None:
            raise IgptError(rows.problem)
        others = +self.others  # only what there is
        if not self.count and others:
            advice = "fetch what they point to, or give" if left_out.DANGLING_LINKS in others else "give"
            raise IgptError(f"{self._url}: {left_out.describe(others)}; {advice} another folder")
        if not self.count:
            raise IgptError(f"{self._url}: nothing is there; give the folder, prefix or file that holds the raw images")
        if self._without_images:
            raise IgptError(self._without_images[0])
        extensions = ", ".join([*sorted(formats.EXTENSIONS), *containers.EXTENSIONS])
        raise IgptError(
            f"{self._url}: none of its {self.count} files is an image, an archive or a Parquet file of images "
            f"({left_out.describe(others)}); by extension, these are read: {extensions}"
        )


class _Rows:
    """Collects rows into batches, with their labels and splits."""

    def __init__(self, listing: Listing, labels: LabelFile | None, config: DatasetConfig, progress: Progress) -> None:
        self._listing, self._labels, self._config, self._progress = listing, labels, config, progress
        self._batch = Batch()
        self._split_values: list[str | None] = []
        self._groups = 0
        self.images = self.unlabelled = 0
        self._first_problem: str | None = None
        self._problems = 0
        self.example = ""
        self.kept_types = kept_columns.ColumnTypes(config.keep_columns)
        self._nothing_kept = ScanOptions.of(config).nothing_kept

    @property
    def problem(self) -> str | None:
        """What cannot be read: the first, and how many more there are."""
        more = f" (and {self._problems - 1:,} more)" if self._problems > 1 else ""
        return None if self._first_problem is None else self._first_problem + more

    def add(self, name: str, file: StoredFile) -> None:
        """Append an object that is an image."""
        label = names.folder_of(name)
        self._append(name, file.url, -1, file.size, file.etag, label, None, self._nothing_kept, group=-1, whole=False)

    def add_container(
        self, name: str, file: StoredFile, members: pa.Table, top_label: str | None, *, is_source: bool
    ) -> None:
        """Append the members of a container; `top_label` is the class of those at its top if it has no labels."""
        prefix = "" if is_source else f"{name}/"
        whole = containers.is_sequential(file.url)
        label_of_all = None
        if not is_source and not has_labels(members) and members["label"].null_count == len(members):
            label_of_all = top_label
        previous_part = None
        columns = [members[field].to_pylist() for field in members.schema.names]
        for member, offset, length, etag, label, part, split, kept, problem in zip(*columns, strict=True):
            if problem is not None:
                self._add_problem(prefix + member if member else name, file, offset, length, problem, is_all=not member)
                continue
            if part != previous_part:
                self._groups += 1
                previous_part = part
            of_image = label_of_all if label is None else label
            self._append(
                prefix + member, file.url, offset, length, etag, of_image, split, kept, group=self._groups, whole=whole
            )

    def _add_problem(
        self, name: str, file: StoredFile, offset: int, length: int, problem: str, *, is_all: bool
    ) -> None:
        if self._first_problem is None:
            self._first_problem = f"{file.url}: {problem}" if is_all else f"{file.url}: {name}: {problem}"
        self._problems += 1
        offset, length, etag = (-1, file.size, file.etag) if is_all else (offset, length, "")
        kept = self._nothing_kept
        self._append(name, file.url, offset, length, etag, None, None, kept, group=-1, whole=False, problem=problem)

    def _append(
        self,
        name: str,
        url: str,
        offset: int,
        length: int,
        etag: str,
        label: str | None,
        split: str | None,
        kept: str | None,
        *,
        group: int,
        whole: bool,
        problem: str | None = None,
    ) -> None:
        batch = self._batch
        batch.names.append(name)
        batch.urls.append(url)
        batch.offsets.append(offset)
        batch.lengths.append(length)
        batch.etags.append(etag)
        batch.labels.append(label)
        batch.kept.append(kept)
        batch.problems.append(problem)
        batch.groups.append(group)
        batch.whole_groups.append(whole)
        self._split_values.append(split)
        if len(batch.names) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand the batch over to the listing."""
        batch, self._batch = self._batch, Batch()
        values, self._split_values = self._split_values, []
        is_image = [problem is None for problem in batch.problems]
        if self._labels is not None:
            rows = self._labels.rows_of(batch.names)
            batch.labels = self._labels.labels_of(rows)
            if self._labels.kept is not None:
                batch.kept = self._labels.kept_of(rows, batch.kept)
            if self._labels.splits is not None:
                values = self._labels.splits_of(rows)
        self._set_splits(batch, values)
        for kept in batch.kept:
            if kept is not None:
                self.kept_types.add(kept)
        images = sum(is_image)
        if images and not self.example:
            self.example = batch.names[is_image.index(True)]
        self.images += images
        self.unlabelled += sum(label is None and ok for label, ok in zip(batch.labels, is_image, strict=True))
        self._listing.add(batch)
        self._progress("list", len(self._listing), 0, "images")

    def _set_splits(self, batch: Batch, values: Sequence[str | None]) -> None:
        column = self._config.split_column
        if column is not None:
            cells = zip(batch.names, values, batch.problems, strict=True)
            batch.splits = [_split_of_value(*cell, column) for cell in cells]
        elif self._config.splits == "folders":
            for row, name in enumerate(batch.names):
                split, folder = _split_of_place(name, batch.problems[row])
                batch.splits.append(split)
                if batch.labels[row] == folder and self._labels is None:
                    batch.labels[row] = None  # a folder that names the split is no label
        else:
            batch.splits = [NO_SPLIT] * len(batch.names)


def _split_of_value(name: str, value: str | None, problem: str | None, column: str) -> int:
    """The split that a cell of the split column names, as a position in SPLITS; training for what cannot be read."""
    if value is None:
        value = names.of_partition(name, column)
    split = names.split_of_folder(value or "")
    if split is None and problem is None:
        said = "has no value" if value is None else f"is {value!r}"
        raise IgptError(f"split_column {column} of {name!r} {said}; it must be train, val or test for every image")
    return SPLITS.index(split or "train")


def _split_of_place(name: str, problem: str | None) -> tuple[int, str | None]:
    """The split named by a folder or container in a path, as a position in SPLITS, and that folder.

    Raises IgptError when none names a split; what cannot be read is in training then.
    """
    place = names.split_of(name)
    if place is None and problem is not None:
        return SPLITS.index("train"), None
    if place is None:
        raise IgptError(
            f"splits is 'folders' and {name!r} lies in no folder train, val or test; move it into one or set splits to "
            "hash"
        )
    return SPLITS.index(place[0]), place[1]
