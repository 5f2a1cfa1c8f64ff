"""Sheets of images drawn by a model: from its checkpoints during training, and at the end."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from flows.terminal.console import Reporter
from igpt_model.config import PretrainConfig
from igpt_model.model.bundle import ModelBundle
from igpt_model.runs import checkpoint
from igpt_model.tracking.runs import RunLogger
from igpt_model.tracking.sheets import draw_checkpoint, draw_sheet, sheet_names
from pipeline.cluster import tasks
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import first_line
from pipeline.progress import Progress
from pipeline.samples.shard_cache import ShardCache

_SHOWN_IMAGES = 6
# Up to this product of parameters and positions, a CPU draws a sheet in half a second (measured); a worker takes two
# seconds to import PyTorch.
_DRAWN_HERE = 60_000_000
# How long the end of a training waits for the sheet that is being drawn.
_FINAL_WAIT_SECONDS = 60.0


def held_out_images(config: PretrainConfig, data: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Validation images to complete, upscale or fill in: tokens [N, T] and class numbers [N]."""
    images = ShardCache(data, config.execution.cache).open(data.of_split("validation")[0])
    tokens_NHW = np.array(images.tokens_NHW[:_SHOWN_IMAGES])
    return tokens_NHW.reshape(len(tokens_NHW), -1), np.array(images.labels_N[:_SHOWN_IMAGES])


def shown_keys(config: PretrainConfig, data: Snapshot, sheet: str) -> tuple[str, ...]:
    """The keys of the images of the dataset that a sheet of this name shows: samples show none."""
    if sheet == "samples":
        return ()
    images = ShardCache(data, config.execution.cache).open(data.of_split("validation")[0])
    return tuple(images.view.key(row)[:KEY_LENGTH] for row in range(min(_SHOWN_IMAGES, len(images.labels_N))))


def draw_all(config: PretrainConfig, data: Snapshot, bundle: ModelBundle, progress: Progress) -> dict[str, np.ndarray]:
    """The sheets of a finished model by name, one Ray task per sheet, on a GPU if training used GPUs.

    Those of a small model are drawn on this process's CPU.
    """
    tokens_NT, labels_N = held_out_images(config, data)
    names = sheet_names(bundle)
    device, gpus = ("cuda", 1) if config.execution.use_gpu else ("cpu", 0)
    parameters = sum(weights.numel() for weights in bundle.model.parameters())
    is_small = not gpus and parameters * bundle.model.config.positions <= _DRAWN_HERE
    map_tasks = tasks.map_here if is_small else tasks.map_tasks
    calls = ((bundle, name, tokens_NT, labels_N, config.optimizer.seed, device) for name in names)
    sheets: dict[str, np.ndarray] = {}
    progress("draw", 0, len(names), "pictures")
    for done, (number, sheet) in enumerate(map_tasks(draw_sheet, calls, num_gpus=gpus), 1):
        sheets[names[number]] = sheet
        progress("draw", done, len(names), "pictures")
    return {name: sheets[name] for name in names}


class CheckpointPreviews:
    """Draws sheets from checkpoints during training, one at a time, and logs each to the MLflow run at its step.

    Training never waits for a sheet. One that fails, or is due while another is being drawn, is skipped with a
    message. The Ray task reserves no CPU or GPU, so that it takes none from training.
    """

    def __init__(self, config: PretrainConfig, data: Snapshot, run: str, logger: RunLogger, reporter: Reporter) -> None:
        self._config, self._data, self._run = config, data, run
        self._logger, self._reporter = logger, reporter
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="previews")
        self._drawing: Future[None] | None = None

    def __enter__(self) -> "CheckpointPreviews":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._drawing is not None:
            wait([self._drawing], timeout=_FINAL_WAIT_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def saved(self, step: int) -> None:
        """Draw from the checkpoint of a step if a sheet is due; `draw_all` draws those of the last step."""
        every = self._config.tracking.sample_every
        if every == 0 or step % every or step >= self._config.optimizer.steps:
            return
        if self._drawing is not None and not self._drawing.done():
            self._reporter.say(f"skipped the picture of step {step}: an earlier one is still being drawn")
            return
        self._drawing = self._pool.submit(self._draw, step)

    def _draw(self, step: int) -> None:
        try:
            tokens_NT, labels_N = held_out_images(self._config, self._data)
            call = (checkpoint.folder_of(self._run, step), tokens_NT, labels_N, self._config.optimizer.seed)
            for _, (name, sheet) in tasks.map_tasks(draw_checkpoint, [call], num_cpus=0):
                self._logger.picture_at(step, sheet, name)
        except Exception as error:  # noqa: BLE001 (a failed preview must not stop training)
            self._reporter.say(f"no picture of step {step}: {first_line(error)}")
