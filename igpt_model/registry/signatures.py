"""Signs the folder of a registered model, and verifies it: Ed25519 over a list of all files with their SHA-256.

Consumers can take this file alone. It needs Python 3.11 and the package cryptography, and imports nothing of the model:

    python signatures.py MODEL_FOLDER TRUSTED_KEYS [ID_OF_THE_MODEL]
"""

import base64
import binascii
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FILE = "igpt-signature.json"
_OF_MLFLOW = "registered_model_meta"  # MLflow's client writes it into what it has downloaded, at the top
_CONTEXT = b"igpt-pipeline: the files of a model, 1\n"  # so that the key signs nothing else by mistake
_MOST_BYTES = 10_000_000


class SignatureError(ValueError):
    """The folder is not what was signed, or not signed by a key that is trusted; the text says why, in one line."""


class UnsignedError(SignatureError):
    """The folder has no signature."""


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a signature says."""

    key: str
    """Id of the key."""
    model: str
    """MLflow's id of the model, as it was signed."""


@dataclass(frozen=True, kw_only=True)
class TrustedKeys:
    """Public keys of Ed25519, 32 bytes each, by id; and the ids of those that were withdrawn."""

    keys: Mapping[str, bytes] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()


def key_id(public_key: bytes) -> str:
    """The id of a public key of 32 bytes: 16 hexadecimal digits."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def public_key_of(private_key: bytes) -> bytes:
    """The public key of a private one, 32 bytes both."""
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def line_of(public_key: bytes, comment: str = "") -> str:
    """The line with which a file of trusted keys trusts a key."""
    return f"trusted {base64.b64encode(public_key).decode()} {comment}".rstrip()


def read_keys(text: str) -> TrustedKeys:
    """Read a file of trusted keys: lines `trusted PUBLIC_KEY` (base64) and `withdrawn ID`, then any comment.

    Raises ValueError for any other line that is neither empty nor begins with #.
    """
    keys: dict[str, bytes] = {}
    withdrawn: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kind, value = words[:2]
            if kind == "trusted":
                public_key = base64.b64decode(value, validate=True)
                Ed25519PublicKey.from_public_bytes(public_key)
                keys[key_id(public_key)] = public_key
            elif kind == "withdrawn" and len(bytes.fromhex(value)) == 8:
                withdrawn.add(value.lower())
            else:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is neither `trusted PUBLIC_KEY` nor `withdrawn ID_OF_A_KEY`") from None
    return TrustedKeys(keys=keys, withdrawn=frozenset(withdrawn))


def sign(folder: Path, private_key: bytes, model: str) -> str:
    """Write the signature of all files of a folder into it; returns the id of the key, of 32 bytes.

    `model` is MLflow's id of the model, so that the files of another version are told apart.
    """
    (folder / FILE).unlink(missing_ok=True)
    text = json.dumps({"files": _digests(folder), "model": model}, sort_keys=True)
    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(_CONTEXT + text.encode())
    key = key_id(public_key_of(private_key))
    stored = {"key": key, "signature": base64.b64encode(signature).decode(), "signed": text}
    (folder / FILE).write_text(json.dumps(stored, indent=1))
    return key


def verify(folder: Path, trusted: TrustedKeys) -> Signed:
    """Raise SignatureError unless a trusted key has signed exactly the files of a folder; UnsignedError without any."""
    path = folder / FILE
    if not path.is_file() or path.is_symlink():
        raise UnsignedError(f"it has no signature ({FILE} is missing)")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        stored = json.loads(path.read_text())
        key, text = str(stored["key"]), str(stored["signed"])
        signature = base64.b64decode(stored["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignatureError(f"its signature is damaged ({FILE})") from None
    if key in trusted.withdrawn:
        raise SignatureError(f"its key {key[:16]} was withdrawn")
    if key not in trusted.keys:
        raise SignatureError(f"its key {key[:16]!r} is unknown here")
    try:
        Ed25519PublicKey.from_public_bytes(trusted.keys[key]).verify(signature, _CONTEXT + text.encode())
    except InvalidSignature:
        raise SignatureError(f"its signature is not one of key {key}") from None
    signed = json.loads(text)  # by a trusted key
    _compare(signed["files"], _digests(folder))
    return Signed(key=key, model=signed["model"])


def _compare(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise SignatureError for the first file that differs, by name."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise SignatureError(f"{name[:200]!r} is missing")
        if name not in expected:
            raise SignatureError(f"{name[:200]!r} was added after it was signed")
        if expected[name] != found[name]:
            raise SignatureError(f"{name[:200]!r} was changed after it was signed")


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, by its path in it."""
    digests = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            place = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise SignatureError(f"{place[:200]!r} is neither a file nor a folder")
            if path.is_file() and place not in (FILE, _OF_MLFLOW):
                with path.open("rb") as file:
                    digests[place] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def main(arguments: list[str]) -> str:
    """The answer for a consumer. Raises SignatureError or ValueError in one line."""
    if len(arguments) not in (2, 3):
        raise ValueError("give the folder of a model, a file of trusted keys, and, if you know it, the model's id")
    signed = verify(Path(arguments[0]), read_keys(Path(arguments[1]).read_text()))
    if arguments[2:] not in ([], [signed.model]):
        raise SignatureError(f"it is signed as model {signed.model!r}, another one")
    return f"{arguments[0]} is model {signed.model}, as key {signed.key} has signed it"


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"do not load this model: {error}")
