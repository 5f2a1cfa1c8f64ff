"""Keys of the object store by role, made from the pair of its administrator, and the files that hand them out.

Whoever has the key of a role cannot find another's, and the administrator has no more pairs to keep.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.services.store_rights import ROLES, STEPS, access_key


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An access key and its secret key."""

    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables from which the clients of the store take them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def derive(administrator: Pair) -> dict[str, Pair]:
    """The pair of each role."""

    def digest(purpose: str) -> str:
        text = f"{administrator.access_key} {purpose}".encode()
        return hmac.new(administrator.secret_key.encode(), text, hashlib.sha256).hexdigest()

    return {
        role: Pair(access_key=access_key(role, digest(f"name of {role}")[:16]), secret_key=digest(f"secret of {role}"))
        for role in ROLES
    }


def for_rclone(administrator: Pair) -> dict[str, str]:
    """The variable with all pairs that rclone accepts."""
    pairs = [administrator, *derive(administrator).values()]
    return {"RCLONE_AUTH_KEY": ",".join(f'"{pair.access_key},{pair.secret_key}"' for pair in pairs)}


def for_seaweedfs(administrator: Pair) -> dict[str, Any]:
    """SeaweedFS's identities, with the same rights."""

    def identity(name: str, pair: Pair, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": pair.access_key, "secretKey": pair.secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    identities = [identity("administrator", administrator, ["Admin"])]
    for role, pair in derive(administrator).items():
        rights = ROLES[role]
        reading = [f"{action}:{bucket}" for bucket in rights.read for action in ("Read", "List")]
        # Its right to write is the one to delete, too.
        writing = [f"Write:{place}" for place in (*rights.write, *rights.delete)]
        identities.append(identity(role, pair, [*reading, *writing]))
    return {"identities": identities}


def write_steps(folder: Path, pairs: Mapping[str, Pair]) -> None:
    """Write a file for each step of a flow, as settings.store_key reads them; only their owner can."""
    for step in STEPS:
        write(folder / step, f"{pairs[step].access_key}:{pairs[step].secret_key}")


def write_credentials(path: Path, pair: Pair) -> None:
    """Write a file for AWS_SHARED_CREDENTIALS_FILE; only its owner can read it."""
    text = f"[default]\naws_access_key_id = {pair.access_key}\naws_secret_access_key = {pair.secret_key}\n"
    write(path, text)


def write(path: Path, text: str, *, mode: int = 0o400) -> None:
    """Write a file whole, with a mode, unless it has that text already."""
    path.parent.mkdir(mode=0o750 if mode & 0o070 else 0o700, parents=True, exist_ok=True)
    if path.exists() and path.read_text() == text and path.stat().st_mode & 0o777 == mode:
        return
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)
