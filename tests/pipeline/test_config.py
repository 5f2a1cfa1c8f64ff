"""A dataset's config: what it refuses, and how it has the images of a split decoded."""

from dataclasses import replace

import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import IgptError

CONFIG = DatasetConfig(raw="raw", dataset="dataset", samples_per_shard=10)


@pytest.mark.parametrize(
    "field",
    [
        {"resolution": 33},
        {"resolution": 2},
        {"resolution": 258},
        {"colours": 1},
        {"colours": 65537},
        {"samples_per_shard": 0},
        {"palette_images": 0},
        {"max_pixels": 0},
        {"max_seconds": 0.0},
        {"min_size": 0},
        {"crops_per_image": -1},
        {"crops_per_image": 1000},
        {"splits": "folder"},
        {"decode": "quick"},
        {"validation_fraction": -0.1},
        {"test_fraction": 1.5},
        {"max_reject_fraction": 2.0},
        {"validation_fraction": 0.5, "test_fraction": 0.5},
        {"raw": ""},
        {"dataset": ""},
    ],
    ids=str,
)
def test_a_config_that_cannot_work_is_refused_by_name(field: dict) -> None:
    with pytest.raises(IgptError, match=next(iter(field))):
        replace(CONFIG, **field)


@pytest.mark.parametrize(
    ("fields", "smallest"),
    [({}, 32), ({"min_size": 20}, 20), ({"crops_per_image": 2}, 55), ({"crops_per_image": 2, "min_size": 64}, 64)],
)
def test_nothing_is_enlarged_unless_asked(fields: dict, smallest: int) -> None:
    assert replace(CONFIG, **fields).recipe("train").smallest_side == smallest


def test_only_training_images_are_cropped_at_random() -> None:
    config = replace(CONFIG, crops_per_image=3, decode="fast", seed=7)
    crops = {split: config.recipe(split).crops for split in ("train", "validation", "test")}
    assert crops == {"train": 3, "validation": 0, "test": 0}
    assert (config.recipe("train").fast, config.recipe("train").seed) == (True, 7)


def test_the_seed_decides_the_bytes_of_a_sample_only_where_there_are_random_crops() -> None:
    for fields, decides in (({}, False), ({"crops_per_image": 2}, True)):
        config = replace(CONFIG, **fields)
        other = replace(config, seed=1)
        assert (config.recipe_digest("ab") != other.recipe_digest("ab")) == decides
        assert config.fingerprint() != other.fingerprint(), "it decides the splits"


def test_paths_that_are_not_utf8_become_text() -> None:
    config = DatasetConfig(raw="/data/caf\udce9", dataset="d", labels="/data/caf\udce9.csv")
    assert (config.raw, config.labels) == ("/data/caf\\xe9", "/data/caf\\xe9.csv")
    assert replace(config, dataset="e").raw == config.raw
    with pytest.raises(IgptError, match="which is not UTF-8: give it a path that is"):
        DatasetConfig(raw="r", dataset="/data/caf\udce9")
