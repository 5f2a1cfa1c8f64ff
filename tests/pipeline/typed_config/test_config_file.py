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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"raw: caf\xe9", "byte 9 is not UTF-8 text; save the file as UTF-8"),
        ("raw: r".encode("utf-16"), "byte 1 is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n", "byte 1 is not UTF-8 text"),
        (b"raw: a\0b", "not valid YAML"),
        (b"raw: \x1b[31m", "not valid YAML"),
        (b"[" * 5000, "nested too deeply|not valid YAML"),
        (b"raw: !!int x", "not valid YAML"),
        (b"raw: !!timestamp x", "not valid YAML"),
        (b"raw: !!bool maybe", "not valid YAML"),
        (b"raw: !!python/object:os.system x", "not valid YAML"),
        (b"raw: !!binary aGVsbG8=", "raw is b'hello': it must be text"),
        (b"a: &a [*a]", "unknown field a"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "seed is '1000.*: it must be a whole number of less than 64 bits"),
        (b'{"max_seconds": NaN, "raw": "r"}', "max_seconds is nan: it must be a number"),
        (b'{"max_seconds": Infinity}', "max_seconds is inf: it must be a number"),
    ],
)
def test_what_is_no_text_or_no_yaml_is_refused_in_one_line(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(IgptError, match=expected) as caught:
        config_file.load(DatasetConfig, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("raw: r\ndataset: d\n", '{"raw": "r", "dataset": "d"}'):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert config_file.load(DatasetConfig, path).raw == "r"


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="Is a directory; give the path of a YAML or JSON file"):
        config_file.load(DatasetConfig, tmp_path)


@pytest.mark.parametrize("number", ["9" * 40, "-" + "9" * 40, "9" * 5000, "1e30"])
@pytest.mark.parametrize("field", ["samples_per_shard", "max_pixels", "seed"])
def test_numbers_that_no_array_can_hold_are_refused(field: str, number: str) -> None:
    with pytest.raises(IgptError, match=f"{field} is .*: it must be a whole number of less than 64 bits"):
        config_file.load(DatasetConfig, None, ["raw=r", "dataset=d", f"{field}={number}"])


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_seeds_that_some_library_refuses_are_refused_at_once(seed: str) -> None:
    with pytest.raises(IgptError, match=f"seed is {seed}: it must be from 0 to 4294967295"):
        config_file.load(DatasetConfig, None, ["raw=r", "dataset=d", f"seed={seed}"])
