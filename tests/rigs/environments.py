"""Virtual environments with the packages that this interpreter has, and nothing of ours."""

import subprocess
import sys
from pathlib import Path


def without_us(folder: Path) -> Path:
    """Make an environment in a folder; returns its Python.

    It sees the installed packages of this interpreter where they lie. An editable install of the project is no package
    there but a .pth file, and those are read in an environment's own folder alone.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "packages.pth").write_text("".join(f"{path}\n" for path in packages))
    return folder / "bin" / "python"
