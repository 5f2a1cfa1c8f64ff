"""`igpt config` prints a file that loads, with a description and the range of each field."""

from pathlib import Path

import pytest

from flows.config.describe import KINDS, describe
from flows.config.refresh import RefreshConfig
from pipeline.typed_config import config_file

REQUIRED = {"raw": "s3://raw/x", "dataset": "s3://datasets/x", "runs": "s3://runs"}
REQUIRED_FIELDS = {
    "refresh": ["dataset.raw", "dataset.dataset", "pretrain.keeping.runs"],
    "dataset": ["raw", "dataset"],
    "pretrain": ["keeping.runs"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_config_loads_once_its_required_fields_are_set(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(describe(KINDS[kind]))
    required = [f"{name}={REQUIRED[name.rsplit('.', 1)[-1]]}" for name in REQUIRED_FIELDS.get(kind, [])]
    assert config_file.load(KINDS[kind], path, required) == config_file.load(KINDS[kind], None, required)


def test_every_field_has_a_description() -> None:
    lines = describe(RefreshConfig).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.lstrip().startswith("#") or before.lstrip().startswith("#"), line


def test_ranges_and_sections_are_shown() -> None:
    text = describe(KINDS["pretrain"])
    assert "optimizer:\n  # Number of optimizer steps. At least 1.\n  steps: 1000\n" in text
    assert "# Masked objective: share of the pixels that are masked. Above 0 and below 1.\n" in text
    assert (
        "# Side of the square token images, in pixels. The paper uses 32, 48 and 64. An even number from 4 to 256."
        in (describe(KINDS["dataset"]))
    )
