"""Logs for machines: one JSON object a line, with the ids of the flow run and of the Ray task that wrote it.

Prefect's processes use the format where their environment says so (infra/compose.yaml has the variables), Ray's workers
always: what they log is in the files `worker-*` of Ray's nodes.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

# What Prefect adds to the records of its run loggers, and what `worker_setup` adds to those of Ray's workers.
_IDS = (
    *("flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "worker_name", "work_pool_name"),
    *("ray_job_id", "ray_node_id", "ray_task_id"),
)


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


def worker_setup(ids: Callable[[], dict[str, str]]) -> Callable[[], None]:
    """What a worker process does to log in this format, warnings included; `ids` is asked at each line."""

    def log_as_json() -> None:
        def add_ids(record: logging.LogRecord) -> bool:
            record.__dict__.update(ids())
            return True

        console = logging.StreamHandler()
        console.setFormatter(JsonFormatter())
        console.addFilter(add_ids)
        for name in ("", "ray", "ray.train"):
            logger = logging.getLogger(name)
            logger.propagate = True
            # What writes to Ray Train's own files, as JSON too, stays.
            logger.handlers[:] = [each for each in logger.handlers if not _is_console(each)]
        root = logging.getLogger()
        root.addHandler(console)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)

    return log_as_json


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
