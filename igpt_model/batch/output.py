"""The folder that a batch writes: parts that are created once, and a manifest, which is written last.

    {out}/job.json                    what is computed, of which images; created first, so that other work is refused
    {out}/parts/{number}-{hash}.parquet     a row an image; the hash is that of its images and of the work
    {out}/rejected/{number}-{hash}.parquet  a row an image that cannot be read, with the reason
    {out}/manifest.json               what is there; created when all parts are

A part appears whole, by a conditional create: of two tasks that make the same part, the first one's counts, and the
other takes over what it wrote. A part says in its own metadata which images it had to reject.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IgptError, first_line
from pipeline.hashing import digest
from pipeline.samples.parts import Part, RejectedImage
from pipeline.store import objects
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes

JOB, MANIFEST = "job.json", "manifest.json"
PARTS, REJECTED = "parts", "rejected"
_FORMAT = 1
_METADATA_KEY = b"igpt"
_READS_AT_ONCE = 8
_OF_FEW_VALUES = ["split", "label", "predicted"]
_REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "uri", "reason", "detail")])


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part that is there."""

    name: str
    images: int
    """Rows."""
    bytes: int
    reasons: Mapping[str, int]
    """The number of rejected images by reason."""
    rejected: tuple[RejectedImage, ...] = ()
    """These images."""

    @classmethod
    def of(cls, name: str, images: int, size: int, rejected: Sequence[RejectedImage]) -> "WrittenPart":
        """A part with its rejected images."""
        reasons = Counter(row.reason for row in rejected)
        return cls(name=name, images=images, bytes=size, reasons=dict(reasons), rejected=tuple(rejected))

    def without_rows(self) -> "WrittenPart":
        """The part with no more than the counts, of which a batch may hold many."""
        return replace(self, rejected=())


def name_of(part: Part, identity: Mapping[str, object]) -> str:
    """The name of a part, without extension: its number, and a hash of its images and the work."""
    return f"{part.number:06d}-{digest([part.digest, identity])[:16]}"


def check_usable(out: str) -> None:
    """Raise IgptError when a folder holds other things than a batch."""
    if objects.exists(objects.join(out, JOB)):
        return
    ours = tuple(f"{objects.join(out, folder)}/" for folder in ("lease", "scans"))
    first = next((file for file in objects.list_files(out) if not file.url.startswith(ours)), None)
    if first is not None:
        raise IgptError(f"{out}: is not empty, and holds no batch; give a new folder")


def begin(out: str, identity: Mapping[str, object], about: Mapping[str, object]) -> None:
    """Claim a folder for a job, or find that it is the job's already. `about` is for people.

    Raises IgptError when the folder holds another job, or other things.
    """
    text = _to_json({"format": _FORMAT, "identity": identity, "about": about})
    try:
        check_usable(out)
        create_bytes(objects.join(out, JOB), text)
        return
    except AlreadyExistsError:
        before = _read_json(out, JOB)
    if before.get("format") != _FORMAT:
        raise IgptError(f"{out}: holds a batch of another version of igpt-pipeline; give another folder")
    known = before.get("identity", {})
    for name in {**identity, **known}:
        if known.get(name) != identity.get(name):
            raise IgptError(
                f"{out}: holds a batch whose {name} is {_short(known.get(name))}, not {_short(identity.get(name))}; "
                "give another folder, or remove it first"
            )


def manifest_of(out: str) -> dict[str, Any] | None:
    """The manifest of a batch that is complete; None: it is not."""
    return _read_json(out, MANIFEST) if objects.exists(objects.join(out, MANIFEST)) else None


def written_parts(out: str, names: Sequence[str]) -> dict[str, WrittenPart]:
    """Those of the parts that are there, by name, without their rejected images, whose tables are written."""
    sizes = {file.url: file.size for file in objects.list_files(objects.join(out, PARTS))}
    there = [name for name in names if _url(out, name) in sizes]

    def take_over(name: str) -> WrittenPart:
        part = _read_part(out, name, sizes[_url(out, name)])
        write_rejected(out, part)
        return part.without_rows()

    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return dict(zip(there, pool.map(take_over, there), strict=True))


