"""Images that look like one of another split: copies in another format or size are found, other images are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.build.retry import retry_failed
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.lifecycle.drop_images import drop_images
from pipeline.dataset.record import Publisher
from pipeline.inspect.near_duplicates import find_near_duplicates, traits_of
from pipeline.inspect.verify import verify
from tests.pipeline.build.test_rerun import assert_sound, rows_of

pytestmark = pytest.mark.usefixtures("without_cluster")


def copies(raw: Path) -> int:
    """For each photograph a copy in another format, quality and size, in a folder of its own."""
    count = 0
    for path in sorted(raw.rglob("*.png")):
        with Image.open(path) as image:
            if path.parent.name not in {"temple", "flower"}:
                continue
            image.convert("RGB").resize((image.width + 9, image.height + 9)).save(
                path.with_name(f"copy-{path.stem}.jpg"), quality=80
            )
            count += 1
    return count


def test_copies_in_another_format_are_found_and_no_others(config: DatasetConfig) -> None:
    before = find_near_duplicates(build(config).snapshot)
    copied = copies(Path(config.raw))
    built = build(config).snapshot
    pairs = find_near_duplicates(built)
    of_copies = [pair for pair in pairs if _origin(pair.uri) == _origin(pair.other_uri)]
    split_of = {row["uri"]: shard.split for shard in built.shards for row in rows_of(built.dataset, shard.index_path)}
    apart = [
        uri
        for uri, split in split_of.items()
        if "copy-" in uri and split != split_of.get(_origin(uri), split) and copied
    ]
    assert len(apart) > 5
    assert len(of_copies) >= 0.8 * len(apart)
    assert len(pairs) - len(of_copies) <= len(before) + 2
    assert all(pair.split != "train" and pair.split != pair.other_split for pair in pairs)


def _origin(uri: str) -> str:
    return uri.replace("copy-", "").replace(".jpg", ".png")


def test_held_out_ones_are_dropped_and_a_rerun_keeps_them_out(config: DatasetConfig) -> None:
    copies(Path(config.raw))
    before = build(config).snapshot
    pairs = find_near_duplicates(before)
    dropped = drop_images(
        before.dataset, {pair.key: f"looks like {pair.other_key}" for pair in pairs}, "near_duplicate", Publisher()
    )
    assert pairs and find_near_duplicates(dropped) == []
    assert dropped.images("train") == before.images("train")
    assert dropped.images() == before.images() - len(pairs)
    assert dropped.rejected == {**before.rejected, "near_duplicate": len(pairs)}
    assert verify(dropped) == [] and snapshot.read(config.dataset) == dropped
    counted = dropped.counted_pixels("validation")
    assert counted is None or counted.sum() == dropped.samples("validation") * config.resolution**2
    assert build(config).unchanged
    assert retry_failed(config).recovered == 0
    (Path(config.raw) / "temple" / "new.png").write_bytes((Path(config.raw) / "temple" / "00.png").read_bytes())
    after = build(config)
    assert after.snapshot.rejected["near_duplicate"] == len(pairs)
    assert_sound(after)
    anew = build(replace(config, seed=7))
    assert "near_duplicate" not in anew.snapshot.rejected  # all is made anew


def test_images_that_differ_in_colour_or_place_are_others() -> None:
    palette_K3 = np.array([[-1, -1, -1], [1, 1, 1], [1, -1, -1], [-1, 1, -1]], np.float32)
    random = np.random.default_rng(0)
    noise = random.integers(0, 2, (8, 16, 16), dtype=np.uint16)
    hashes, colours = traits_of(noise, palette_K3)
    assert len(set(hashes.tolist())) == 8 and colours.shape == (8, 4, 4, 3)
    flat = np.stack([np.full((16, 16), number, np.uint16) for number in range(4)])
    hashes, colours = traits_of(flat, palette_K3)
    assert set(hashes.tolist()) == {0}
    assert colours[:, 0, 0].tolist() == [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0]]
