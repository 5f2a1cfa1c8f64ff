"""The wheel has every module, and works without the checkout on the path.

tests/integration/test_wheel.py builds a dataset with it.
"""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.rigs.environments import PACKAGES, ROOT, build_wheel, variables


def run(programs: Path, folder: Path, program: str, *arguments: str) -> str:
    """The output of a program of an environment, run outside the checkout."""
    command = [str(programs / program), *arguments]
    environment = variables(programs, folder)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(ours) > 130
    assert names == ours


def test_built_twice_it_is_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")  # the workflow takes the time of the commit
    wheels = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        wheels.append(build_wheel(tmp_path / name).read_bytes())
    assert wheels[0] == wheels[1]


def test_it_is_what_an_environment_imports(wheel_programs: Path, tmp_path: Path) -> None:
    code = f"""
import importlib.util, json, sys
print(json.dumps([sys.path, [importlib.util.find_spec(name).origin for name in {PACKAGES!r}]]))
"""
    path, origins = json.loads(run(wheel_programs, tmp_path, "python", "-c", code))
    assert str(ROOT) not in path
    assert all(Path(origin).is_relative_to(wheel_programs.parent) for origin in origins)


def test_its_command_line_answers(wheel_programs: Path, tmp_path: Path) -> None:
    assert "raw images to a registered, probed model" in run(wheel_programs, tmp_path, "igpt", "--help")
    assert "samples_per_shard: 8192" in run(wheel_programs, tmp_path, "igpt", "config", "dataset")
