"""Logs for machines: one JSON object a line, with the ids of the flow run that wrote it.

Prefect's processes use it where their environment says so; infra/compose.yaml has the three variables.
"""

import json
import logging
from datetime import UTC, datetime

# What Prefect adds to the records of its run loggers.
_IDS = ("flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "worker_name", "work_pool_name")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; the traceback, if there is one, is a field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: str(value) for name in _IDS if (value := getattr(record, name, None)) not in (None, "")},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
