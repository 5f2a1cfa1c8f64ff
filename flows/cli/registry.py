"""The commands of `igpt models`: import a model, show registered versions, and choose the champion."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ConfigFile, Home, Json, Overrides, prepare
from flows.services import settings
from flows.terminal.console import Reporter, console
from flows.terminal.tables import print_json, print_table
from igpt_model.registry.gate import ACCURACY, BITS, GateConfig
from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.typed_config import config_file

if TYPE_CHECKING:
    from igpt_model.registry.client import Registry, Version

# MLflow takes seconds to import, so commands import it when they run.

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Import, show, compare and promote registered models.",
)

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="A version: NAME@candidate, NAME@champion, NAME/3, or models:/... .")
]


@app.command("import")
def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face folder, an .npz of OpenAI's variables, or an igpt run, checkpoint or model folder; a "
            "path or s3:// URL.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name to register the model under.")],
    palette_file: Annotated[
        str | None,
        typer.Option(
            "--palette",
            help="Palette of a model without one: .npy [colours, 3] in [-1, 1] or JSON.",
            show_default=False,
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, if SOURCE names none.", show_default=False)
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Register a model from outside as the candidate: published weights, or a model of igpt.

    The same model is registered once. Nothing is registered when the model cannot be used exactly as it is.
    """
    registry = _registry(home, as_json=as_json)
    from flows import import_model as importing
    from flows import version as code
    from flows.cli.models import read_palette

    reporter = Reporter("import")
    reporter("read", 0, 0, "the model")
    imported = importing.import_model(
        source,
        name=name,
        tracking_uri=registry.tracking_uri,
        palette_K3=None if palette_file is None else read_palette(palette_file),
        licence=licence,
        commit=code.commit(settings.git_commit()),
    )
    reporter.close()
    version = imported.version
    if as_json:
        print_json({**_fields(version), "is_new": imported.is_new})
        return
    console.print(
        f"{version.uri} {'is registered' if imported.is_new else 'has these files already'}: {_said(version)}"
    )


