"""Deployments that a Prefect server stores from earlier code: their entrypoints exist and accept the parameters.

tests/integration/test_compatibility.py runs two of them on a server.
"""

from typing import Any

import pytest

from pipeline.dataset import snapshot
from tests.compatibility.earlier import FLAT, check_holds, read_json

NAMES = sorted(path.stem for path in (FLAT / "deployments").iterdir())


def parameters(stored: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a run: those stored, and what the event of a registration fills in."""
    return {**stored["parameters"], **({"model": "models:/fixtures/1"} if stored["name"] == "candidate" else {})}


@pytest.mark.parametrize("name", NAMES)
def test_the_flow_is_there_and_takes_the_stored_parameters(name: str) -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import validate

    stored = read_json(f"deployments/{name}.json")
    flow = load_flow_from_entrypoint(stored["entrypoint"], use_placeholder_flow=False)
    assert flow.name == stored["flow"]
    given = parameters(stored)
    # What the server checks, by the schema that it has stored or by the one that the next `igpt deploy` sends.
    for schema in (stored["parameter_openapi_schema"], parameter_schema(flow).model_dump_for_openapi()):
        validate(given, schema, raise_on_error=True)
    # What the process of the run does.
    taken = flow.validate_parameters(given)
    check_holds(taken["config"], given["config"])
    assert {key: taken[key] for key in given if key != "config"} == {k: v for k, v in given.items() if k != "config"}


def test_a_refresh_finds_the_run_that_it_began() -> None:
    from prefect.flows import load_flow_from_entrypoint

    stored = read_json("deployments/weekly.json")
    flow = load_flow_from_entrypoint(stored["entrypoint"], use_placeholder_flow=False)
    pretrain = flow.validate_parameters(stored["parameters"])["config"].pretrain
    (expected,) = [
        row["name"]
        for row in read_json("run_names.json")
        if row["config"].get("experiment") == pretrain.tracking.experiment
    ]
    assert pretrain.flat_run_name(snapshot.read(str(FLAT / "dataset")).manifest_digest) == expected


def test_there_is_one_of_each_flow() -> None:
    flows = {read_json(f"deployments/{name}.json")["flow"] for name in NAMES}
    assert flows == {"scheduled-build", "scheduled-refresh", "scheduled-probe"}
