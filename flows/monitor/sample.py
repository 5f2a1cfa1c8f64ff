"""One value for Prometheus, and the descriptions of all that the exporter serves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GAUGES = {
    "igpt_source_up": "1 if the last attempt to read a source (store, mlflow, prefect, backups) succeeded",
    "igpt_source_read_timestamp_seconds": "When a source was last read",
    "igpt_snapshot_number": "Number of a dataset's newest snapshot",
    "igpt_snapshot_published_timestamp_seconds": "When a dataset's newest snapshot was published",
    "igpt_snapshot_images": "Images in a dataset's newest snapshot",
    "igpt_snapshot_rejected": "Images in quarantine in a dataset's newest snapshot, by reason",
    "igpt_lease_term": "How often a lease was taken; it is contested when it grows quickly",
    "igpt_model_version": "Number of a model's newest version",
    "igpt_model_champion_version": "Number of a model's champion; 0: none",
    "igpt_model_registered_timestamp_seconds": "When a model's newest version was registered, as its training ended",
    "igpt_model_probed_timestamp_seconds": "When a model's newest version was last probed; 0: not yet",
    "igpt_model_probe": "A probe's result for a model's newest version, by measure",
    "igpt_backup_began_timestamp_seconds": "When the newest whole backup began; 0: there is none",
    "igpt_deployment_runs": "Unfinished flow runs of a deployment, by state; LATE: due for over a minute, not started",
    "igpt_deployment_late_seconds": "For how long the earliest late run of a deployment has been due; 0: none is late",
    "igpt_deployment_running_seconds": "For how long a deployment's oldest unfinished run has run; 0: none runs",
    "igpt_deployment_ended_timestamp_seconds": "When a run of a deployment last ended, by state; 0: never",
    "igpt_deployment_ended_last_day": "Runs of a deployment that ended in the last day, by state; CRASHED: restarted",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The value of a gauge for some labels."""

    name: str
    """One of GAUGES."""
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
