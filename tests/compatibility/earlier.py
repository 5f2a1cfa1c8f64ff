"""Files that earlier commits wrote; tests/fixtures/README.md describes them."""

import json
import os
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FLAT = ROOT / "tests" / "fixtures" / "b9a78dc"
"""Made when packages and configs were flat."""
WRITTEN = 1_790_000_000
"""When its raw images were written, in seconds since 1970: the version of a local file is its time."""


def read_json(name: str) -> Any:
    """A JSON file of the fixtures."""
    return json.loads((FLAT / name).read_text())


def copy(folder: Path, *names: str) -> Path:
    """Copy files and folders of the fixtures, images with their time of writing; returns the folder."""
    for name in names:
        if (FLAT / name).is_dir():
            shutil.copytree(FLAT / name, folder / Path(name).name)
        else:
            shutil.copyfile(FLAT / name, folder / Path(name).name)
    for path in [*(folder / "raw").rglob("*.png"), *(folder / "containers" / "raw").glob("*.*")]:
        os.utime(path, (WRITTEN, WRITTEN))
    return folder


def check_holds(config: Any, stored: dict[str, Any]) -> None:
    """Assert that a config has all the values of flat fields, by section, whatever they are nested in today."""
    values = _leaves(config)
    for name, value in stored.items():
        if isinstance(value, dict):
            check_holds(getattr(config, name), value)
        else:
            taken = values[name]
            assert (list(taken) if isinstance(taken, tuple) else taken) == value, name


def _leaves(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values.update(_leaves(value) if is_dataclass(value) else {field.name: value})
    return values
