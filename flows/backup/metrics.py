"""What a folder of backups tells Prometheus: when the newest whole one began."""

from flows.backup import archive
from flows.monitor.sample import Sample


def samples(backups: str) -> list[Sample]:
    """The samples of a folder, which may not be there yet. Raises IgptError or OSError when it cannot be listed."""
    newest = max(archive.names(backups), default=None)
    began = 0.0 if newest is None else archive.began(newest).timestamp()
    return [Sample(name="igpt_backup_began_timestamp_seconds", value=began)]
