"""The pair of each role is made from the administrator's, and none of it leads to another's."""

import stat
from pathlib import Path

import pytest

from flows.services import settings, store_keys
from flows.services.store_keys import Pair, derive
from flows.services.store_rights import ROLES, STEPS

ADMINISTRATOR = Pair(access_key="igpt", secret_key="a-secret")


def test_each_role_has_a_pair_of_its_own_which_stays() -> None:
    pairs = derive(ADMINISTRATOR)
    assert set(pairs) == set(ROLES) and derive(ADMINISTRATOR) == pairs
    words = [word for pair in [ADMINISTRATOR, *pairs.values()] for word in (pair.access_key, pair.secret_key)]
    assert len(set(words)) == 2 * len(ROLES) + 2
    for role, pair in pairs.items():
        assert pair.access_key.startswith(f"{role}-") and len(pair.secret_key) == 64
        # With more than its own pair, a holder would begin where the administrator does.
        assert not set(derive(pair).values()) & set(pairs.values())
    other = derive(Pair(access_key="igpt", secret_key="another-secret"))
    assert not set(other.values()) & set(pairs.values())
    assert ADMINISTRATOR.secret_key not in repr([ADMINISTRATOR, pairs])
    assert not any(pair.secret_key in repr(pairs) for pair in pairs.values())


def test_the_files_of_the_steps_are_what_the_flows_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = derive(ADMINISTRATOR)
    for _ in range(2):  # `igpt up` writes them again
        store_keys.write_steps(tmp_path / "steps", pairs)
    monkeypatch.setenv("IGPT_KEYS", str(tmp_path / "steps"))
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == sorted(STEPS)
    assert stat.S_IMODE((tmp_path / "steps").stat().st_mode) == 0o700
    for step in STEPS:
        assert stat.S_IMODE((tmp_path / "steps" / step).stat().st_mode) == 0o400
        key = settings.store_key(step)
        assert key is not None
        assert (key.role, key.access_key, key.secret_key) == (step, *vars(pairs[step]).values())
    assert settings.keys_by_step()


def test_seaweedfs_has_an_identity_of_each_role_with_its_rights() -> None:
    identities = {identity["name"]: identity for identity in store_keys.for_seaweedfs(ADMINISTRATOR)["identities"]}
    assert set(identities) == {"administrator", *ROLES}
    assert identities["administrator"]["actions"] == ["Admin"]
    for role, pair in derive(ADMINISTRATOR).items():
        assert identities[role]["credentials"] == [{"accessKey": pair.access_key, "secretKey": pair.secret_key}]
    assert identities["build"]["actions"] == [
        "Read:raw",
        "List:raw",
        "Read:datasets",
        "List:datasets",
        "Write:datasets",
    ]
    writers = {name for name, identity in identities.items() if "Write:mlflow" in identity["actions"]}
    assert writers == {"register", "clean"}, "SeaweedFS has one right to write and to delete"
