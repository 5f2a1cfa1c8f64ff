"""Virtual environments with the packages that this interpreter has: with nothing of ours, or with our wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "igpt_model", "flows")


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


def variables(programs: Path, home: Path) -> dict[str, str]:
    """What a program of an environment is told: nothing of this process, and where the packages' programs are."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.defpath}"
    return {"PATH": path, "HOME": str(home), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} fails: {done.stderr}")
