"""The version and the commit of the installed project. The version is declared in pyproject.toml only."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "igpt-pipeline"
_CHECKOUT = Path(__file__).parents[1]


def version() -> str:
    """The installed version."""
    return metadata.version(DISTRIBUTION)


def commit(declared: str | None) -> str | None:
    """The commit of the code: the one the deployment declares, else the checkout's, else the one pip recorded, or None.

    For a checkout with changes, "-dirty" is appended.
    """
    return declared or _of_checkout(_CHECKOUT) or _recorded()


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
