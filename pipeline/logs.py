"""The stable name of the JSON formatter for logging configurations outside the code (compose.yaml, Kubernetes)."""

from pipeline.cluster.logs import JsonFormatter

__all__ = ["JsonFormatter"]
