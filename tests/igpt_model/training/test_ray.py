"""Whether a training fits on a cluster is known before Ray would wait for ever."""

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.training.ray import check_resources
from pipeline.errors import IgptError

NODES = {"10.0.0.1": {"CPU": 4.0, "memory": 1e9}, "10.0.0.2": {"CPU": 2.0, "GPU": 1.0}, "10.0.0.3": {"memory": 1e9}}


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"workers": 6}, 0),
        ({"workers": 7}, 1),
        ({"workers": 3, "cpus_per_worker": 2}, 0),
        ({"workers": 3, "cpus_per_worker": 3}, 2),
        ({"workers": 4, "placement": "STRICT_PACK"}, 0),
        ({"workers": 5, "placement": "STRICT_PACK"}, 1),
        ({"workers": 2, "placement": "STRICT_SPREAD"}, 0),
        ({"workers": 3, "placement": "STRICT_SPREAD"}, 1),
        ({"workers": 1, "use_gpu": True}, 0),
        ({"workers": 2, "use_gpu": True}, 1),
        ({"workers": 40, "min_workers": 6}, 0),
        ({"workers": 40, "min_workers": 8}, 2),
    ],
    ids=str,
)
def test_workers_that_have_no_room_are_counted(fields: dict, missing: int) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", global_batch=64, **fields)
    if not missing:
        check_resources(config, NODES)
        return
    with pytest.raises(
        IgptError, match=f": {missing} missing; set {'min_' if 'min_workers' in fields else ''}workers,"
    ):
        check_resources(config, NODES)


def test_what_the_nodes_have_is_told_in_one_line() -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", workers=50, use_gpu=True, global_batch=64)
    nodes = {f"10.0.1.{number}": {"CPU": 1.0} for number in range(10)}
    with pytest.raises(IgptError) as raised:
        check_resources(config, nodes)
    line = str(raised.value)
    assert line.startswith("workers 50 need 1 CPU and 1 GPU each, placed PACK, and the Ray cluster has room for 0 (")
    assert "10.0.1.0: 1 CPU and 0 GPU, " in line and ", and 2 more)" in line and "\n" not in line
