"""How busy a machine is that trains, named as MLflow names its system metrics; traffic is a rate here, there a sum."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import psutil
import torch

from pipeline.background import Ended, in_background

_MEBIBYTE = 2**20
_PERIOD_SECONDS = 10.0


class HostMeter:
    """Measures this machine from call to call."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first answer is of no time at all
        self._seen = _traffic()
        self._at = time.monotonic()

    def values(self) -> dict[str, float]:
        """Processor and memory, disk and network since the last call, and the GPUs if there are any."""
        memory = psutil.virtual_memory()
        before, self._seen = self._seen, _traffic()
        began, self._at = self._at, time.monotonic()
        seconds = max(self._at - began, 1e-9)
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEBIBYTE,
            "system_memory_usage_percentage": memory.percent,
            **{
                f"{name}_megabytes_per_second": (self._seen[name] - before.get(name, 0)) / _MEBIBYTE / seconds
                for name in self._seen
            },
            **_gpus(),
        }


def _traffic() -> dict[str, float]:
    """Bytes since the machine's start."""
    found: dict[str, float] = {}
    with suppress(RuntimeError, OSError):  # a container may not see its disks
        disk = psutil.disk_io_counters()
        if disk is not None:
            found |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    network = psutil.net_io_counters()
    return found | {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}


def _gpus() -> dict[str, float]:
    """Of each GPU that this process sees; utilization only with the driver's library (nvidia-ml-py)."""
    values: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        values[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / _MEBIBYTE
        values[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(ModuleNotFoundError, RuntimeError):
            values[f"gpu_{number}_utilization_percentage"] = torch.cuda.utilization(number)
    return values


def host_monitor(
    log: Callable[[dict[str, float]], None], period: float = _PERIOD_SECONDS
) -> AbstractContextManager[None]:
    """Log how busy the machine is while the block runs: every `period` seconds, and when the block ends."""

    def measure(ended: Ended) -> None:
        meter = HostMeter()  # in the thread: psutil counts processor time by thread
        last = False
        while not last:
            last = ended(period)
            log(meter.values())

    return in_background(measure, name="host-metrics")
