"""A virtual environment of packages that are installed here already: what pip would make of pinned requirements.

Its files are links to those of this environment, so that it takes a second; a package that nothing required is not in
it.
"""

import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_SCRIPT = """#!{python}
import sys
from {module} import {attribute}
sys.exit({attribute}())
"""


def link_environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make an environment with some packages and all that they require; returns the folder of its programs.

    Raises AssertionError when what is installed here does not satisfy a requirement.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages, programs = folder / "lib" / version / "site-packages", folder / "bin"
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
