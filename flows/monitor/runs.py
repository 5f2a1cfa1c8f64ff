"""What Prefect tells of deployments: what waits, runs, is late, and how runs ended. A pure function of the runs."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from flows.monitor.sample import Sample
from flows.prefect_ops.deployment_runs import ENDED, RunOfDeployment

_LATE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_OPEN = ("SCHEDULED", "LATE", "PENDING", "RUNNING", "CANCELLING")


def samples(deployments: Sequence[str], runs: Sequence[RunOfDeployment], now: datetime) -> list[Sample]:
    """The samples of every deployment, zeros included."""
    result = []
    for deployment in deployments:
        own = [run for run in runs if run.deployment == deployment]
        late = [
            now - run.due for run in own if run.state == "SCHEDULED" and run.due is not None and now - run.due > _LATE
        ]
        running = [now - run.started for run in own if run.state == "RUNNING" and run.started is not None]
        states = Counter(run.state for run in own if run.state in _OPEN)
        states["LATE"] = len(late)
        states["SCHEDULED"] -= len(late)
        values: dict[tuple[str, str], float] = {("runs", state): states[state] for state in _OPEN}
        values["late_seconds", ""] = max(late, default=timedelta(0)).total_seconds()
        values["running_seconds", ""] = max(running, default=timedelta(0)).total_seconds()
        for state in ENDED:
            ends = [run.ended for run in own if run.state == state and run.ended is not None]
            values["ended_timestamp_seconds", state] = max((end.timestamp() for end in ends), default=0.0)
            values["ended_last_day", state] = sum(now - end < _DAY for end in ends)
        for (name, state), value in values.items():
            labels = {"deployment": deployment, **({"state": state} if state else {})}
            result.append(Sample(name=f"igpt_deployment_{name}", value=value, labels=labels))
    return result
