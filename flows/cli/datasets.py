"""The commands of `igpt dataset`: build, inspect and clean up datasets."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import dataset_export, dataset_tables, lifecycle, near_duplicates
from flows.cli.options import ConfigFile, Dataset, Home, Json, Number, Overrides, finite, prepare
from flows.services import preflight, settings
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, print_table, size_text
from flows.version import version
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import SPLITS
from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.typed_config import config_file

if TYPE_CHECKING:
    from pipeline.build.build import PlannedBuild
    from pipeline.build.plan import Plan
    from pipeline.dataset.record import Publisher

# Ray and Prefect read their settings when they are imported, so commands import them after prepare().

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Build datasets, look into them, export them and clean up.",
)
app.add_typer(dataset_tables.app)
app.add_typer(near_duplicates.app)
app.add_typer(dataset_export.app)
app.add_typer(lifecycle.app)

_NAMED = 20  # shards or images of a kind that are named in text; --json names all


@app.command("build")
def build(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and build nothing.")] = False,
    refit_palette: Annotated[
        bool, typer.Option("--refit-palette", help="Fit the palette again; another one rebuilds every shard.")
    ] = False,
    remake: Annotated[
        bool, typer.Option("--remake", help="Make images anew that were decoded by an older rule, or another Pillow.")
    ] = False,
    verify_bytes: Annotated[
        bool, typer.Option("--verify-bytes", help="Read every image, and find those that changed under the same times.")
    ] = False,
    palette: Annotated[
        str | None, typer.Option(help="A palette to use: path or URL of OpenAI's .npy or a JSON list of clusters.")
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Build or update a dataset from its raw images; only what changed is rebuilt."""
    prepare(home, as_json=as_json)
    checked = _config(config, overrides, palette)
    if dry_run:
        _dry_run(checked, as_json, refit_palette=refit_palette, remake=remake, verify_bytes=verify_bytes)
        return
    preflight.check_prefect(settings.load().prefect_api_url)
    from flows.build_dataset import build_dataset

    result = build_dataset(checked, refit_palette=refit_palette, remake=remake, verify_bytes=verify_bytes)
    if as_json:
        print_json(
            {
                "snapshot": result.snapshot.number,
                "unchanged": result.unchanged,
                "content_digest": result.snapshot.content_digest,
                "manifest_digest": result.snapshot.manifest_digest,
                "images_in": result.planned.images_in,
                "images": result.snapshot.images(),
                "rejected": result.snapshot.rejected,
                "shards": len(result.snapshot.shards),
                "shards_reused": result.shards_reused,
                "plan": _plan_fields(result.planned),
                "seconds": result.seconds,
                "task_seconds": result.task_seconds,
            }
        )


def _config(path: Path | None, overrides: list[str] | None, palette: str | None) -> DatasetConfig:
    checked: DatasetConfig = config_file.load(DatasetConfig, path, overrides or [])
    return checked if palette is None else replace(checked, palette=palette)


def _dry_run(config: DatasetConfig, as_json: bool, **options: bool) -> None:
    from flows.build_dataset import describe_plan
    from flows.services import cluster
    from pipeline.build import build

    cluster.connect(settings.load().ray_address, "build")
    reporter = Reporter("dataset")
    planned = build.plan_build(config, **options, progress=reporter)
    reporter.close()
    if as_json:
        print_json(_plan_fields(planned))
        return
    console.print(f"dry run, nothing is written: {describe_plan(planned)}")
    if planned.left_out:
        from pipeline.source import left_out

        console.print(left_out.describe(planned.left_out))
    if planned.plan is not None:
        shards = _shards_by_action(planned.plan)
        print_table([{"action": action, "shards": len(names), **_by_split(names)} for action, names in shards.items()])
        for action in ("rewrite", "drop"):
            for name in shards[action][:_NAMED]:
                console.print(f"{action} {name}")
            if len(shards[action]) > _NAMED:
                console.print(f"{action} {len(shards[action]) - _NAMED:,} more; --json lists all")


def _shards_by_action(plan: "Plan") -> dict[str, list[str]]:
    return {
        "keep": [shard.name for shard in plan.keep],
        "make": [shard.name for shard in plan.make],
        "rewrite": [shard.replaces.name for shard in plan.rewrite if shard.replaces is not None],
        "drop": [shard.name for shard in plan.drop],
    }


def _by_split(names: list[str]) -> dict[str, int]:
    return {split: sum(name.startswith(f"{split}-") for name in names) for split in SPLITS}