@app.command("ls")
def ls(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A model; all by default.")] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """List the versions of a model, or of all models, the newest first."""
    registry = _registry(home, as_json=as_json)
    names = registry.names() if name is None else [name]
    versions = [version for model in names for version in registry.versions(model)]
    if as_json:
        print_json([_fields(version) for version in versions])
        return
    print_table([_row(version) for version in versions])
    if not versions:
        console.print("No model is registered; `igpt refresh` and `igpt models import` register one.")


@app.command("show")
def show(model: Reference, as_json: Json = False, home: Home = None) -> None:
    """Show a version with all of its tags: metrics, lineage, and its promotion."""
    version = _registry(home, as_json=as_json).find(model)
    if as_json:
        print_json(_fields(version))
        return
    print_table([_row(version)])
    if version.copied_from is not None:
        console.print(f"A copy of {version.copied_from}.")
    console.print()
    print_table([{"tag": key, "value": value} for key, value in sorted(version.tags.items())])


@app.command("compare")
def compare(model: Reference, other: Reference, as_json: Json = False, home: Home = None) -> None:
    """Compare two versions: show every tag in which they differ."""
    registry = _registry(home, as_json=as_json)
    versions = [registry.find(reference) for reference in (model, other)]
    keys = sorted(set(versions[0].tags) | set(versions[1].tags))
    rows = [{"tag": key, **{v.uri: v.tags.get(key) for v in versions}} for key in keys]
    different = [row for row in rows if len(set(list(row.values())[1:])) > 1]
    if as_json:
        print_json(different)
        return
    print_table(different)
    if not different:
        console.print("They do not differ in any tag.")


@app.command("promote")
def promote(
    model: Reference,
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Make a version the champion if it passes the gate; exits with 1 if it does not.

    The gate is a config (`igpt config promotion` prints it); its fields can be set here, as in min_probe_accuracy=0.9.
    The decision and the values compared are stored as tags of the version. A champion that was measured on other
    validation images is evaluated on those of the version, on the Ray cluster where there is one.
    """
    registry = _registry(home, as_json=as_json)
    from flows.evaluate import choose_executor
    from flows.same_images import SameImages

    gate, reporter = config_file.load(GateConfig, config, overrides or []), Reporter("promote")
    executor = cache(lambda: choose_executor(reporter.say))
    result = registry.promote(
        model, gate, SameImages(registry=registry, gate=gate, executor=executor, progress=reporter)
    )
    reporter.close()
    decision, version = result.decision, result.version
    if as_json:
        fields = {"promoted": decision.passed, "refusals": decision.refusals, "compared": dict(decision.compared)}
        print_json({"version": version.uri, "previous_champion": result.previous, **fields})
    else:
        for tag, value in decision.compared.items():
            console.print(f"  {tag} {value:.5f}")
        previous = "" if result.previous is None else f", replacing version {result.previous}"
        console.print(f"{version.uri}: {'is the champion now' + previous if decision.passed else decision.text}")
    if not decision.passed:
        raise typer.Exit(1)


@app.command("rollback")
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model whose champion to roll back.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Make the previous champion the champion again."""
    result = _registry(home, as_json=as_json).rollback(name)
    if as_json:
        print_json({"champion": result.version.uri, "rolled_back": result.previous})
        return
    console.print(f"{result.version.uri} is the champion again, replacing version {result.previous}")


@app.command("palette")
def palette(
    model: Reference,
    file: Annotated[Path, typer.Argument(help="File to write, .npy.")],
    home: Home = None,
) -> None:
    """Write the palette of a version, to build a dataset with which it can be probed."""
    if file.suffix != ".npy" or not file.absolute().parent.is_dir():
        raise IgptError(f"{file}: give a name that ends in .npy, in a folder that exists")
    registry = _registry(home)
    version = registry.find(model)
    objects.write_bytes(str(file.absolute()), registry.palette(version))
    console.print(f"{file} is the palette of {version.uri}; `igpt dataset build --palette {file}` builds with it")


@app.command("sign")
def sign(model: Reference, as_json: Json = False, home: Home = None) -> None:
    """Sign a version as its files are: one from before there were signatures, or of a key that is withdrawn.

    You vouch for its files: do it only for a version that nobody else can have changed.
    """
    registry = _registry(home, as_json=as_json)
    from flows import trust
    from igpt_model.registry.register import sign_registered
    from igpt_model.registry.trust import SIGNED_BY

    signer = trust.signer()
    if signer is None:
        raise IgptError("no key to sign with: set IGPT_SIGNING_KEY to its file; `igpt up` makes one for its services")
    version = sign_registered(registry, registry.find(model), signer, key=settings.store_key("register"))
    if as_json:
        print_json(_fields(version))
        return
    console.print(f"{version.uri} is signed by key {version.tags[SIGNED_BY]}")


@app.command("keys")
def keys(as_json: Json = False, home: Home = None) -> None:
    """List the keys whose signatures of models count here, as lines for a consumer's file of trusted keys."""
    prepare(home, as_json=as_json)
    from flows import trust
    from igpt_model.registry.signatures import line_of, public_key_of

    known, signer = trust.trusted_keys(), trust.signer()
    own = None if signer is None else public_key_of(signer.private_key)
    rows = [
        {"key": key, "public_key": public, "withdrawn": key in known.withdrawn, "signs_here": public == own}
        for key, public in sorted(known.keys.items())
    ]
    if as_json:
        print_json([{**row, "public_key": line_of(known.keys[str(row["key"])]).split()[1]} for row in rows])
        return
    for row in rows:
        what = " withdrawn" * bool(row["withdrawn"]) + " signs here" * bool(row["signs_here"])
        console.print(line_of(known.keys[str(row["key"])], f"{row['key']}{what}"))
    for key in sorted(known.withdrawn):
        console.print(f"withdrawn {key}")
    if not rows:
        console.print("No key is trusted here: IGPT_TRUSTED_KEYS is not set, or its file names none.")


def _registry(home: Path | None, *, as_json: bool = False) -> "Registry":
    prepare(home, as_json=as_json)
    uri = settings.tracking_uri()
    from flows import trust
    from igpt_model.tracking import runs

    runs.check_reachable(uri)
    return trust.registry(uri)


def _row(version: "Version") -> dict[str, object]:
    return {
        "model": version.name,
        "version": version.number,
        "aliases": ", ".join(version.aliases),
        "bits per pixel": version.tags.get(BITS, "-"),
        "probe accuracy": version.tags.get(ACCURACY, "-"),
        "dataset": f"{version.tags.get('igpt.dataset', '-')} {version.tags.get('igpt.snapshot', '')}".strip(),
        "signed by": version.tags.get("igpt.signed_by", "nobody"),
        "created": f"{version.created:%Y-%m-%d %H:%M}",
    }


def _said(version: "Version") -> str:
    """What a version is, and its licence, in words."""
    from igpt_model.registry import card

    return (
        f"{version.tags.get(card.ARCHITECTURE, 'a model')}; licence {version.tags.get(card.LICENCE, card.NOT_STATED)}"
    )


def _fields(version: "Version") -> dict[str, object]:
    return {"uri": version.uri, **vars(version)}
