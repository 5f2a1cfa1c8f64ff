"""Lineage, costs and settings: what there is, and no empty rows."""

from flows.report import origin
from flows.report.content import Facts, Table
from flows.report.origin import Origin
from igpt_model.probing.config import ProbeConfig
from tests.flows.report.conftest import COSTS, ORIGIN, Built


def test_lineage_names_what_there_is(built: Built) -> None:
    data = built.result.snapshot
    (facts,) = origin.lineage(ORIGIN, data).blocks
    assert isinstance(facts, Facts)
    values = {fact.name: fact.value for fact in facts.facts}
    assert values["content digest"] == data.content_digest and values["training run"] == "runs/<a>"
    assert next(fact.link for fact in facts.facts if fact.name == "MLflow run") == "http://m/#/runs/ab"
    (fewer,) = origin.lineage(Origin(code="igpt 1"), data).blocks
    assert isinstance(fewer, Facts)
    assert {"flow run", "model", "training run", "began from"}.isdisjoint(fact.name for fact in fewer.facts)


def test_costs_are_by_stage() -> None:
    (table,) = origin.costs(COSTS).blocks
    assert isinstance(table, Table) and table.rows == (("pretrain", 61.3, 3072), ("probe", 5, 0))
    assert origin.costs({}).blocks == ()


def test_every_setting_is_named() -> None:
    (table,) = origin.settings({"probe": ProbeConfig(model="m")}).blocks
    assert isinstance(table, Table)
    values = dict(table.rows)
    assert values["model"] == "m" and values["strengths"] == "0.001, 0.01, 0.1, 1.0" and values["fine_tune"] == "none"
    assert table.caption == "probe"
