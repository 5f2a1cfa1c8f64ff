"""An image that crashes or hangs the decoder is rejected, and the build continues; on a real Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from pipeline.build.build import build
from pipeline.build.retry import retry_failed
from pipeline.config import DatasetConfig
from pipeline.inspect.verify import verify

# Run by every interpreter that starts with this folder on its path: Pillow then crashes or hangs on images that end
# with these words.
SITE = """
import ctypes, os
from PIL import ImageFile
_init = ImageFile.ImageFile.__init__
def hostile_init(image, file, filename=None):
    end = file.getvalue()[-8:]
    if end == b"CRASH..." and not os.path.exists({recovered!r}):
        os.abort()
    if end == b"HANG....":
        ctypes.PyDLL(None).sleep(3600)  # holds Python's lock
    _init(image, file, filename)
ImageFile.ImageFile.__init__ = hostile_init
"""


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose presence means that the decoder no longer crashes."""
    return tmp_path_factory.mktemp("decoder") / "recovered"


@pytest.fixture(scope="module", autouse=True)
def cluster(recovered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE.format(recovered=str(recovered)))
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(site)}},
    )
    yield
    ray.shutdown()


def test_a_crash_and_a_hang_cost_one_image_each(photos: np.ndarray, recovered: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(60):
        path = tmp_path / "raw" / f"{number:02d}.png"
        Image.fromarray(photos[number]).save(path)
        if number in (20, 40):
            path.write_bytes(path.read_bytes() + {20: b"CRASH...", 40: b"HANG...."}[number])
    config = DatasetConfig(
        raw=str(tmp_path / "raw"),
        dataset=str(tmp_path / "dataset"),
        resolution=16,
        colours=16,
        samples_per_shard=30,
        max_seconds=5.0,
        validation_fraction=0.1,
        test_fraction=0.0,
    )
    result = build(config)
    assert result.snapshot.rejected == {"decoder_crash": 1, "time_out": 1}
    assert result.snapshot.images() == 58
    assert verify(result.snapshot) == []
    assert build(config).unchanged
    recovered.touch()
    again = retry_failed(config)
    assert (again.tried, again.recovered) == (2, 1)
    assert again.snapshot.rejected == {"time_out": 1}
    assert verify(again.snapshot) == []
