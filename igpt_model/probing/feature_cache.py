"""A cache of extracted features in a store: one file per network, shard and layer.

Files are keyed by the network's contents and the shard's checksum, not by model name or snapshot: a new model version
needs new features for all shards, a new snapshot only for its new shards. `remove_old` removes networks for which
nothing was extracted for long; a probe that needs them later extracts them again.
"""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from igpt_model.inference.pooling import Pooling
from igpt_model.model.bundle import ModelBundle
from pipeline.dataset.snapshot import ShardEntry
from pipeline.images import palette
from pipeline.store import objects, presence

_CHECKSUM_LENGTH = 24  # characters of a shard's checksum in the names of its features


def network_digest(bundle: ModelBundle) -> str:
    """The identity of a network: SHA-256, in hex, of its config, palette and weights."""
    digest = hashlib.sha256(json.dumps(asdict(bundle.model.config), sort_keys=True).encode())
    digest.update(palette.to_bytes(bundle.palette_K3))
    for name, weight in sorted(bundle.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cache_of(dataset: str) -> str:
    """The folder that caches features of a dataset's images, unless a config names another."""
    return f"{dataset.rstrip('/')}-features"


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The features of one network."""

    url: str
    """The folder of the cache, shared by all networks."""
    network: str
    """Digest of the network."""
    layers: int
    """Number of layers with features: the blocks, and the final normalization."""
    on_gpu: bool = False
    """Whether they are computed on a GPU, in bfloat16: kept apart, so that no probe mixes the two formats."""
    pooling: Pooling = "mean"

    @property
    def _folder(self) -> str:
        return objects.join(self.url, self.network[:24] + ("-bfloat16" if self.on_gpu else ""))

    def file(self, shard: ShardEntry, rows: int, layer: int) -> str:
        """The file with the features of the first `rows` labelled images of a shard."""
        pooling = "" if self.pooling == "mean" else f"-{self.pooling}"
        return objects.join(
            self._folder, f"{shard.sha256[:_CHECKSUM_LENGTH]}-{rows}", f"layer-{layer:02d}{pooling}.npy"
        )

    def missing(self, calls: list[tuple[ShardEntry, int]]) -> list[tuple[ShardEntry, int]]:
        """The (shard, rows) pairs that lack a layer in the cache."""
        cached = {file.url for file in objects.list_files(self._folder)}
        return [
            (shard, rows)
            for shard, rows in calls
            if any(self.file(shard, rows, layer) not in cached for layer in range(self.layers))
        ]

    def found(self, shards: Iterable[ShardEntry], layer: int) -> list[tuple[ShardEntry, int]]:
        """The shards whose features of a layer are cached, each with the largest number of rows."""
        cached = {file.url for file in objects.list_files(self._folder)}
        most: dict[str, int] = {}
        for url in cached:
            name, _, rows = url.rpartition("/")[0].rpartition("/")[2].rpartition("-")
            if rows.isdecimal():
                most[name] = max(most.get(name, 0), int(rows))
        pairs = [(shard, most.get(shard.sha256[:24], 0)) for shard in shards]
        return [(shard, rows) for shard, rows in pairs if self.file(shard, rows, layer) in cached]

    def write(self, shard: ShardEntry, rows: int, batches: Iterable[np.ndarray], *, count: int) -> None:
        """Store the features of all layers of `count` images, from batches of float32 [layers, n, C].

        They are gathered on disk: those of every pixel of a shard are many times the memory of a task.
        """
        with tempfile.TemporaryDirectory(prefix="igpt-features-") as temporary:
            paths = [Path(temporary) / f"{layer}.npy" for layer in range(self.layers)]
            files: list[np.ndarray] = []
            done = 0
            for features_LNC in batches:
                shape, end = (count, features_LNC.shape[2]), done + features_LNC.shape[1]
                if not files:
                    files = [open_memmap(path, mode="w+", dtype=np.float32, shape=shape) for path in paths]
                for file_NC, features_NC in zip(files, features_LNC, strict=True):
                    file_NC[done:end] = features_NC
                done = end
            assert done == count
            del files  # which writes what is still in memory
            for layer, path in enumerate(paths):
                objects.write_bytes(self.file(shard, rows, layer), path.read_bytes())
                path.unlink()

    def read(self, shard: ShardEntry, rows: int, layer: int) -> np.ndarray:
        """The features of one layer, float32 [n, C]."""
        return np.load(io.BytesIO(objects.read_bytes(self.file(shard, rows, layer))), allow_pickle=False)


@dataclass(frozen=True, kw_only=True)
class OldFeatures:
    """The features of a network for which none were extracted for long."""

    network: str
    """Name of its folder."""
    files: int
    bytes: int


def find_old(url: str, min_seconds: float) -> list[OldFeatures]:
    """The networks of a cache whose newest file is older than `min_seconds`."""
    prefix = len(url.rstrip("/")) + 1
    of_network: dict[str, list[objects.StoredFile]] = {}
    for file in objects.list_files(url):
        network, slash, rest = file.url[prefix:].partition("/")
        if slash and network != presence.FOLDER and rest.endswith(".npy"):
            of_network.setdefault(network, []).append(file)
    now = time.time()
    return [
        OldFeatures(network=network, files=len(files), bytes=sum(file.size for file in files))
        for network, files in of_network.items()
        if now - max(file.modified for file in files) > min_seconds
    ]


def remove_of_shards(url: str, checksums: Collection[str]) -> int:
    """Remove the features of shards by their SHA-256, of all networks; returns the number of files.

    Raises IgptError, and removes nothing, while a probe uses the cache.
    """
    beginnings = {checksum[:_CHECKSUM_LENGTH] for checksum in checksums}
    prefix = len(url.rstrip("/")) + 1

    def of_them() -> list[str]:
        paths = ((file.url, file.url[prefix:].split("/")) for file in objects.list_files(url))
        return [found for found, parts in paths if len(parts) > 2 and parts[1].partition("-")[0] in beginnings]

    if not of_them():
        return 0
    with presence.collecting(url):
        files = of_them()
        for file in files:
            objects.delete(file)
    return len(files)


def remove_old(url: str, min_seconds: float) -> Sequence[OldFeatures]:
    """Remove what `find_old` finds. Raises IgptError, and removes nothing, while a probe uses the cache."""
    with presence.collecting(url):
        old = find_old(url, min_seconds)
        for features in old:
            objects.delete_tree(objects.join(url, features.network))
    return old
