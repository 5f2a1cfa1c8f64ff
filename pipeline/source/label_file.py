"""A file that names the class of each image, and its split if wanted: CSV, TSV or Parquet."""

import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config import DatasetConfig
from pipeline.dataset import kept_columns
from pipeline.dataset.keys import key_of
from pipeline.errors import IgptError, first_line
from pipeline.source.class_names import check_column, check_single, class_name, names_in_metadata
from pipeline.store import objects
from pipeline.store.path_text import to_text

_FILE_NAME = "file_name"
_ENDINGS = (".csv", ".tsv", ".parquet")
_BLOCK_BYTES = 64 * 1024 * 1024  # the longest row
_NO_TABLE = {
    b"PK\3\4": "a workbook or a zip archive",
    b"\x1f\x8b": "compressed",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"{": "JSON",
    b"[": "JSON",
}


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """The rows of a file of labels, [n], in some 20 bytes each."""

    url: str
    hashes: np.ndarray  # uint64, hashes of the names, ascending
    composed: np.ndarray  # uint64, hashes of the names in Unicode's composed form, ascending; without those of two rows
    composed_rows: np.ndarray  # int64, the rows of `composed`
    labels: np.ndarray  # int32, positions in `classes`; -1: no label
    classes: tuple[str, ...]
    splits: list[str | None] | None
    """What the split column says of each row; None without one."""
    kept: list[str] | None
    """JSON of the kept columns of each row; None without any of them."""
    example: str
    """The first name."""
    matched: np.ndarray = field(repr=False)  # bool, whether an image of the row was looked up

    def __len__(self) -> int:
        return len(self.hashes)

    def rows_of(self, image_names: Sequence[str]) -> np.ndarray:
        """The row of each image, -1 for one that the file does not name; int64 [m]."""
        if not len(self) or not image_names:
            return np.full(len(image_names), -1)
        rows = _find(self.hashes, np.array([_hash(name) for name in image_names], np.uint64))
        # macOS programs decompose accents in file names into a letter and a mark, label files usually have one letter.
        other = [i for i, name in enumerate(image_names) if rows[i] < 0 and not name.isascii()]
        if other:
            wanted = np.array([_hash(_composed(image_names[i])) for i in other], np.uint64)
            positions = _find(self.composed, wanted)
            rows[other] = np.where(positions < 0, -1, self.composed_rows[positions])
        self.matched[rows[rows >= 0]] = True
        return rows

    def labels_of(self, rows: np.ndarray) -> list[str | None]:
        """The class of each row, None without one and for -1."""
        numbers = np.where(rows < 0, -1, self.labels[rows]) if len(self) else rows
        return [None if number < 0 else self.classes[number] for number in numbers.tolist()]

    def splits_of(self, rows: np.ndarray) -> list[str | None]:
        """What the split column says of each row, None for -1."""
        assert self.splits is not None
        return [None if row < 0 else self.splits[row] for row in rows.tolist()]

    def kept_of(self, rows: np.ndarray, others: Sequence[str | None]) -> list[str | None]:
        """The kept columns of each row; those of `others` for -1."""
        assert self.kept is not None
        return [other if row < 0 else self.kept[row] for row, other in zip(rows.tolist(), others, strict=True)]

    @property
    def unmatched(self) -> int:
        """Number of rows whose image was not looked up."""
        return int((~self.matched).sum())


def read(config: DatasetConfig) -> LabelFile | None:
    """The file that `config.labels` names, or None without one. Raises IgptError when it is unusable."""
    if config.labels is None:
        return None
    url = objects.absolute(config.labels)
    if not url.lower().endswith(_ENDINGS):  # else errors would show lines of any file that this process can read
        raise IgptError(f"{url}: a file of labels must be one of {', '.join(_ENDINGS)} by its name; correct labels")
    try:
        data = objects.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError):
        raise IgptError(f"{url}: no label file there; correct labels or leave it empty") from None
    label = config.label_column or "label"
    wanted = {_FILE_NAME: "labels", label: "label_column"}
    if config.split_column is not None:
        wanted[config.split_column] = "split_column"
    is_parquet = url.lower().endswith(".parquet")
    table = _parquet(data, url) if is_parquet else _text_table(data, url)
    missing = [name for name in wanted if name not in table.column_names]
    if config.split_column in missing and len(missing) == 1:
        missing, wanted = [], {name: setting for name, setting in wanted.items() if name != config.split_column}
    if missing:
        raise IgptError(
            f"{url}: no column {' or '.join(sorted(missing))} among {_listed(table.column_names)}; "
            "name the columns file_name (the path below the source) and label, or set label_column"
        )
    if not len(table):
        raise IgptError(f"{url}: it has no rows; name images in it, or leave labels empty")
    for name, setting in wanted.items():
        check_column(table.schema, name, url, setting)
    kept = _kept(table, config.keep_columns, url, as_text=not is_parquet)
    return _of_table(config, table, url, label, config.split_column if config.split_column in wanted else None, kept)


def _listed(columns: Sequence[str]) -> str:
    """Names of columns in one line, in quotes where they would not be told from others."""
    return ", ".join(name if name == name.strip() and "," not in name else repr(name) for name in columns)


