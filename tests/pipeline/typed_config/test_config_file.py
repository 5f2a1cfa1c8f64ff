"""Invalid config files, and configs without PyYAML."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.typed_config import config_file

# A machine that only trains need not have these.
BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yaml", "pydantic", "pydantic_core"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Block())
from pathlib import Path
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.typed_config.config_file import load
try:
    print(load(DatasetConfig, Path(sys.argv[1]), sys.argv[2:]).max_seconds)
except IgptError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1", "a config is a mapping of fields, this is list"),
        ("just words", "a config is a mapping of fields"),
        ("a: [", "not valid YAML in line"),
        ("", "raw is missing; set it in the file or as raw=VALUE"),
        ("raw: r\nraw: s\n? [1]\n: 2", "not valid YAML"),
        ("raw: r\ndataset: d\n5: 6", "unknown field 5"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(IgptError, match=expected) as caught:
        config_file.load(DatasetConfig, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="No such file"):
        config_file.load(DatasetConfig, tmp_path / "nothing.yaml")


@pytest.mark.parametrize("override", ["raw", "=r", "raw=[", "raw='"])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(IgptError, match=r"is not an override|not valid YAML"):
        config_file.load(DatasetConfig, None, [override])


def test_anchors_and_merges_of_yaml_go(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("raw: &here r\n<<: {dataset: d, seed: 1_0}\npalette: *here\n")
    config = config_file.load(DatasetConfig, path)
    assert (config.dataset, config.seed, config.palette) == ("d", 10, "r")


def test_json_and_overrides_need_no_pyyaml(tmp_path: Path) -> None:
    as_json, as_yaml = tmp_path / "config.json", tmp_path / "config.yaml"
    as_json.write_text('{"raw": "r", "dataset": "d"}')
    as_yaml.write_text("raw: r")

    def said(*arguments: object) -> str:
        command = [sys.executable, "-c", BARE, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert said(as_json, "max_seconds=1e-1", "labels=null") == "0.1"
    assert said(as_yaml) == f"{as_yaml}: reading YAML needs PyYAML: install pyyaml, or write it as JSON"