def _plan_fields(planned: "PlannedBuild") -> dict[str, Any]:
    fields: dict[str, Any] = {
        "parent": planned.parent,
        "images_in": planned.images_in,
        "ignored_files": sum(planned.left_out.values()),
        "left_out": planned.left_out,
        "unlabelled": planned.unlabelled,
        "unmatched_labels": planned.unmatched_labels,
        "palette": planned.palette,
        "changed_config": planned.changed_config,
        "nothing_to_do": planned.plan is None,
        "recovered": planned.recovered,
        "images_of_older_rules": planned.older_images,
        "older_rules": planned.older_rules,
        "raw_moved_from": planned.moved_from,
    }
    if planned.plan is not None:
        fields |= {
            **_shards_by_action(planned.plan),
            "images_new": planned.plan.new_images,
            "images_changed": planned.plan.changed_images,
            "images_deleted": planned.plan.deleted_images,
        }
    return fields


@app.command("retry-failed")
def retry_failed(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, home: Home = None
) -> None:
    """Decode the images in quarantine again, and publish a snapshot if any is recovered. Takes the build's config."""
    prepare(home, as_json=as_json)
    checked: DatasetConfig = config_file.load(DatasetConfig, config, overrides or [])
    from flows.services import cluster
    from pipeline.build import retry

    cluster.connect(settings.load().ray_address, "build")
    reporter = Reporter("dataset")
    result = retry.retry_failed(checked, publisher=_publisher(), progress=reporter)
    reporter.say(
        f"{result.recovered} of {result.tried} images in quarantine recovered, {result.gone} are gone from the source; "
        f"snapshot {result.snapshot.number} {'is published' if result.recovered else 'is unchanged'}"
    )
    if as_json:
        fields = {name: getattr(result, name) for name in ("tried", "recovered", "gone")}
        print_json({**fields, "snapshot": result.snapshot.number})


@app.command("ls")
def ls(dataset: Dataset, as_json: Json = False, home: Home = None) -> None:
    """List the snapshots of a dataset, the oldest first."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import history

    summaries = history.summaries(dataset)
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    print_table(
        [
            {
                "snapshot": str(summary.number) + (" (latest)" if summary.latest else ""),
                "published": f"{datetime.fromtimestamp(summary.published, UTC):%Y-%m-%d %H:%M:%S} UTC",
                "parent": summary.parent,
                "images": summary.images,
                "rejected": summary.rejected,
                "shards": summary.shards,
                "size": size_text(summary.bytes),
                "resolution": f"{summary.resolution}x{summary.resolution}",
                "palette": f"{summary.colours} colours {summary.palette_sha256[:12]}",
                "tags": ", ".join(summary.tags),
            }
            for summary in summaries
        ]
    )


@app.command("show")
def show(dataset: Dataset, number: Number = None, as_json: Json = False, home: Home = None) -> None:
    """Show the contents of a snapshot by split, class and reason of rejection."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import history

    contents = history.contents(snapshot.read(dataset, number))
    chosen = contents.snapshot
    if as_json:
        fields = {name: value for name, value in asdict(contents).items() if name != "snapshot"}
        manifest = {name: getattr(chosen, name) for name in ("number", "parent", "resolution", "colours")}
        digests = {"content_digest": chosen.content_digest, "manifest_digest": chosen.manifest_digest}
        print_json({**manifest, **digests, "palette_sha256": chosen.palette_sha256, "config": chosen.config, **fields})
        return
    console.print(
        f"snapshot {chosen.number} of {chosen.dataset}, parent {chosen.parent or 'none'}, "
        f"content {chosen.content_digest[:12]}"
    )
    console.print(f"{chosen.resolution}x{chosen.resolution}, {chosen.colours} colours {chosen.palette_sha256[:12]}")
    console.print("config " + ", ".join(f"{name}={value}" for name, value in chosen.config.items()))
    rows: list[dict[str, object]] = []
    for split in SPLITS:
        counts = {name: getattr(contents, f"{name}_by_split")[split] for name in ("images", "samples", "shards")}
        rows.append({"split": split, **counts})
    console.print()
    print_table(rows)
    console.print()
    print_table(
        [
            {"class": name or "(no label)", **{split: counts.get(split, 0) for split in SPLITS}}
            for name, counts in contents.images_by_class.items()
        ]
    )
    if contents.rejected:
        console.print()
        print_table([{"rejected because": reason, "images": count} for reason, count in contents.rejected.items()])


