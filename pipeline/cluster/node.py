"""`ray start` for a node whose workers are forked with their libraries: `python -m pipeline.cluster.node start ...`."""

import sys
from pathlib import Path

from ray._private import parameter
from ray.scripts.scripts import main

from pipeline.cluster import setup_worker

# A fork cannot use CUDA after its parent has asked for devices, which some of the libraries do.
_NVIDIA = Path("/dev/nvidiactl")


class _Parameters(parameter.RayParams):
    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named, setup_worker_path=setup_worker.__file__)


if __name__ == "__main__":
    if sys.platform == "linux" and not _NVIDIA.exists():
        parameter.RayParams = _Parameters
    main()
