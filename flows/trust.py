"""The registry as commands and flows open it: with the keys that are trusted here, and the one that signs."""

from flows.services import settings
from flows.terminal.console import console
from igpt_model.registry.client import Registry
from igpt_model.registry.signatures import TrustedKeys, read_keys
from igpt_model.registry.trust import Signer, Trust
from pipeline.errors import IgptError


def registry(tracking_uri: str) -> Registry:
    """The registry of an MLflow server. A version that it opens is verified before anything of it is imported."""
    return Registry(tracking_uri, trust())


def trust() -> Trust:
    """Which signatures this machine trusts. Raises IgptError when the file of keys cannot be used."""
    return Trust(keys=trusted_keys(), require_signed=settings.require_signed(), warn=console.print)


def trusted_keys() -> TrustedKeys:
    """The keys of the file IGPT_TRUSTED_KEYS; none where it is not set. Raises IgptError when it cannot be used."""
    path = settings.trusted_keys()
    if path is None:
        return TrustedKeys()
    try:
        return read_keys(path.read_text())
    except OSError as error:
        raise IgptError(f"{path} cannot be read: {error.strerror}; correct IGPT_TRUSTED_KEYS") from None
    except ValueError as error:
        raise IgptError(f"{path}: {error}; correct it") from None


def signer() -> Signer | None:
    """Signs what is registered, with the key of the file IGPT_SIGNING_KEY; None where it is not set.

    Raises IgptError when it cannot be used.
    """
    path = settings.signing_key()
    if path is None:
        return None
    try:
        key = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise IgptError(f"{path} cannot be read: {error.strerror}; correct IGPT_SIGNING_KEY") from None
    except ValueError:
        key = b""
    if len(key) != 32:
        raise IgptError(f"{path} does not hold 64 hexadecimal digits; correct it, or IGPT_SIGNING_KEY")
    return Signer(private_key=key)
