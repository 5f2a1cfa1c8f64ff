"""The demo's configuration. Separate from flows/demo.py, so that mistakes show before the services are started."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.config.refresh import RefreshConfig
from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.typed_config import config_file

DIGITS_URL = "s3://raw/digits"

# Small enough for five minutes on two cores; the README lists the results.
_COMMON: dict[str, Any] = {
    "pretrain": {
        "optimizer": {"warmup_steps": 50},
        "execution": {"workers": 2},
        "keeping": {"runs": "s3://runs/demo", "checkpoint_every": 200},
        "tracking": {"evaluate_every": 100, "sample_every": 200, "experiment": "demo"},
    },
}
_DIGITS: dict[str, Any] = {
    "dataset": {
        "raw": DIGITS_URL,
        "dataset": "s3://datasets/digits",
        "resolution": 8,
        "colours": 16,
        "samples_per_shard": 256,
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
    },
    "pretrain": {
        "model": {"preset": "tiny"},
        # 1,281 training images are soon learned by heart: docs/training.md says what this recipe was chosen from.
        "data": {"crop_padding": 1, "augmented_share": 0.8},
        "optimizer": {
            "steps": 800,
            "global_batch": 64,
            "optim": "muon",
            "learning_rate": 0.01,
            "weight_decay": 2.5,
            "ema_decay": 0.98,
            "warmup_steps": 30,
        },
        # The report's moving picture has a frame for each sample.
        "tracking": {"model_name": "igpt-digits", "sample_every": 100},
    },
}
_IMAGES: dict[str, Any] = {
    "dataset": {
        "resolution": 16,
        "colours": 128,
        "samples_per_shard": 4096,
        "validation_fraction": 0.02,
        "test_fraction": 0.04,
    },
    "pretrain": {
        "model": {"preset": "tiny"},
        "optimizer": {"steps": 1000, "global_batch": 32},
        "tracking": {"model_name": "igpt-images"},
    },
}


def demo_config(raw: str | None, overrides: Sequence[str]) -> RefreshConfig:
    """The demo's configuration for the user's images in `raw`, or for the digits without it, with the overrides.

    Raises IgptError for a local path that does not exist and for invalid values.
    """
    fields = _merge(_COMMON, _DIGITS if raw is None else _IMAGES)
    if raw is not None:
        scheme, separator, _ = raw.partition("://")
        if separator and re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) is None:
            raise IgptError(f"{raw}: neither a path nor a URL; give one such as s3://bucket/prefix")
        if not separator and not Path(raw).exists():
            raise IgptError(f"{raw}: nothing is there; give the folder or tar file that holds the images")
        raw = objects.absolute(raw)
        name = Path(raw.rstrip("/")).name.removesuffix(".tar") or "images"
        fields = _merge(fields, {"dataset": {"raw": raw, "dataset": f"s3://datasets/{name}"}})
    return config_file.load_fields(RefreshConfig, fields, overrides)


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