@app.command("diff")
def diff(
    dataset: Dataset,
    before: Annotated[int, typer.Argument(metavar="A", help="Number of the earlier snapshot.")],
    after: Annotated[int, typer.Argument(metavar="B", help="Number of the later snapshot.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Show what changed between two snapshots of a dataset."""
    prepare(home, as_json=as_json)
    from pipeline.inspect import history

    changes = history.difference(snapshot.read(dataset, before), snapshot.read(dataset, after))
    if as_json:
        print_json(asdict(changes))
        return
    counts = {name: getattr(changes, name) for name in ("added", "removed", "changed", "moved", "unchanged")}
    print_table([{"images": name, "count": count} for name, count in counts.items()])
    console.print(f"shards: {changes.shards_kept} kept, {changes.shards_new} new, {changes.shards_gone} gone")
    console.print(f"palette: {'the same' if changes.same_palette else 'another'}")
    for name, (old, new) in changes.config.items():
        console.print(f"config: {name} {old} -> {new}")
    if changes.new_classes:
        console.print(f"new classes: {', '.join(changes.new_classes)}")
    rejected_before, rejected_after = changes.rejected_before, changes.rejected_after
    if rejected_before != rejected_after:
        console.print(f"rejected: {rejected_before or 'none'} -> {rejected_after or 'none'}")
    if changes.gone_classes:
        console.print(f"classes that are gone: {', '.join(changes.gone_classes)}")
    for kind, uris in changes.sources.items():
        for uri in uris[:_NAMED]:
            console.print(f"{kind} {uri}")
        if len(uris) > _NAMED:
            console.print(f"{kind}: and {len(uris) - _NAMED:,} more; --json names all")


@app.command("rollback")
def rollback_snapshot(
    dataset: Dataset,
    number: Annotated[int, typer.Argument(metavar="SNAPSHOT", help="Number of the snapshot to publish anew.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Publish an older snapshot anew as the newest; nothing is copied. The next build follows the raw images again."""
    prepare(home, as_json=as_json)
    from pipeline.dataset.lifecycle.rollback import rollback

    new = rollback(dataset, number, _publisher())
    if as_json:
        print_json({"snapshot": new.number, "content_digest": new.content_digest, "content_of": number})
        return
    console.print(f"snapshot {new.number} is published: it has the content of snapshot {number}")


@app.command("tag")
def tag_snapshot(
    dataset: Dataset,
    number: Annotated[int, typer.Argument(metavar="SNAPSHOT", help="Number of the snapshot.")],
    names: Annotated[list[str], typer.Argument(metavar="TAG...", help="The tags.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tags away.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Give a snapshot tags, which `igpt dataset ls` shows."""
    prepare(home, as_json=as_json)
    from pipeline.dataset.lifecycle.tag import tag

    tags = tag(dataset, number, remove=names) if remove else tag(dataset, number, add=names)
    if as_json:
        print_json({"snapshot": number, "tags": tags})
        return
    console.print(f"snapshot {number} has {'the tags ' + ', '.join(tags) if tags else 'no tags'}")


def _publisher() -> "Publisher":
    from pipeline.dataset.record import Publisher

    return Publisher(program=f"igpt {version()}")


@app.command("verify")
def verify_snapshot(dataset: Dataset, number: Number = None, as_json: Json = False, home: Home = None) -> None:
    """Compare every checksum and count of a snapshot with storage; exits with 1 if any differs."""
    prepare(home, as_json=as_json)
    chosen = snapshot.read(dataset, number)
    reporter = Reporter("dataset")
    from pipeline.inspect import verify

    problems = verify.verify(chosen, progress=reporter)
    reporter.close()
    if as_json:
        print_json({"snapshot": chosen.number, "problems": [asdict(problem) for problem in problems]})
    for problem in problems:
        console.print(f"{problem.path}: {problem.what}")
    state = f"{len(problems)} problems" if problems else "everything matches the manifest"
    console.print(f"snapshot {chosen.number}: {len(chosen.shards)} shards, {chosen.images():,} images, {state}")
    if problems:
        raise typer.Exit(1)


@app.command("gc")
def gc(
    dataset: Dataset,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    min_age_hours: Annotated[
        float, typer.Option(help="Keep files younger than this.", min=0.0, callback=finite)
    ] = 24.0,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Remove the files that no snapshot references; refused while a build is running."""
    prepare(home, as_json=as_json)
    from pipeline.inspect.gc import collect

    result = collect(dataset, min_age_seconds=3600 * min_age_hours, dry_run=dry_run)
    if as_json:
        print_json(asdict(result))
        return
    for path in result.files:
        console.print(path)
    console.print(
        f"{len(result.files)} files, {size_text(result.bytes)}, {'would be' if dry_run else 'are'} removed; "
        f"files of {result.snapshots} snapshots are kept, {result.too_young} unreferenced files are younger than "
        f"{min_age_hours:g} h"
    )


@app.command("sample")
def sample(
    dataset: Dataset,
    number: Number = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("sample.png"),
    images: Annotated[int, typer.Option(help="How many images.", min=1, max=200)] = 16,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.", min=0)] = 0,
    home: Home = None,
) -> None:
    """Write a contact sheet: raw images beside their quantized versions."""
    prepare(home)
    if split not in SPLITS:
        raise IgptError(f"split is {split!r}: it must be one of {', '.join(SPLITS)}")
    if not out.parent.is_dir():
        raise IgptError(f"{out}: the folder {out.parent} does not exist; create it first")
    chosen = snapshot.read(dataset, number)
    from pipeline.inspect import contact_sheet

    objects.write_bytes(str(out.absolute()), contact_sheet.contact_sheet(chosen, count=images, seed=seed, split=split))
    console.print(f"{out}: {split} images of snapshot {chosen.number}, raw beside quantized")
