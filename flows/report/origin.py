"""The sections of a report that say where results come from: lineage, time and memory, settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from flows import version
from flows.prefect_ops import ray_job
from flows.report.content import Fact, Facts, Section, Table
from flows.services import settings as services
from flows.terminal.memory import StageCost
from pipeline.dataset.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made the results; empty where there is none."""

    code: str
    """Program, version and commit."""
    flow_run: str = ""
    """URL of the Prefect flow run."""
    model: str = ""
    """The registered version, or what was probed."""
    parent: str = ""
    """The model that the training began from."""
    run: str = ""
    """The training run's folder."""
    mlflow_run: str = ""
    mlflow_url: str = ""


def of_this_run(*, model: str, parent: str = "", run: str = "", mlflow_run: str = "", mlflow_url: str = "") -> Origin:
    """The origin of what this flow run makes."""
    commit = version.commit(services.git_commit())
    flow_run = ray_job.flow_run_id()
    return Origin(
        code=f"igpt {version.version()}" + (f", commit {commit}" if commit else ""),
        flow_run=f"{services.load().prefect_url}/runs/flow-run/{flow_run}" if flow_run else "",
        model=model,
        parent=parent,
        run=run,
        mlflow_run=mlflow_run,
        mlflow_url=mlflow_url,
    )


def lineage(origin: Origin, data: Snapshot) -> Section:
    """From the dataset to the model, with the digests by which each is known."""
    facts = (
        Fact(name="dataset", value=data.dataset),
        Fact(
            name="snapshot",
            value=str(data.number),
            note="" if data.parent is None else f"after snapshot {data.parent}",
        ),
        Fact(name="content digest", value=data.content_digest),
        Fact(name="manifest digest", value=data.manifest_digest),
        Fact(name="palette", value=data.palette_sha256, note="SHA-256"),
        Fact(name="training run", value=origin.run),
        Fact(name="began from", value=origin.parent),
        Fact(name="MLflow run", value=origin.mlflow_run, link=origin.mlflow_url),
        Fact(name="model", value=origin.model),
        Fact(name="flow run", value=origin.flow_run, link=origin.flow_run),
        Fact(name="code", value=origin.code),
    )
    return Section(name="lineage", title="Lineage", blocks=(Facts(facts=tuple(fact for fact in facts if fact.value)),))


def costs(by_stage: Mapping[str, StageCost]) -> Section:
    """Seconds and peak memory by stage."""
    rows: list[dict[str, object]] = [
        {
            "stage": name.replace("_", " "),
            "seconds": round(cost.seconds, 1),
            "peak memory, MiB": cost.peak_memory_bytes >> 20,
        }
        for name, cost in by_stage.items()
    ]
    caption = "Memory is that of all processes of this machine that took part, the local services included."
    return Section(name="costs", title="Time and memory", blocks=(Table.of(rows, caption=caption),) if rows else ())


def settings(configs: Mapping[str, Any]) -> Section:
    """Every field of some configs, by name."""
    tables = [
        Table.of([{"setting": key, "value": _text(value)} for key, value in _flat(config).items()], caption=name)
        for name, config in configs.items()
    ]
    return Section(name="settings", title="Settings", blocks=tuple(tables), collapsed=True)


def _flat(config: Any) -> dict[str, object]:
    """The fields of a config, those of its sections as section.field."""
    values: dict[str, object] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            values |= {f"{field.name}.{name}": inner for name, inner in asdict(value).items()}
        else:
            values[field.name] = value
    return values


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)