def _kept(table: pa.Table, keep_columns: Sequence[str], url: str, *, as_text: bool) -> list[str] | None:
    """JSON of the kept columns of each row; None if the file has none of them."""
    there = [name for name in keep_columns if name in table.column_names]
    if not there:
        return None
    for name in there:
        check_single(table.schema, name, url)
    columns = [table[name].to_pylist() for name in there]
    if as_text:
        columns = [kept_columns.typed_texts(column) for column in columns]
    rows = (dict(zip(there, row, strict=True)) for row in zip(*columns, strict=True))
    return [kept_columns.to_json(row, keep_columns) for row in rows]


def _of_table(
    config: DatasetConfig, table: pa.Table, url: str, label: str, split: str | None, kept: list[str] | None
) -> LabelFile:
    root = f"{objects.absolute(config.raw).rstrip('/')}/"
    values = table[_FILE_NAME].to_pylist()
    missing = next((row for row, value in enumerate(values, 1) if value is None or value == ""), None)
    if missing is not None:
        raise IgptError(f"{url}: row {missing} has no {_FILE_NAME}; write the path of its image, or remove the row")
    file_names = [_name_of(value, root) for value in values]
    hashes = np.array([_hash(name) for name in file_names], np.uint64)
    order = np.argsort(hashes, kind="stable")
    twice = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(twice):
        raise IgptError(f"{url}: {file_names[order[twice[0]]]!r} is named twice; keep one of its rows")
    composed = np.array([_hash(_composed(file_names[row])) for row in order], np.uint64)
    composed_rows = np.argsort(composed, kind="stable")
    composed = composed[composed_rows]
    same = composed[1:] == composed[:-1]
    ambiguous = np.concatenate([same, [False]]) | np.concatenate([[False], same]) if len(composed) else same
    composed, composed_rows = composed[~ambiguous], composed_rows[~ambiguous]
    known = names_in_metadata(table.schema, label)
    numbers: dict[str, int] = {}
    labels = [class_name(value, known) for value in table[label].to_pylist()]
    of_rows = [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in labels]
    splits = None
    if split is not None:
        values = [class_name(value) for value in table[split].to_pylist()]
        splits = [values[row] for row in order.tolist()]
    return LabelFile(
        url=url,
        hashes=hashes[order],
        composed=composed,
        composed_rows=composed_rows,
        labels=np.array(of_rows, np.int32)[order],
        classes=tuple(numbers),
        splits=splits,
        kept=None if kept is None else [kept[row] for row in order.tolist()],
        example=next(iter(file_names), ""),
        matched=np.zeros(len(hashes), bool),
    )


def _parquet(data: bytes, url: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise IgptError(f"{url}: not a readable Parquet file ({first_line(error)}); write it again") from None


def _text_table(data: bytes, url: str) -> pa.Table:
    """A CSV or TSV file, every column as text. Raises IgptError for one that is not UTF-8 or has ragged rows."""
    for signature, kind in _NO_TABLE.items():
        if data.startswith(signature):
            raise IgptError(f"{url}: it is {kind}; save it as CSV UTF-8")
    if b"\0" in data or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise IgptError(f"{url}: looks like UTF-16, and a file of labels must be UTF-8; save it as CSV UTF-8")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise IgptError(
            f"{url}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as CSV UTF-8"
        ) from None
    is_tsv = url.lower().endswith(".tsv")
    if not is_tsv:
        _check_delimiter(data, url)
    parse = pyarrow.csv.ParseOptions(delimiter="\t" if is_tsv else ",", newlines_in_values=True)
    blocks = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        header = pyarrow.csv.open_csv(io.BytesIO(data), blocks, parse_options=parse).schema.names
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        return pyarrow.csv.read_csv(io.BytesIO(data), blocks, parse_options=parse, convert_options=as_text)
    except pa.ArrowException as error:
        raise IgptError(
            f"{url}: not a readable CSV file ({_without_values(first_line(error))}); give it a header and as many "
            "values in each row, in quotes where they have a comma"
        ) from None


def _without_values(reason: str) -> str:
    """What Arrow says, without the text of the row, which it quotes."""
    return re.sub(r"(Row #\d+: Expected \d+ columns, got \d+): .*", r"\1", reason)


def _check_delimiter(data: bytes, url: str) -> None:
    """Raise IgptError when the header of a CSV file has semicolons or tabs, as spreadsheets write, and no comma."""
    header = next((line for line in data.splitlines() if line.strip()), b"")
    if b"," not in header and b";" in header:
        raise IgptError(f"{url}: its columns are separated by semicolons; save it with commas")
    if b"," not in header and b"\t" in header:
        raise IgptError(f"{url}: its columns are separated by tabs; name it .tsv, or save it with commas")


def _name_of(value: object, root: str) -> str:
    """The name of an image as the listing has it; one that was given with the address of the source is cut."""
    text = to_text(value.decode("utf-8", "surrogateescape")) if isinstance(value, bytes) else str(value)
    return text.removeprefix(root).removeprefix("./")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _hash(name: str) -> int:
    return int(key_of(name)[:16], 16)


def _find(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of each wanted number, -1 where it is missing; int64 [n]."""
    if not len(ascending):
        return np.full(len(wanted), -1)
    positions = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[positions] == wanted, positions, -1)


def no_image_named(labels: LabelFile, image_name: str) -> IgptError:
    """The error of a file that names no image of the source, one of which is given."""
    return IgptError(
        f"{labels.url}: none of its {len(labels)} rows names an image of the source: it has {labels.example!r}, and "
        f"the source {image_name!r}; write paths below the source into file_name"
    )
