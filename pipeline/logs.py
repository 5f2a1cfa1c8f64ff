"""The name by which logging configurations outside the code know the JSON formatter (compose.yaml, Kubernetes)."""

from pipeline.cluster.logs import JsonFormatter

__all__ = ["JsonFormatter"]
