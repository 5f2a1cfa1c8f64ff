"""The commands of `igpt runs`: show training runs, and resume one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Home, Json, prepare
from flows.services import preflight, settings
from flows.terminal.console import console
from flows.terminal.tables import print_json, print_table, size_text
from pipeline.errors import IgptError
from pipeline.store import objects

if TYPE_CHECKING:
    from igpt_model.runs.checkpoint import Checkpoint

# Modules that need torch, Ray or Prefect are imported inside the commands, to keep the command line fast.

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Training runs: ls, show and resume.")

Runs = Annotated[str, typer.Argument(metavar="RUNS", help="URL or path of the folder that holds training runs.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="URL or path of a training run's folder.")]


@app.command("ls")
def list_runs(runs: Runs, as_json: Json = False, home: Home = None) -> None:
    """List the runs in a runs folder with their progress and results. Exits with 1 if one of them cannot be read."""
    prepare(home, as_json=as_json)
    from igpt_model.runs import record

    url = objects.absolute(runs)
    objects.check_reachable(url)
    rows = [_row(run) for run in record.find(url)]
    problems = [row["problem"] for row in rows if row["problem"] is not None]
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{name: row[name] for name in row if name not in ("url", "problem")} for row in rows])
        for problem in problems:
            console.print(problem)
    else:
        console.print(f"no training run in {url}")
    if problems:
        raise typer.Exit(1)


def _row(run: str) -> dict[str, Any]:
    try:
        return {**_progress(run), "url": run, "problem": None}
    except IgptError as error:
        unknown = dict.fromkeys(("step", "of", "validation loss", "restarts", "preset", "dataset"))
        return {"name": objects.name_of(run), "state": "damaged", **unknown, "url": run, "problem": str(error)}


def _progress(run: str) -> dict[str, Any]:
    from igpt_model.runs import attempts, checkpoint, record
    from igpt_model.runs.result import read_result

    config = record.read(run).config
    result = read_result(run)
    steps = checkpoint.marked_steps(run)
    finished = result is not None and result.steps >= config.optimizer.steps
    abandoned = not finished and attempts.why_abandoned(run) is not None
    return {
        "name": objects.name_of(run),
        "state": "finished" if finished else "abandoned" if abandoned else "unfinished",
        "step": steps[-1] if steps else 0,
        "of": config.optimizer.steps,
        "validation loss": None if result is None else round(result.validation_loss, 4),
        "restarts": None if result is None else result.restarts,
        "preset": config.model.preset,
        "dataset": f"{objects.name_of(config.data.dataset)} {config.data.snapshot}",
    }


@app.command("show")
def show(
    run: Run,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file of every checkpoint.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Show a run: its checkpoints, its curve, its config. Exits with 1 if a checkpoint is damaged."""
    prepare(home, as_json=as_json)
    from igpt_model.runs import attempts, checkpoint, metric_log
    from igpt_model.runs.record import read

    url = objects.absolute(run).rstrip("/")
    objects.check_reachable(url)
    record = read(url)
    checkpoints = [_checkpoint_row(url, step, verify=verify) for step in checkpoint.marked_steps(url)]
    curve = [{"step": logged.step, **logged.values} for logged in metric_log.read(url)]
    stacks = [file.url for file in objects.list_files(objects.join(url, "stacks"))]
    changed = _changed_fields(record.config)
    failures = attempts.failures(url)
    summary = _row(url)
    if as_json:
        print_json(
            {
                **summary,
                "mlflow_run": record.mlflow_run,
                "config": changed,
                "checkpoints": checkpoints,
                "curve": curve,
                "stacks": stacks,
            }
        )
    else:
        state = summary["state"]
        console.print(f"{url}: {state}, step {summary['step']:,} of {summary['of']:,}")
        if record.mlflow_run is not None:
            console.print(f"MLflow run {record.mlflow_run}")
        console.print("set: " + ", ".join(f"{name}={value}" for name, value in changed.items()))
        print_table(
            [{**row, "size": size_text(row["size"])} if row["size"] is not None else row for row in checkpoints]
        )
        shown = ("train_loss", "validation_loss", "learning_rate", "images_per_second")
        print_table([{"step": row["step"], **{name: _short(row.get(name)) for name in shown}} for row in curve[-10:]])
        for stack in stacks:
            console.print(f"stacks of a worker that hung: {stack}")
        if failures.count:
            console.print(f"it {failures.text}")
        if state == "abandoned":
            console.print(f"given up: {attempts.why_abandoned(url)}")
        if state != "finished":
            console.print(f"`igpt runs resume {run}` continues it")
    if any(row["files"] == "damaged" for row in checkpoints):
        raise typer.Exit(1)


def _checkpoint_row(run: str, step: int, *, verify: bool) -> dict[str, Any]:
    from igpt_model.runs import checkpoint

    row: dict[str, Any] = {"checkpoint": step, "validation loss": None, "workers": None, "size": None}
    try:
        saved: Checkpoint = checkpoint.read(checkpoint.folder_of(run, step))
        loss = saved.state.validation_loss
        row |= {"workers": saved.state.workers, "size": saved.bytes}
        row["validation loss"] = None if loss is None else round(loss, 4)
        return row | {"files": ("good" if checkpoint.is_good(saved) else "damaged") if verify else "not read"}
    except checkpoint.DAMAGE:
        return row | {"files": "damaged"}


def _changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, and `runs`."""
    runs = config.keeping.runs
    defaults = type(config).from_fields(runs=runs).flat()
    return {"runs": runs, **{name: value for name, value in config.flat().items() if value != defaults[name]}}


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


@app.command("resume")
def resume(run: Run, home: Home = None) -> None:
    """Continue an unfinished run, also one that was given up, with the config of its last start."""
    prepare(home)
    preflight.check_prefect(settings.load().prefect_api_url)
    from igpt_model.runs import attempts, record

    url = objects.absolute(run).rstrip("/")
    objects.check_reachable(url)
    runs, _, name = url.rpartition("/")
    config = record.read(url).config.with_fields(runs=runs, name=name)
    attempts.take_up_again(url)
    from flows.pretrain import pretrain as flow

    outcome = flow(config)
    console.print(f"run {outcome.run}")
    console.print(f"MLflow {outcome.mlflow_url}")
