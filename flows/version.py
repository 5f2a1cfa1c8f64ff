"""The version, the commit and a digest of the installed code. The version is declared in pyproject.toml only.

Sent by value to Ray's nodes, whose code may be another: it imports the standard library alone.
"""

import hashlib
import importlib.util
import json
import socket
import subprocess
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "igpt-pipeline"
_PACKAGES = ("pipeline", "igpt_model", "flows")
_CHECKOUT = Path(__file__).parents[1]


def version() -> str:
    """The installed version."""
    return metadata.version(DISTRIBUTION)


def commit(declared: str | None, checkout: Path | None = None) -> str | None:
    """The commit of the code: the one the deployment declares, else the checkout's, else the one pip recorded, or None.

    For a checkout with changes, "-dirty" is appended.
    """
    return declared or _of_checkout(_CHECKOUT if checkout is None else checkout) or _recorded()


def commit_tags(of_code: str) -> dict[str, str]:
    """The tags of an MLflow run for the commit of its code: ours, and MLflow's own, which has no "-dirty"."""
    return {"igpt.git_commit": of_code, "mlflow.source.git.commit": of_code.removesuffix("-dirty")}


def describe_code(declared: str | None) -> dict[str, str]:
    """The code that this process imports: its version, commit, digest and place, each empty where there is none.

    The place is the machine and the folder; the digest covers the path and the content of each Python file.
    """
    found = importlib.util.find_spec("pipeline")
    if found is None or found.origin is None:
        return {"version": "", "commit": "", "declared": "", "digest": "", "place": socket.gethostname()}
    folder = Path(found.origin).parents[1]
    try:
        installed, recorded = version(), commit(declared, folder)
    except metadata.PackageNotFoundError:
        installed, recorded = "", declared or _of_checkout(folder)
    digest = hashlib.sha256()
    for path in sorted(path for package in _PACKAGES for path in (folder / package).rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "version": installed,
        "commit": recorded or "",
        "declared": declared or "",
        "digest": digest.hexdigest(),
        "place": f"{socket.gethostname()}:{folder}",
    }


def _of_checkout(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # git would search the parents and could take another project's repository
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _recorded() -> str | None:
    """The commit that pip recorded when it installed from a repository (direct_url.json, PEP 610)."""
    text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    return json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
