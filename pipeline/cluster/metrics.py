"""What Prometheus is told of a run: gauges, which the Ray node of its driver serves with Ray's own metrics.

Ray puts `ray_` in front of their names. Its nodes serve them where Ray's agent is installed, as by our extra `metrics`;
elsewhere they are set and never seen.
"""

import threading
from collections.abc import Mapping
from functools import cache
from types import TracebackType

from ray.util.metrics import Gauge

# Ray serves a gauge for some 20 s after it was set, and sends what was set every 10 s.
_AGAIN_SECONDS = 5.0
_STAGE = {
    "stage_done": "What is done of the present step of a stage",
    "stage_total": "What there is to do in the present step of a stage; 0: unknown",
}
_TRAINING = {
    "step": "Optimizer steps done",
    "train_loss": "Training loss, the mean over the last ten steps, in nats per pixel",
    "validation_loss": "Loss on the validation split, in nats per pixel",
    "learning_rate": "Learning rate",
    "gradient_norm": "Norm of the gradient before it is clipped",
    "images_per_second": "Images trained on a second, of the steps alone",
    "flop_utilization": "Share of what a large matrix product reaches on the same device",
    "data_wait_share": "Share of a step that waits for images",
    "skipped_steps": "Steps left out because their loss or gradient was not finite",
}


@cache
def _gauge(name: str, description: str, labels: tuple[str, ...]) -> Gauge:
    return Gauge(f"igpt_{name}", description=description, tag_keys=labels)


class Meter:
    """Tells how far a stage is with its work on a subject: a dataset, a training run or a model.

    A context manager: while its block runs the newest values are set again and again, afterwards they vanish.
    """

    def __init__(self, stage: str, subject: str) -> None:
        self._stage, self._subject = stage, subject
        self._lock = threading.Lock()
        self._step: dict[str, float] = {}
        self._step_name = ""
        self._training: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="ray-metrics")

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, step: str, done: int, total: int, detail: str = "") -> None:
        """A Progress: of the step before nothing is told any more."""
        with self._lock:
            self._step_name, self._step = step, {"stage_done": done, "stage_total": total}

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """The newest numbers of a training, by the names that MLflow has for them; others are passed over."""
        known = {name: values[name] for name in _TRAINING if name in values}
        with self._lock:
            self._training |= {**known, "step": step} if known else {}

    def _repeat(self) -> None:
        while True:
            self._set()
            if self._ended.wait(_AGAIN_SECONDS):
                return

    def _set(self) -> None:
        with self._lock:
            name, step, training = self._step_name, dict(self._step), dict(self._training)
        labels = {"stage": self._stage, "subject": self._subject, "step": name}
        for key, value in step.items():
            _gauge(key, _STAGE[key], tuple(labels)).set(value, labels)
        run = {"run": self._subject}
        for key, value in training.items():
            _gauge(key, _TRAINING[key], tuple(run)).set(value, run)
