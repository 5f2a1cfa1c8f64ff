"""Write the keys and passwords of a deployment, a folder of files for each reader.

    python -m flows.services.deployed_keys SECRETS MLFLOW_CONFIG TRUSTED_KEYS FOLDER

SECRETS is the file of secrets_file.py, TRUSTED_KEYS has lines for former keys that signed models. compose.yaml runs it
first, and mounts to each container its folder only. The secrets of Kubernetes have the same files.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.services import secrets_file
from flows.services.password_files import for_mlflow, for_mlflow_server, for_postgres, for_prefect
from flows.services.store_keys import Pair, derive, for_seaweedfs, write, write_credentials, write_steps
from igpt_model.registry.signatures import line_of, public_key_of, read_keys
from pipeline.errors import IgptError

USER = "igpt"
"""The user of Prefect's and MLflow's pages."""
SERVING_USER = "serve"
"""The user of MLflow that `igpt serve` is; it may only read."""
MLFLOW_LOGIN = "mlflow-login"
"""The folder for ~/.mlflow of MLflow's clients."""
SERVING_LOGIN = "serve-login"
"""That of `igpt serve`."""
READERS = {
    "driver": "driver",
    "nodes": "reader",
    "serve": "mlflow",
    **{role: role for role in ("mlflow", "exporter", "backup", "clean")},
}
"""The role in the object store that the processes of a reader have, by its folder."""
ADMINISTRATORS = ("buckets", "restore")
"""The readers that have the pair of the store's administrator."""
SIGNING_KEY, TRUSTED_KEYS = "signing-key", "trusted-keys"
"""The files of the key that signs models, of drivers, and of those whose signatures count, of whoever opens models."""
_OTHER_USER = 0o440  # for processes of another user in the same group


def administrator(secrets: Mapping[str, str]) -> Pair:
    """The pair of the store's administrator."""
    return Pair(access_key=secrets["AWS_ACCESS_KEY_ID"], secret_key=secrets["AWS_SECRET_ACCESS_KEY"])


def private_key(secrets: Mapping[str, str]) -> bytes:
    """The key that signs models, 32 bytes, from its secret."""
    return hashlib.sha256(f"igpt model signing\n{secrets['MODEL_SIGNING_SECRET']}".encode()).digest()


def write_all(folder: Path, secrets: Mapping[str, str], mlflow_config: str, trusted: str = "") -> None:
    """Write the files of all readers, from the secrets by name, MLflow's config of users, and further trusted keys."""
    owner = administrator(secrets)
    pairs = derive(owner)
    for reader, role in READERS.items():
        write_credentials(folder / reader / "credentials", pairs[role])
    for reader in ADMINISTRATORS:
        write_credentials(folder / reader / "credentials", owner)
    write_steps(folder / "driver" / "steps", pairs)
    write(folder / "s3" / "identities.json", json.dumps(for_seaweedfs(owner), indent=1), mode=_OTHER_USER)
    key = private_key(secrets)
    write(folder / "driver" / SIGNING_KEY, key.hex())
    for reader in ("driver", "serve"):
        write(folder / reader / TRUSTED_KEYS, f"{line_of(public_key_of(key), 'of this deployment')}\n{trusted}")
    for (reader, name), text in _passwords(secrets, mlflow_config).items():
        write(folder / reader / name, text, mode=_OTHER_USER if reader == "postgres" else 0o400)


def _passwords(secrets: Mapping[str, str], mlflow_config: str) -> dict[tuple[str, str], str]:
    """The text of each file with a password, by its reader and name."""
    auth = f"{USER}:{secrets['PREFECT_PASSWORD']}"
    of_server = {
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_DATABASE_PASSWORD": secrets["PREFECT_DB_PASSWORD"],
    }
    of_databases = {"mlflow": "MLFLOW_DB_PASSWORD", "clean": "MLFLOW_DB_PASSWORD"}
    of_databases |= {"backup": "POSTGRES_PASSWORD", "restore": "POSTGRES_PASSWORD"}
    of_roles = {"postgres": "POSTGRES_PASSWORD", "mlflow": "MLFLOW_DB_PASSWORD", "prefect": "PREFECT_DB_PASSWORD"}
    return {
        **{(reader, "ray-token"): secrets["RAY_AUTH_TOKEN"] for reader in ("driver", "nodes")},
        **{(reader, "prefect.toml"): for_prefect(auth) for reader in ("driver", "exporter", "clean", "deploy")},
        ("prefect-server", "prefect.toml"): for_prefect(auth, of_server),
        (MLFLOW_LOGIN, "credentials"): for_mlflow(USER, secrets["MLFLOW_PASSWORD"]),
        (SERVING_LOGIN, "credentials"): for_mlflow(SERVING_USER, secrets["MLFLOW_SERVE_PASSWORD"]),
        ("mlflow", "mlflow-auth.ini"): for_mlflow_server(mlflow_config, secrets["MLFLOW_PASSWORD"]),
        ("mlflow", "forms-key"): secrets["MLFLOW_SECRET_KEY"],
        **{(reader, "pg_service.conf"): for_postgres(secrets[name]) for reader, name in of_databases.items()},
        **{("postgres", role): secrets[name] for role, name in of_roles.items()},
    }


if __name__ == "__main__":
    try:
        secrets_path, config_path, trusted_path, target = map(Path, sys.argv[1:])
        trusted_keys = trusted_path.read_text()
        read_keys(trusted_keys)
        write_all(target, secrets_file.read(secrets_path), config_path.read_text(), trusted_keys)
    except (IgptError, ValueError) as error:
        sys.exit(str(error))
