"""Registers a model from outside the pipeline: published weights, or a run, checkpoint or folder of ours."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from flows import trust
from flows.services import settings
from flows.version import commit_tags
from igpt_model.config import check_model_name
from igpt_model.convert import foreign
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry import card
from igpt_model.registry.client import Version, check_name
from igpt_model.registry.gate import BITS, PALETTE, SPLITS
from igpt_model.registry.register import register_files, write_card
from igpt_model.runs import checkpoint, record
from igpt_model.runs.open_model import load_model
from igpt_model.runs.result import read_result
from igpt_model.tracking import runs
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.images import palette
from pipeline.store import objects

EXPERIMENT = "imported"
"""The MLflow experiment with a run for each imported model."""
_LONGEST_TAG = 5000


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and what is known of its origin."""

    bundle: ModelBundle
    licence: str | None
    """None: the source names none."""
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An imported version."""

    version: Version
    is_new: bool
    """False: the same files were registered under this name before."""


def import_model(
    url: str,
    *,
    name: str,
    tracking_uri: str,
    palette_K3: np.ndarray | None = None,
    licence: str | None = None,
    commit: str | None = None,
) -> Imported:
    """Register a model by URL or path as a version of `name`. Nothing is registered when it cannot be used exactly.

    `palette_K3` is for foreign models without one. `licence` is for the tag, instead of what the source names. `commit`
    is that of this code. The same model is registered once. Raises IgptError.
    """
    check_model_name(name, "--name")
    check_name(name)
    source = open_source(url, palette_K3)
    stated = licence or source.licence
    tags = {
        **source.tags,
        card.LICENCE: stated or card.NOT_STATED,
        PALETTE: palette.sha256(source.bundle.palette_K3),
        **(commit_tags(commit) if commit else {}),
    }
    config = source.bundle.model.config
    version, is_new = register_files(
        source.bundle,
        name=name,
        tracking_uri=tracking_uri,
        run=lambda: runs.create_run(
            tracking_uri, EXPERIMENT, name, {f"model.{key}": value for key, value in asdict(config).items()}, tags
        ),
        tags=tags,
        best_layer=ProbedModel.unprobed(source.bundle).best_layer,
        key=settings.store_key("register"),
        signer=trust.signer(),
    )
    if licence is not None and version.tags.get(card.LICENCE) != licence:
        registry = trust.registry(tracking_uri)
        registry.tag(version, {card.LICENCE: licence})
        version = registry.find(version.uri)
        write_card(registry, version)
    return Imported(version=version, is_new=is_new)


def open_source(url: str, palette_K3: np.ndarray | None) -> Source:
    """Open a foreign model, or a run, checkpoint or model folder of ours. Raises IgptError when it cannot be used."""
    if url.startswith("models:"):
        raise IgptError(
            f"{url}: it is registered already; MLflow's copy_model_version, or Promote on its page, puts it under "
            "another name"
        )
    url = objects.absolute(url).rstrip("/")
    opened = foreign.open_foreign(url, palette_K3)
    if opened is not None:
        files = "; ".join(f"{name} {sha256}" for name, sha256 in opened.files.items())
        tags = {
            card.ORIGIN: url,
            card.ORIGIN_FORM: opened.form,
            card.ORIGIN_SHA256: files if len(files) <= _LONGEST_TAG else digest(dict(opened.files)),
        }
        return Source(bundle=opened.bundle, licence=opened.licence, tags=tags)
    if palette_K3 is not None:
        raise IgptError(f"{url}: an igpt model has its own palette, leave --palette out")
    if next(objects.list_files(url), None) is None:
        raise IgptError(
            f"{url}: nothing there; give a Hugging Face folder (`hf download openai/imagegpt-small --local-dir FOLDER` "
            "makes one), an .npz of OpenAI's variables, or a run, checkpoint or model folder of igpt"
        )
    return Source(bundle=load_model(url), licence=None, tags={card.ORIGIN: url, **_lineage(url)})


def _lineage(url: str) -> dict[str, str]:
    """The tags of a model of ours: of a run what it was trained on and how well it does, as far as that is there."""
    if checkpoint.is_checkpoint(url):
        return {card.ORIGIN_FORM: "checkpoint"}
    if objects.exists(objects.join(url, "model.json")):
        return {card.ORIGIN_FORM: "model folder"}
    tags = {card.ORIGIN_FORM: "training run", "igpt.run": url}
    try:
        data_config = record.read(url).config.data
        data = snapshot.read(data_config.dataset, data_config.snapshot)
    except IgptError:  # the dataset was elsewhere, or is gone
        return tags
    result = read_result(url)
    bits = {} if result is None else {BITS: f"{result.validation_loss / math.log(2):.5f}"}
    return {**tags, **runs.lineage_tags(data), SPLITS: runs.splits_digest(data), **bits}
