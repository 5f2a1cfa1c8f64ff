"""System metrics of training machines, named like MLflow's; traffic is a rate here, and a total in MLflow."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import psutil

from pipeline.background import Ended, in_background

_MEBIBYTE = 2**20
_PERIOD_SECONDS = 10.0


class HostMeter:
    """Measures this machine between calls of `values`."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call returns 0
        self._gpus = _Gpus()
        self._bytes = _traffic()
        self._measured_at = time.monotonic()

    def values(self) -> dict[str, float]:
        """CPU and memory use, disk and network rates since the last call, and the use of the machine's GPUs."""
        memory = psutil.virtual_memory()
        before, self._bytes = self._bytes, _traffic()
        began, self._measured_at = self._measured_at, time.monotonic()
        seconds = max(self._measured_at - began, 1e-9)
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEBIBYTE,
            "system_memory_usage_percentage": memory.percent,
            **{
                f"{name}_megabytes_per_second": (self._bytes[name] - before.get(name, 0)) / _MEBIBYTE / seconds
                for name in self._bytes
            },
            **self._gpus.values(),
        }


def _traffic() -> dict[str, float]:
    """Bytes of disk and network traffic since boot."""
    traffic: dict[str, float] = {}
    with suppress(RuntimeError, OSError):  # disks are not visible in some containers
        disk = psutil.disk_io_counters()
        if disk is not None:
            traffic |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    network = psutil.net_io_counters()
    return traffic | {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}


class _Gpus:
    """The GPUs of this machine as NVIDIA's driver counts them; none without the driver or nvidia-ml-py.

    PyTorch would create a CUDA context on each GPU to tell its memory: half a gigabyte on those of other processes.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            import pynvml  # noqa: PLC0415 (a machine that only trains need not have it)
        except ModuleNotFoundError:
            return
        self._nvml: Any = pynvml
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]

    def values(self) -> dict[str, float]:
        """Memory and utilization of each GPU; what one does not tell is left out."""
        values: dict[str, float] = {}
        for number, handle in enumerate(self._handles):
            with suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)  # in bytes
                values[f"gpu_{number}_memory_usage_megabytes"] = memory.used / _MEBIBYTE
                values[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            with suppress(self._nvml.NVMLError):
                utilization = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                values[f"gpu_{number}_utilization_percentage"] = utilization.gpu
        return values


def host_monitor(
    log: Callable[[dict[str, float]], None], period: float = _PERIOD_SECONDS
) -> AbstractContextManager[None]:
    """Within the block, log the metrics of this machine every `period` seconds, and once at the end."""

    def measure(ended: Ended) -> None:
        meter = HostMeter()  # in the thread: psutil keeps CPU times per thread
        last = False
        while not last:
            last = ended(period)
            log(meter.values())

    return in_background(measure, name="host-metrics")
