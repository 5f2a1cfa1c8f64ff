"""Features that were extracted once, in a store: a file for every network, shard and layer.

The network is known by its contents and the shard by its checksum, so a file is right whatever the model is called and
whichever snapshot the shard belongs to: a new version makes all of them anew, a new snapshot those of its new shards.
Files stay until somebody removes the folder.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass

import numpy as np

from igpt_model.model.bundle import ModelBundle
from pipeline.dataset.snapshot import ShardEntry
from pipeline.images import palette as palettes
from pipeline.store import objects


def network_digest(bundle: ModelBundle) -> str:
    """The identity of a network: SHA-256, in hex, of its config, palette and weights."""
    found = hashlib.sha256(json.dumps(asdict(bundle.model.config), sort_keys=True).encode())
    found.update(palettes.to_bytes(bundle.palette_K3))
    for name, weight in sorted(bundle.model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The features of one network."""

    url: str
    """The folder of all networks' features."""
    network: str
    """Its digest."""
    layers: int
    """Number of layers that have features: those of the network and one more."""

    def file(self, shard: ShardEntry, rows: int, layer: int) -> str:
        """Where the features of the first `rows` labelled images of a shard lie."""
        return objects.join(self.url, self.network[:24], f"{shard.sha256[:24]}-{rows}", f"layer-{layer:02d}.npy")

    def missing(self, calls: list[tuple[ShardEntry, int]]) -> list[tuple[ShardEntry, int]]:
        """The shards, with their numbers of rows, of which a layer is not there."""
        there = {file.url for file in objects.list_files(objects.join(self.url, self.network[:24]))}
        return [
            (shard, rows)
            for shard, rows in calls
            if any(self.file(shard, rows, layer) not in there for layer in range(self.layers))
        ]

    def write(self, shard: ShardEntry, rows: int, features_LNC: np.ndarray) -> None:
        """Keep the features of all layers, float32 [layers, n, width]."""
        for layer, features_NC in enumerate(features_LNC):
            buffer = io.BytesIO()
            np.save(buffer, features_NC, allow_pickle=False)
            objects.write_bytes(self.file(shard, rows, layer), buffer.getvalue())

    def read(self, shard: ShardEntry, rows: int, layer: int) -> np.ndarray:
        """The features of one layer, float32 [n, width]."""
        return np.load(io.BytesIO(objects.read_bytes(self.file(shard, rows, layer))), allow_pickle=False)
