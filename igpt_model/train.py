"""`python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...`: trains in this process, or as a worker of torchrun."""

import sys
from pathlib import Path

from pipeline.errors import IgptError
from pipeline.garbage import collect_less_often
from pipeline.operating_system import end_on_windows


def main() -> None:
    """Train as a worker of torchrun, or as the only worker. Bad input prints one line and exits with 2."""
    end_on_windows()
    collect_less_often()
    from igpt_model.config import PretrainConfig
    from igpt_model.runs import record
    from igpt_model.runs.result import finished
    from igpt_model.training import standalone
    from igpt_model.training.loop import train
    from pipeline.dataset import snapshot
    from pipeline.typed_config import config_file

    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        sys.exit(standalone.USAGE)
    try:
        config = config_file.load(PretrainConfig, Path(arguments[0]), arguments[1:])
        with standalone.worker(config) as worker:
            data = snapshot.read(config.given_dataset, config.data.snapshot)
            run = record.folder_of(config, data)
            config = record.as_begun(config, run).with_fields(workers=worker.world_size)
            result = finished(config, data, run) or train(config, data, run, worker, standalone.Printer())
            if worker.rank == 0:
                print(
                    f"{run}: validation loss {result.validation_loss:.4f} nats per pixel after {result.steps} steps, "
                    f"{result.images_per_second:.0f} images/s",
                    flush=True,
                )
    except IgptError as error:
        print(f"igpt: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
