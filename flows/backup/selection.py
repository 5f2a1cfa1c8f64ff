"""What of a store is in a backup, and in which order a restore writes it. The listings come first, the files later.

All of it goes on being written meanwhile, so what names other files is looked at before them: a snapshot's files exist
before its manifest, and a run's last checkpoint before its result.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from igpt_model.runs import attempts, checkpoint
from igpt_model.runs import record as run_record
from pipeline.dataset import erasures, record, snapshot
from pipeline.errors import IgptError
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile

RESTORING = "restoring.json"
"""Object of a bucket or folder that a restore has begun to fill; it names the backup."""
_MEASURED = "-measured"
# Of processes, not of data: a restored lease would let a process of before the loss go on as if nothing had happened.
_NOT_OF_RUNS = ("checkpoints", "lease")


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The files to save of one dataset, run or folder of artifacts."""

    files: tuple[StoredFile, ...]
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Bytes to save instead of the file's, by URL."""
    missing: tuple[str, ...] = ()
    """URLs of files that others name and that are not there, and of manifests that cannot be read."""


def datasets(root: str) -> Iterator[Selected]:
    """The files of each dataset below a bucket or folder, and what was measured on its snapshots.

    Unpublished shards are left out, because the next build makes them, and so are feature caches.
    """
    files = {file.url: file for file in bulk.list_files(root)}
    for url in sorted(files):
        if objects.name_of(url) == "LATEST":
            yield _dataset(url.removesuffix("/LATEST"), files)
    measured = (file for url, file in files.items() if f"{_MEASURED}/" in _path(url, root))
    yield Selected(files=tuple(measured))


def _path(url: str, root: str) -> str:
    """The path of a file, relative to a folder."""
    return url[len(root) :].strip("/")


def _dataset(dataset: str, files: Mapping[str, StoredFile]) -> Selected:
    names = (url[len(dataset) + len("/snapshots/") :] for url in files if url.startswith(f"{dataset}/snapshots/"))
    numbers = sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())
    # A later one may have been published since the listing: it is for the next backup.
    latest = min(snapshot.latest_number(dataset) or 0, max(numbers, default=0))
    latest_url = objects.join(dataset, "LATEST")
    wanted: dict[str, None] = {}
    damaged = []
    for number in numbers:
        try:
            manifest = snapshot.read(dataset, number)
        except IgptError:
            damaged.append(objects.join(dataset, snapshot.snapshot_path(number)))
            continue
        beside = record.read(manifest)
        paths = (*manifest.paths, *(() if beside is None else (record.path_of(number), *beside.paths)))
        wanted.update(dict.fromkeys(objects.join(dataset, path) for path in paths))
        wanted[objects.join(dataset, snapshot.snapshot_path(number))] = None
    # What was erased stays out of the builds after a restore.
    wanted.update(dict.fromkeys(url for url in files if url.startswith(f"{dataset}/{erasures.FOLDER}/")))
    wanted[latest_url] = None
    selected = [files.get(url) or _listed_late(url) for url in wanted]
    return Selected(
        files=tuple(file for file in selected if file is not None),
        contents={latest_url: f"{latest}\n".encode()},
        missing=(*damaged, *(url for url, file in zip(wanted, selected, strict=True) if file is None)),
    )


def _listed_late(url: str) -> StoredFile | None:
    """A file that a listing lacks: one that was written during the listing, or None for one that is not there."""
    size = objects.size(url)
    return None if size is None else StoredFile(url=url, size=size, etag="", modified=0.0)


def runs(root: str) -> Iterator[tuple[str, Selected]]:
    """The folder of each training run below a bucket or folder, and its files without checkpoints."""
    for run, files in sorted(run_record.by_run(list(bulk.list_files(root))).items()):
        yield (
            run,
            Selected(files=tuple(file for file in files if _path(file.url, run).split("/")[0] not in _NOT_OF_RUNS)),
        )


def newest_checkpoint(run: str) -> Selected:
    """The files of a run's newest complete checkpoint; none if its model is registered, whose files are artifacts."""
    steps = [] if attempts.registration(run) else checkpoint.marked_steps(run)
    if not steps:
        return Selected(files=())
    folder = checkpoint.folder_of(run, steps[-1])
    try:
        names = checkpoint.read(folder).index.files
    except checkpoint.DAMAGE:
        return Selected(files=(), missing=(folder,))
    present = {file.url: file for file in bulk.list_files(folder)}
    wanted = [objects.join(folder, name) for name in (*names, checkpoint.INDEX_FILE)]
    return Selected(
        files=tuple(present[url] for url in wanted if url in present),
        missing=tuple(url for url in wanted if url not in present),
    )


def artifacts(root: str) -> Iterator[Selected]:
    """All objects of a bucket or folder."""
    yield Selected(files=tuple(bulk.list_files(root)))


def check_not_being_restored(roots: Sequence[str]) -> None:
    """Raise IgptError when a restore has begun to fill one of the folders and not ended."""
    for root in roots:
        if objects.exists(objects.join(root, RESTORING)):
            raise IgptError(f"{root}: a restore into it has not ended; run it again, then save")


def restore_order(url: str) -> int:
    """Where a file comes in a restore: 0 for data, 1 for what says that data is complete, 2 for what is found first."""
    name, parts = objects.name_of(url), url.split("/")
    if name in ("LATEST", "run.json", "result.json"):
        return 2
    if (parts[-2:-1] == ["snapshots"] and name.endswith(".json")) or name == checkpoint.INDEX_FILE:
        return 1
    return 0
