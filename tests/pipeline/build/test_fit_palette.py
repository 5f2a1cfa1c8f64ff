"""The colours that a palette is fitted on."""

from pathlib import Path

import numpy as np

from pipeline.build.decode_rows import decode_rows
from pipeline.build.fit_palette import count_colours
from pipeline.config import DatasetConfig
from pipeline.images import palette
from pipeline.images.decode import Pictures
from tests.pipeline.build.test_shard_tasks import task_of


def test_the_colours_of_images_that_can_be_decoded_are_counted(config: DatasetConfig) -> None:
    (Path(config.raw) / "temple" / "00.png").write_bytes(b"no image")
    histogram = count_colours(task_of(config).listing, False, config)
    other = palette.ColourHistogram()
    for decoded in decode_rows(task_of(config).listing, config, "train", tolerant=True, isolated=False):
        if isinstance(decoded.outcome, Pictures):
            other.add(decoded.outcome.pixels)
    assert np.array_equal(palette.fit(histogram, 8, seed=0), palette.fit(other, 8, seed=0))