def _read_part(out: str, name: str, size: int) -> WrittenPart:
    url = _url(out, name)
    try:
        file = _opened(url, size)
        rejected = json.loads((file.schema_arrow.metadata or {})[_METADATA_KEY])["rejected"]
        images = file.metadata.num_rows
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise IgptError(f"{url}: damaged ({first_line(error)}); delete it, and run the same command again") from None
    return WrittenPart.of(name, images, size, [RejectedImage(**row) for row in rejected])


def create_part(
    out: str,
    name: str,
    table: pa.Table,
    rejected: Sequence[RejectedImage],
    identity: Mapping[str, object],
) -> WrittenPart:
    """Write a part, unless it is there; returns what is there then."""
    metadata = {"identity": identity, "rejected": [asdict(row) for row in rejected]}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_METADATA_KEY: _to_json(metadata)}),
        buffer,
        compression="zstd",
        use_dictionary=[column for column in _OF_FEW_VALUES if column in table.column_names],
        write_page_checksum=True,
    )
    data = buffer.getvalue()
    try:
        create_bytes(_url(out, name), data)
    except AlreadyExistsError:
        return _read_part(out, name, objects.size(_url(out, name)) or 0)
    return WrittenPart.of(name, table.num_rows, len(data), rejected)


def write_rejected(out: str, part: WrittenPart) -> None:
    """Write the table of the images that a part had to reject, if there are any."""
    if part.rejected:
        table = pa.Table.from_pylist([asdict(row) for row in part.rejected], schema=_REJECTED_SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        objects.write_bytes(_rejected_url(out, part.name), buffer.getvalue())


def remove_others(out: str, parts: Iterable[WrittenPart]) -> None:
    """Remove parts of images that have changed since an earlier, interrupted run."""
    kept = set()
    for part in parts:
        kept |= {_url(out, part.name), *([_rejected_url(out, part.name)] if part.reasons else [])}
    for folder in (PARTS, REJECTED):
        for file in objects.list_files(objects.join(out, folder)):
            if file.url not in kept:
                objects.delete(file.url)


def create_manifest(
    out: str,
    parts: Sequence[WrittenPart],
    *,
    identity: Mapping[str, object],
    about: Mapping[str, object],
    columns: Mapping[str, str],
    classes: Sequence[str],
) -> None:
    """Say that a batch is complete. Raises IgptError when another process said so of other parts."""
    content = _to_json(
        {
            "format": _FORMAT,
            **about,
            **identity,
            "columns": columns,
            "classes": list(classes),
            "images": sum(part.images for part in parts),
            "rejected": dict(sorted(rejected_by_reason(parts).items())),
            "parts": [{"name": part.name, "images": part.images, "bytes": part.bytes} for part in parts],
        }
    )
    try:
        create_bytes(objects.join(out, MANIFEST), content)
    except AlreadyExistsError:
        if (_read_json(out, MANIFEST)).get("parts") != json.loads(content)["parts"]:
            raise IgptError(f"{out}: another process has completed it with other images; give another folder") from None


def rejected_by_reason(parts: Iterable[WrittenPart]) -> Counter[str]:
    """The number of rejected images by reason."""
    return sum((Counter(part.reasons) for part in parts), Counter())


def columns_of(out: str, part: WrittenPart) -> dict[str, str]:
    """The columns of a part and their types in words."""
    schema = _opened(_url(out, part.name), part.bytes).schema_arrow
    return {field.name: str(field.type).replace(" not null", "") for field in schema}


def _opened(url: str, size: int) -> pq.ParquetFile:
    from pipeline.store.block_reader import BlockReader  # noqa: PLC0415 (needs what not every training machine has)

    return pq.ParquetFile(BlockReader(url, size))


def _url(out: str, name: str) -> str:
    return objects.join(out, PARTS, f"{name}.parquet")


def _rejected_url(out: str, name: str) -> str:
    return objects.join(out, REJECTED, f"{name}.parquet")


def _read_json(out: str, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(objects.read_bytes(objects.join(out, name))))
    except ValueError as error:
        raise IgptError(f"{out}/{name}: damaged ({first_line(error)}); give another folder") from None


def _to_json(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-1]}"
