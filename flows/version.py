"""Which version of the project this is, and from which commit. pyproject.toml alone names the version."""

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
    """The commit of the code: what the deployment declares, else the checkout's, else what pip recorded; or None.

    A checkout with changes gives the commit with "-dirty" behind it.
    """
    return declared or _of_checkout(_CHECKOUT) or _recorded()


def _of_checkout(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # one above would be somebody else's, say that of an environment in a project
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _recorded() -> str | None:
    """The commit that pip wrote down when it installed from a repository (direct_url.json, PEP 610)."""
    text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    return json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
