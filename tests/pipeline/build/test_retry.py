"""Retrying the images in quarantine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.build.build import build
from pipeline.build.retry import retry_failed
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect.verify import verify
from tests.pipeline.build.test_rerun import assert_holds_what_a_first_build_holds, assert_sound, damage, save

pytestmark = pytest.mark.usefixtures("without_cluster")


def test_retry_publishes_recovered_images_and_nothing_else(
    config: DatasetConfig, photos: np.ndarray, tmp_path: Path
) -> None:
    whole = damage(config, "flower/03.jpg", "temple/04.png", "temple/05.png")
    first = build(config)
    nothing = retry_failed(config)
    assert (nothing.tried, nothing.recovered, nothing.snapshot) == (3, 0, first.snapshot)
    assert snapshot.latest_number(config.dataset) == 1
    for name in ("flower/03.jpg", "temple/04.png"):
        (Path(config.raw) / name).write_bytes(whole[name])
    save(config, "temple/new.png", photos[119])  # for the next build
    recovered = retry_failed(config)
    assert (recovered.tried, recovered.recovered, recovered.gone) == (3, 2, 0)
    assert (recovered.snapshot.number, recovered.snapshot.images()) == (2, 99)
    assert sum(recovered.snapshot.rejected.values()) == 1
    assert verify(recovered.snapshot) == []
    kept = {shard.name for shard in first.snapshot.shards}
    assert kept < {shard.name for shard in recovered.snapshot.shards}, "no shard is rewritten"
    result = build(config)
    assert result.planned.plan is not None
    assert (result.planned.plan.new_images, result.planned.plan.changed_images) == (1, 0)
    assert_sound(result)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)


def test_retry_needs_the_config_of_the_snapshot(config: DatasetConfig) -> None:
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        retry_failed(config)
    build(config)
    with pytest.raises(IgptError, match="resolution differ from snapshot 1's"):
        retry_failed(replace(config, resolution=8))
