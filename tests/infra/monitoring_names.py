"""The Prometheus queries of infra/monitoring/grafana-dashboard.json."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

DASHBOARD = json.loads((Path(__file__).parents[2] / "infra" / "monitoring" / "grafana-dashboard.json").read_text())


@dataclass(frozen=True)
class Query:
    """One line of a panel."""

    panel: str
    metrics: frozenset[str]
    """Those that Ray's nodes serve."""
    exported: frozenset[str]
    """Those of `igpt metrics`."""
    labels: frozenset[str]
    """The labels in its legend and its filters."""


def queries() -> list[Query]:
    """Every query of the dashboard."""
    result = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            labels |= set(re.findall(r"(\w+)=~", expression)) - {"job"}
            metrics = frozenset(re.findall(r"\bray_\w+", expression))
            exported = frozenset(re.findall(r"\bigpt_\w+", expression))
            result.append(Query(panel["title"], metrics, exported, frozenset(labels)))
    return result
