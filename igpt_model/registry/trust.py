"""Who signed a version, and whether it may be opened."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from igpt_model.registry import signatures
from igpt_model.registry.signatures import SignatureError, TrustedKeys, UnsignedError
from pipeline.errors import IgptError

SIGNED_BY = "igpt.signed_by"
"""Tag: id of the key that signed a version when it was registered. The signature itself is with its files."""
_REFUSED = "do not use this version; download it again, or have it registered again"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs what is registered."""

    private_key: bytes = field(repr=False)
    """Of Ed25519, 32 bytes."""

    def sign(self, folder: Path, model: str) -> str:
        """Sign the files of a model, with MLflow's id of it; returns the id of the key."""
        return signatures.sign(folder, self.private_key, model)


def _ignore(line: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a version must have to be opened."""

    keys: TrustedKeys = field(default_factory=TrustedKeys)
    require_signed: bool = False
    """Refuse versions without a signature by a trusted key, such as those from before there were signatures."""
    warn: Callable[[str], None] = _ignore
    """Takes a line about a version that is opened although nobody vouches for it."""

    def check(self, folder: Path, origin: str, *, model: str | None = None, signed_by: str = "") -> None:
        """Raise IgptError unless a version's folder may be opened; call it before anything of it is imported.

        `model` is the id that MLflow has for it, None where there is no registry to ask; `signed_by` its tag.
        """
        nobody = not self.keys.keys and not self.keys.withdrawn
        if nobody and (signed_by or (folder / signatures.FILE).exists()):
            self._accept(f"{origin} is signed, and no key is trusted here", "set IGPT_TRUSTED_KEYS to verify it")
            return
        try:
            signed = signatures.verify(folder, self.keys)
        except UnsignedError as error:
            if signed_by:
                raise IgptError(f"{origin}: {error}, though key {signed_by} signed it; {_REFUSED}") from None
            self._accept(f"{origin} is not signed", "whoever can write the models' bucket can change its code")
            return
        except SignatureError as error:
            raise IgptError(f"{origin}: {error}; {_REFUSED}") from None
        if model is not None and signed.model != model:
            raise IgptError(f"{origin}: it holds the signed files of another version ({signed.model}); {_REFUSED}")

    def _accept(self, what: str, advice: str) -> None:
        if self.require_signed:
            raise IgptError(f"{what}, and IGPT_REQUIRE_SIGNED is set; {advice}")
        self.warn(f"warning: {what}; {advice}")
