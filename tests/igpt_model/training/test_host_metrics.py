"""The metrics of a training machine."""

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from igpt_model.training.host_metrics import HostMeter, host_monitor


def test_a_machine_is_measured() -> None:
    values = HostMeter().values()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_percentage"] < 100
    assert values["system_memory_usage_megabytes"] > 100
    assert values["network_receive_megabytes_per_second"] >= 0


class NVMLError(Exception):
    """As of nvidia-ml-py."""


def nvml(driver: bool = True) -> SimpleNamespace:
    """Stands for nvidia-ml-py on a machine with two GPUs, one of which does not tell its utilization."""

    def init() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    def utilization(handle: int) -> SimpleNamespace:
        if handle == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=73, memory=10)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=(handle + 1) * 2**30, total=4 * 2**30),
        nvmlDeviceGetUtilizationRates=utilization,
    )


TWO_GPUS = {
    **{"gpu_0_memory_usage_megabytes": 1024, "gpu_0_memory_usage_percentage": 25, "gpu_0_utilization_percentage": 73},
    **{"gpu_1_memory_usage_megabytes": 2048, "gpu_1_memory_usage_percentage": 50},
}


@pytest.mark.parametrize(("library", "expected"), [(nvml(), TWO_GPUS), (nvml(driver=False), {}), (None, {})])
def test_gpus_are_measured_without_a_context_on_any(
    library: SimpleNamespace | None, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)  # None: importing it raises ModuleNotFoundError
    for name in ("mem_get_info", "utilization", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("PyTorch would create a context"))
    values = HostMeter().values()
    assert {name: value for name, value in values.items() if name.startswith("gpu")} == expected


def test_host_metrics_are_logged_until_the_end() -> None:
    logged: list[dict[str, float]] = []
    twice = threading.Event()

    def log(values: dict[str, float]) -> None:
        logged.append(values)
        if len(logged) == 2:
            twice.set()

    with host_monitor(log, period=0.01):
        assert twice.wait(10)
    with host_monitor(lambda values: logged.append({"last": 1.0}), period=1000):
        pass
    assert logged[-1] == {"last": 1.0}
