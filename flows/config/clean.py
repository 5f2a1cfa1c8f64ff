"""Settings of `igpt clean`: how long to keep what nobody needs any more."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import Range

Days = Annotated[float, Range(at_least=0, at_most=36_500)]


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Config):
    """How many days to keep what is not needed any more; none: for ever."""

    shown_by: ClassVar[str] = "`igpt config clean`"

    runs: tuple[str, ...] = ("s3://runs",)
    """Buckets or folders of training runs."""
    datasets: tuple[str, ...] = ("s3://datasets",)
    """Buckets or folders of datasets, with the feature caches beside them."""
    checkpoints: Days | None = 30
    """Days after the end of a run. Its newest checkpoint stays, unless its model is a registered version."""
    features: Days | None = 30
    """Days after the last extraction of a network's features. A later probe extracts them again."""
    logs: Days | None = 30
    """Days to keep stacks of workers that hung, and tracebacks of `igpt` on this machine."""
    mlflow: Days | None = 30
    """Days after a run, model or experiment was deleted in MLflow. Needs MLFLOW_BACKEND_STORE_URI, its database."""
