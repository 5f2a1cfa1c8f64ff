"""Which versions open, with a warning or without, and which are refused: the table of situations."""

from pathlib import Path

import pytest

from igpt_model.registry.signatures import FILE, TrustedKeys, key_id
from igpt_model.registry.trust import Signer, Trust
from pipeline.errors import IgptError
from tests.igpt_model.registry.test_signatures import BOTH, KEY, PUBLIC, tampered, version

ID = key_id(PUBLIC)
NOBODY = TrustedKeys()
WITHDRAWN = TrustedKeys(keys=BOTH.keys, withdrawn=frozenset([ID]))
UNKNOWN = TrustedKeys(keys={name: key for name, key in BOTH.keys.items() if name != ID})


@pytest.mark.parametrize(
    ("state", "keys", "given", "warns", "refused"),
    [
        ("signed", BOTH, {}, "", ""),
        ("signed", BOTH, {"model": "m-1"}, "", ""),
        ("signed", BOTH, {"model": "m-7"}, "", "it holds the signed files of another version (m-1); do not use"),
        ("signed", BOTH, {"model": ""}, "", "it holds the signed files of another version"),
        ("signed", NOBODY, {}, "v is signed, and no key is trusted here; set IGPT_TRUSTED_KEYS", ""),
        ("signed", UNKNOWN, {}, "", f"its key '{ID}' is unknown here; do not use this version"),
        ("signed", WITHDRAWN, {}, "", f"its key {ID} was withdrawn"),
        ("changed code", BOTH, {}, "", "was changed after it was signed; do not use this version; download it again"),
        ("unsigned", BOTH, {}, "v is not signed; whoever can write the models' bucket can change its code", ""),
        ("unsigned", NOBODY, {}, "v is not signed", ""),
        ("unsigned", BOTH, {"signed_by": ID}, "", f"is missing), though key {ID} signed it; do not use"),
        ("unsigned", NOBODY, {"signed_by": ID}, "no key is trusted here", ""),
    ],
)
def test_what_opens(
    state: str, keys: TrustedKeys, given: dict[str, str], warns: str, refused: str, tmp_path: Path
) -> None:
    folder = version(tmp_path)
    if state == "unsigned":
        (folder / FILE).unlink()
    elif state != "signed":
        tampered(state, folder)
    for require_signed in (False, True):
        said: list[str] = []
        trust = Trust(keys=keys, require_signed=require_signed, warn=said.append)
        if refused or (warns and require_signed):
            with pytest.raises(IgptError) as error:
                trust.check(folder, "v", **given)
            assert (refused or "IGPT_REQUIRE_SIGNED is set") in str(error.value) and not said
        else:
            trust.check(folder, "v", **given)
            assert len(said) == bool(warns) and all(warns in line for line in said)


def test_a_signer_shows_no_key(tmp_path: Path) -> None:
    assert Signer(private_key=KEY).sign(version(tmp_path), "m-1") == ID
    assert "private" not in repr(Signer(private_key=KEY))
