"""Structured logs: one JSON object per line, with the ids of the flow run and the Ray task that wrote it. And back.

Prefect's processes use the format if their environment sets it (see infra/compose.yaml), Ray's workers always; their
logs are in the files `worker-*` of Ray's nodes.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.printable import UNPRINTABLE

# Prefect adds these to the records of its run loggers, `worker_setup` adds Ray's to those of its workers.
_PREFECT_IDS = (
    "flow_run_id",
    "flow_run_name",
    "flow_name",
    "task_run_id",
    "task_run_name",
    "worker_name",
    "work_pool_name",
)
_RAY_IDS = ("ray_job_id", "ray_node_id", "ray_task_id")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; the traceback, if there is one, is a field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        ids = {name: getattr(record, name, None) for name in (*_PREFECT_IDS, *_RAY_IDS)}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: str(value) for name, value in ids.items() if value not in (None, "")},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # Letters of all scripts stay readable; what a terminal obeys is escaped as JSON does it.
        return UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(line, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """A line that a worker process wrote."""

    node: str
    """The address of its node."""
    level: int
    """As in `logging`; that of a line in another format is INFO."""
    text: str
    logger: str = ""
    """Empty for a line in another format."""


def parse(node: str, line: str) -> WorkerLine:
    """A line of a worker's output: one of `JsonFormatter`, with its traceback, or whatever else a process prints."""
    try:
        entry = json.loads(line)
        level = logging.getLevelNamesMapping()[entry["level"]]
        text = "\n".join(part for part in (entry["message"], entry.get("traceback")) if part)
    except (ValueError, KeyError, TypeError):
        return WorkerLine(node=node, level=logging.INFO, text=line.rstrip())
    return WorkerLine(node=node, level=level, text=text, logger=str(entry.get("logger", "")))


def worker_setup(ids: Callable[[], dict[str, str]]) -> Callable[[], None]:
    """A setup hook that makes a worker process log in this format, warnings included; `ids` is called for each line."""

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
            # The handlers of Ray Train's own files, also JSON, stay.
            logger.handlers[:] = [handler for handler in logger.handlers if not _is_console(handler)]
        root = logging.getLogger()
        root.addHandler(console)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)

    return log_as_json


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
