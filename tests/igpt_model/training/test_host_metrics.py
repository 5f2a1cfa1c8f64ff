"""The metrics of a training machine."""

import threading

from igpt_model.training.host_metrics import HostMeter, host_monitor


def test_a_machine_is_measured() -> None:
    values = HostMeter().values()
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["system_memory_usage_percentage"] < 100
    assert values["system_memory_usage_megabytes"] > 100
    assert values["network_receive_megabytes_per_second"] >= 0


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
