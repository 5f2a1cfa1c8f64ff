"""Virtual environments with the packages that this interpreter has: with nothing of ours, with our wheel, or few."""

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
    """Make an environment in a folder; returns the folder of its programs.

    It sees the installed packages of this interpreter where they lie. An editable install of the project is no package
    there but a .pth file, and those are read in an environment's own folder alone.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "packages.pth").write_text("".join(f"{path}\n" for path in packages))
    return folder / "bin"


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel from a copy of what a clean checkout has: setuptools would take what is in build/."""
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
    """Make an environment like `without_us` and install a wheel there; returns the folder of its programs."""
    programs = without_us(folder)
    _pip("--python", str(programs / "python"), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    return programs


def with_requirements(requirements: Iterable[str], folder: Path) -> Path:
    """Make an environment with some packages, all that they require and nothing else; returns its programs' folder.

    What pip would make of them, with links to the files of the packages that are installed here: it takes a second.
    Raises AssertionError when those do not satisfy a requirement.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    programs = folder / "bin"
    for package in _required(requirements):
        for file in package.files or []:
            if ".." not in file.parts:  # programs, which know their interpreter
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
    """What a program of an environment is told: nothing of this process, and where the packages' programs are."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.defpath}"
    return {"PATH": path, "HOME": str(home), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}


def _required(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The packages that satisfy some requirements, and theirs, as they are installed here."""
    todo = [Requirement(line) for line in requirements]
    seen: dict[tuple[str, str], metadata.Distribution] = {}
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            package = metadata.distribution(wanted.name)
            assert wanted.specifier.contains(package.version, prereleases=True), f"{wanted}, not {package.version}"
            if (package.name.lower(), extra) in seen:
                continue
            seen[package.name.lower(), extra] = package
            further = [Requirement(line) for line in package.requires or []]
            todo += [each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})]
    return list({package.name: package for package in seen.values()}.values())


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} fails: {done.stderr}")
