"""Virtual environments with this interpreter's packages: without the project, with its wheel, or with few packages."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "igpt_model", "flows")
_SCRIPT = """#!{python}
import sys
from {module} import {attribute}
sys.exit({attribute}())
"""


def without_us(folder: Path) -> Path:
    """Create an environment without the project; returns the folder of its programs.

    It uses the installed packages of this interpreter in place. An editable install of the project is a .pth file, and
    Python ignores those outside of an environment's own folder.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "packages.pth").write_text("".join(f"{path}\n" for path in packages))
    return folder / "bin"


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel from a copy of the sources, because setuptools would include old files of build/."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def with_wheel(wheel: Path, folder: Path) -> Path:
    """Create an environment like `without_us` with a wheel installed; returns the folder of its programs."""
    programs = without_us(folder)
    _pip("--python", str(programs / "python"), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    return programs


def with_requirements(requirements: Iterable[str], folder: Path) -> Path:
    """Create an environment with some packages and their requirements only; returns the folder of its programs.

    The same as with pip, but with links to the files of the packages installed here, which takes a second.
    Raises AssertionError when an installed package does not satisfy a requirement.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    programs = folder / "bin"
    for package in _required(requirements):
        for file in package.files or []:
            if ".." not in file.parts:  # those are programs, which contain the path of their interpreter
                link = packages / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(str(package.locate_file(file)))
        for entry in package.entry_points.select(group="console_scripts"):
            script = programs / entry.name
            script.write_text(
                _SCRIPT.format(python=programs / "python", module=entry.module, attribute=entry.attr.split(".")[0])
            )
            script.chmod(0o755)
    return programs


def variables(programs: Path, home: Path) -> dict[str, str]:
    """Variables for a program of an environment: none of this process's, and a PATH with the packages' programs."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.defpath}"
    return {"PATH": path, "HOME": str(home), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}


def _required(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The installed packages that satisfy some requirements, with all their own requirements."""
    todo = [Requirement(line) for line in requirements]
    seen: dict[tuple[str, str], metadata.Distribution] = {}
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            package = metadata.distribution(requirement.name)
            satisfied = requirement.specifier.contains(package.version, prereleases=True)
            assert satisfied, f"{requirement}, not {package.version}"
            if (package.name.lower(), extra) in seen:
                continue
            seen[package.name.lower(), extra] = package
            required = [Requirement(line) for line in package.requires or []]
            todo += [other for other in required if other.marker is None or other.marker.evaluate({"extra": extra})]
    return list({package.name: package for package in seen.values()}.values())


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"pip {arguments[0]} fails: {ended.stderr}")
