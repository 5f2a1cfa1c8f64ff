"""The locks agree with each other and with pyproject.toml; what they name has wheels on every supported platform."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"run": [], "image": ["auth", "metrics", "postgres", "serve"], "dev": ["dev"]}
# Their files differ by platform and index, so they are installed by version alone.
WITHOUT_HASHES = re.compile(r"torch|triton|nvidia-[cn].*|cuda-.*")
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;\\\n]+)[^\\\n]*((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.M)
# Linux with the C library of 2018 or newer, macOS 14 or newer on Apple silicon.
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
UV = Path(sys.executable).with_name("uv")


def pins(path: Path) -> dict[tuple[str, str], int]:
    """The number of hashes in a lock by package and version; some packages have a version per version of Python."""
    return {(name, version): hashes.count("--hash=") for name, version, hashes in PIN.findall(path.read_text())}


VERSIONS = pins(ROOT / "constraints.txt")


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_with_hashes_has_versions_of_the_constraints(name: str) -> None:
    path = ROOT / "requirements" / f"{name}.txt"
    locked = pins(path)
    assert len(locked) == len(re.findall(r"^\w", path.read_text(), re.M))
    assert locked.keys() <= VERSIONS.keys()
    assert all(locked.values())
    assert not [package for package, _ in locked if WITHOUT_HASHES.fullmatch(package)]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_has_all_that_pyproject_asks_for(name: str) -> None:
    asked = [*PROJECT["dependencies"], *(line for e in EXTRAS[name] for line in PROJECT["optional-dependencies"][e])]
    names = {re.split(r"[\[<>=!;, ]", line)[0].lower() for line in asked} | {"setuptools"}
    locked = {package for package, _ in pins(ROOT / "requirements" / f"{name}.txt")}
    assert [package for package in names - locked if not WITHOUT_HASHES.fullmatch(package)] == []


@pytest.fixture(scope="module")
def resolutions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    """For each platform and Python, the result of uv choosing wheels for the lock; it mostly waits for PyPI."""
    folder = tmp_path_factory.mktemp("resolved")
    started = {
        (platform, python): subprocess.Popen(
            [
                *(str(UV), "pip", "compile", "--quiet", "--only-binary", ":all:", "--constraints", "constraints.txt"),
                *("--python-platform", platform, "--python-version", python),
                *(word for extra in ("auth", "metrics", "postgres", "dev") for word in ("--extra", extra)),
                *("--output-file", str(folder / f"{platform}-{python}.txt"), "pyproject.toml"),
            ],
            cwd=ROOT,
            env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},  # uv assumes macOS 13 otherwise
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for platform in PLATFORMS
        for python in PYTHONS
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.services
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_locked_package_has_a_wheel(
    platform: str, python: str, resolutions: dict[tuple[str, str], subprocess.Popen[str]]
) -> None:
    process = resolutions[platform, python]
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    resolved = pins(Path(str(process.args[-2])))
    assert len(resolved) > 200 and resolved.keys() <= VERSIONS.keys()
