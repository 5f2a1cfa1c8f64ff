"""Write the object store's keys of a deployment, a folder for each reader.

    python -m flows.services.deployed_keys FOLDER

Its environment has the administrator's pair. compose.yaml runs it first, and mounts to each container its folder only.
"""

import json
import sys
from pathlib import Path

from flows.services import settings
from flows.services.store_keys import Pair, derive, for_seaweedfs, write, write_credentials, write_steps
from pipeline.errors import IgptError

READERS = {
    "driver": "driver",
    "nodes": "reader",
    **{role: role for role in ("mlflow", "exporter", "backup", "clean")},
}
"""The role that the processes of a reader have, by its folder."""


def write_all(folder: Path, administrator: Pair) -> None:
    """Write the files of all readers: credentials, and what the store and the driver need besides."""
    pairs = derive(administrator)
    for reader, role in READERS.items():
        write_credentials(folder / reader / "credentials", pairs[role])
    write_steps(folder / "driver" / "steps", pairs)
    # SeaweedFS runs as another user, in the same group.
    write(folder / "s3" / "identities.json", json.dumps(for_seaweedfs(administrator), indent=1), mode=0o440)


if __name__ == "__main__":
    try:
        write_all(Path(sys.argv[1]), settings.own_pair())
    except IgptError as error:
        sys.exit(str(error))
