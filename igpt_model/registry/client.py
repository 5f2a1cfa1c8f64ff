"""The MLflow model registry: finds and downloads versions, and promotes them to champion.

register.py adds versions; serving.py is the code of a loaded version.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry import checksums
from igpt_model.registry.gate import PROMOTED, ROLLED_BACK, Comparison, Decision, GateConfig, decide, decide_compared
from igpt_model.registry.trust import SIGNED_BY, Trust
from pipeline.errors import IgptError, first_line
from pipeline.images import palette
from pipeline.store import objects

CANDIDATE, CHAMPION = "candidate", "champion"
PROBED_AT = "igpt.probed_at"  # tag: when a version was last probed, in seconds since 1970
IDENTITY = "igpt.files_sha256"
"""Tag: the identity of the version's files (checksums.py)."""
_DECISION = "igpt.promotion"
_PREVIOUS = "igpt.previous_champion"
_TIME = "igpt.promotion_time"
_AGAINST = "igpt.promotion_against"
_NUMBERS = "igpt.promotion_numbers"
_OF = "igpt.promotion_of"
"""Tag: the version of which the tags of a promotion tell; MLflow copies tags to the copies of a version."""
OF_PROMOTION = (_DECISION, _PREVIOUS, _TIME, _AGAINST, _NUMBERS, _OF)
_LOGGED_MODEL = re.compile(r"m-\w+")
_TRIES = 5
_CONCURRENT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version."""

    name: str
    number: int
    run_id: str
    model_id: str
    """Id of MLflow's LoggedModel, to which metrics are attached; empty: `Registry.logged_model` looks it up."""
    tags: Mapping[str, str]
    """Those of a promotion only if they are the version's own, not those of the version that it is a copy of."""
    aliases: tuple[str, ...]
    created: datetime
    copied_from: str | None = None
    """The version that it is a copy of, models:/NAME/NUMBER; None: it is no copy."""
    description: str = ""

    @property
    def uri(self) -> str:
        """models:/{name}/{number}."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The result of a promotion or a rollback."""

    version: Version
    """The version to promote; after a rollback, the new champion."""
    previous: int | None
    """Number of the champion before; none: there was no champion."""
    decision: Decision


Compare = Callable[[Version, Version], Comparison]
"""Gives the metrics of a candidate and a champion on the same images."""


def as_tagged(candidate: Version, champion: Version) -> Comparison:
    """The tags of both as they are; `decide` refuses them when they were measured on other images."""
    return Comparison(candidate=candidate.tags, champion=champion.tags)


def check_name(name: str) -> None:
    """Raise IgptError for what cannot be the name of a model."""
    if not name or any(character in name for character in "/:'\"`"):
        raise IgptError(f"{name!r} is not a model name: it must not be empty or have a slash, colon or quote")


class Registry:
    """The registry of one MLflow server."""

    def __init__(self, tracking_uri: str, trust: Trust | None = None) -> None:
        """`trust`: whose signatures count; without it nobody's do, and versions open unverified."""
        self.tracking_uri = tracking_uri
        self._trust = Trust() if trust is None else trust
        self._client = MlflowClient(tracking_uri)

    def names(self) -> list[str]:
        """The names of all registered models."""
        names, token = [], None
        while True:
            with one_line(self.tracking_uri):
                page = self._client.search_registered_models(page_token=token)
            names += [model.name for model in page]
            token = page.token
            if not token:
                return sorted(names)

    def versions(self, name: str) -> list[Version]:
        """The versions of a model, newest first. Raises IgptError when there is no such model."""
        aliases = self.aliases_of(name)
        versions, token = [], None
        while True:
            with one_line(self.tracking_uri):
                page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
            versions += [_version(entity, aliases) for entity in page]
            token = page.token
            if not token:
                return sorted(versions, key=lambda version: -version.number)

    def find(self, reference: str) -> Version:
        """The version NAME@ALIAS or NAME/NUMBER, optionally prefixed with models:/. Raises IgptError if missing."""
        plain = reference.removeprefix("models:").strip("/")
        name, at, alias = plain.partition("@")
        if not at:
            name, slash, alias = plain.rpartition("/")
            if not slash or not alias.isdecimal():
                raise IgptError(f"{reference}: name a version, as in NAME@{CANDIDATE}, NAME@{CHAMPION} or NAME/3")
        aliases = self.aliases_of(name)
        if at and alias not in aliases:
            known = ", ".join(f"{known} (version {number})" for known, number in sorted(aliases.items())) or "none"
            raise IgptError(f"{reference}: no such alias, the model has {known}; `igpt models ls {name}` lists it")
        number = aliases[alias] if at else int(alias)
        try:
            return _version(self._client.get_model_version(name, str(number)), aliases)
        except MlflowException:
            raise IgptError(f"{reference}: no such version; `igpt models ls {name}` lists the versions") from None

    def aliases_of(self, name: str) -> dict[str, int]:
        """The version number of each alias of a model. Raises IgptError when there is no such model."""
        check_name(name)
        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise IgptError(f"{name}: no such model in {self.tracking_uri}; `igpt models ls` lists them") from None
            raise _to_igpt_error(error, self.tracking_uri) from None
        return {alias: int(number) for alias, number in model.aliases.items()}

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags on a version."""
        with one_line(self.tracking_uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.number), key, value)

    def describe(self, version: Version, text: str) -> None:
        """Set the description of a version, in Markdown."""
        with one_line(self.tracking_uri):
            self._client.update_model_version(version.name, str(version.number), text)

    def measure(self, version: Version, values: Mapping[str, float], *, dataset: str, digest: str) -> None:
        """Attach metrics measured on a snapshot to a version's model, as far as MLflow has it, and to its run.

        A version that was registered without a run has no place for them.
        """
        if not version.run_id:
            return
        now, name, model = int(time.time() * 1000), objects.name_of(dataset), self.logged_model(version)
        points = [
            Metric(key, value, now, 0, model_id=model, dataset_name=name, dataset_digest=digest[:12])
            for key, value in values.items()
        ]
        with one_line(self.tracking_uri):
            self._client.log_batch(version.run_id, metrics=points)

    def logged_model(self, version: Version) -> str | None:
        """The id of the LoggedModel of a version, of a copy that of what was copied; None: MLflow has none."""
        model = self._model_id(version)
        with one_line(self.tracking_uri):
            try:
                return self._client.get_logged_model(model).model_id if model else None
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def _model_id(self, version: Version) -> str:
        """The id of the LoggedModel whose files a version has; empty: it has others."""
        if version.model_id:
            return version.model_id
        with one_line(self.tracking_uri):
            # A copy of a copy names a version that may be gone; where its files lie, MLflow knows for good.
            url = self._client.get_model_version_download_uri(version.name, str(version.number))
        placed = re.search(r"/models/(m-\w+)(/|$)", url)
        return "" if placed is None else placed[1]

    def champion(self, name: str) -> Version | None:
        """The champion of a model; none: no champion yet."""
        number = self.aliases_of(name).get(CHAMPION)
        return None if number is None else self.find(f"{name}/{number}")

    def promote(self, reference: str, gate: GateConfig, compare: Compare = as_tagged) -> Promotion:
        """Make a version the champion if it passes the gate. The decision and its numbers are written to its tags.

        `compare` brings the numbers of two versions to the same images.

        The alias moves atomically, so there is a champion at all times. If another promotion happens in between, the
        version is compared again with the new champion; if two move the alias concurrently, the better one stays.
        """
        candidate = self.find(reference)
        for _ in range(_TRIES):
            champion = self.champion(candidate.name)
            if champion is not None and champion.number == candidate.number:
                raise IgptError(f"{candidate.uri} is the champion already; nothing to promote")
            if champion is None:
                decision = decide(candidate.tags, None, gate)
            else:
                decision = decide_compared(compare(candidate, champion), gate)
            previous = None if champion is None else champion.number
            if not decision.passed:
                self.tag(candidate, _decision_tags(candidate, decision, champion))
                return Promotion(version=candidate, previous=previous, decision=decision)
            current = self.aliases_of(candidate.name).get(CHAMPION)
            if current != previous:
                continue
            # Tags before the alias: a champion without the tag of its predecessor could not be rolled back.
            tags = {_PREVIOUS: "" if previous is None else str(previous)}
            self.tag(candidate, {**_decision_tags(candidate, decision, champion), **tags})
            with one_line(self.tracking_uri):
                self._client.set_registered_model_alias(candidate.name, CHAMPION, str(candidate.number))
            better = self._best_rival(candidate, previous, gate, compare)
            if better is not None and self.aliases_of(candidate.name).get(CHAMPION) == candidate.number:
                with one_line(self.tracking_uri):
                    self._client.set_registered_model_alias(candidate.name, CHAMPION, str(better.number))
                decision = decide_compared(compare(candidate, better), gate)
                self.tag(candidate, _decision_tags(candidate, decision, better))
            return Promotion(version=self.find(candidate.uri), previous=previous, decision=decision)
        raise IgptError(
            f"{candidate.uri}: other promotions of {candidate.name} keep interfering; run the same command again"
        )

    def _best_rival(
        self, candidate: Version, previous: int | None, gate: GateConfig, compare: Compare
    ) -> Version | None:
        """The best version promoted over the same champion within a minute; none: `candidate` is the best.

        A version is better when it passes the gate against the other but not the reverse. Every promotion writes its
        tags before it moves the alias, so the last one to move it sees all the others.
        """
        best = candidate
        for rival in self.versions(candidate.name):
            same = rival.tags.get(_PREVIOUS) == ("" if previous is None else str(previous))
            if rival.number == candidate.number or not same or rival.tags.get(_DECISION) != PROMOTED:
                continue
            age = datetime.now(UTC) - datetime.fromisoformat(rival.tags[_TIME])
            if abs(age.total_seconds()) > _CONCURRENT_SECONDS:
                continue
            rival_passes = decide_compared(compare(rival, best), gate).passed
            if rival_passes and not decide_compared(compare(best, rival), gate).passed:
                best = rival
        return None if best is candidate else best

    def rollback(self, name: str) -> Promotion:
        """Make the previous champion the champion again. Raises IgptError when there is none."""
        champion = self.champion(name)
        if champion is None:
            raise IgptError(f"{name}: it has no champion; `igpt models promote {name}@{CANDIDATE}` makes one")
        number = champion.tags.get(_PREVIOUS, "")
        if not number:
            raise IgptError(f"{champion.uri} is the first champion: there is none before it; promote another version")
        previous = self.find(f"{name}/{number}")
        with one_line(self.tracking_uri):
            self._client.set_registered_model_alias(name, CHAMPION, number)
        self.tag(champion, {ROLLED_BACK: f"to version {number}, {_now()}", _DECISION: "rolled back"})
        return Promotion(
            version=self.find(previous.uri), previous=champion.number, decision=Decision(refusals=(), compared={})
        )

    def palette(self, version: Version) -> bytes:
        """The palette of a version, as the bytes of an .npy file."""
        with tempfile.TemporaryDirectory(prefix="igpt-palette-") as temporary:
            return palette.to_bytes(self.fetch(version, Path(temporary)).palette_K3)

    def open(self, reference: str) -> ModelBundle:
        """Find, download and open the model of a version; raises like `find` and `fetch`."""
        with tempfile.TemporaryDirectory(prefix="igpt-model-") as temporary:
            return self.fetch(self.find(reference), Path(temporary))

    def open_probed(self, reference: str) -> ProbedModel:
        """Find, download and open a version with what its probe found; raises like `find` and `fetch`."""
        version = self.find(reference)
        with tempfile.TemporaryDirectory(prefix="igpt-model-") as temporary:
            return ProbedModel.load(_model_in(self.download(version, Path(temporary)), version), origin=version.uri)

    def fetch(self, version: Version, local: Path) -> ModelBundle:
        """Download and open a version's model. Raises IgptError when it is damaged or not what was registered."""
        return ModelBundle.load(_model_in(self.download(version, local), version), origin=version.uri)

    def download(self, version: Version, local: Path, *, signed: bool = True) -> Path:
        """Download a version as MLflow loads it; returns its folder. Raises as `fetch`.

        `signed`: verify its signature; whoever loads its code must have done so.
        """
        local.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.tracking_uri)
        with one_line(version.uri):
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.uri, dst_path=str(local)))
        if signed:
            model_id, signed_by = self._model_id(version), version.tags.get(SIGNED_BY, "")
            self._trust.check(path, version.uri, model=model_id, signed_by=signed_by)
        model = _model_in(path, version)
        if IDENTITY in version.tags:
            checksums.verify(model, version.uri, version.tags[IDENTITY])
        return path


def _model_in(path: Path, version: Version) -> Path:
    """The folder of the model's own files in what MLflow downloads of a version."""
    descriptions = sorted(path.rglob("model.json"))
    if not descriptions:
        raise IgptError(f"{version.uri}: not a model of igpt-pipeline, it holds no model.json")
    return descriptions[0].parent


def _version(entity: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number, source = int(entity.version), str(entity.source).removeprefix("models:/")
    # MLflow's database stores do not keep model_id; the source contains it, as models:/m-..., or names what was copied.
    copied_from = f"models:/{source}" if source != str(entity.source) and "/" in source else None
    version = Version(
        name=entity.name,
        number=number,
        run_id=entity.run_id or "",
        model_id=entity.model_id or (source if _LOGGED_MODEL.fullmatch(source) else ""),
        tags=dict(entity.tags),
        aliases=tuple(sorted(alias for alias, aliased in aliases.items() if aliased == number)),
        created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        copied_from=copied_from,
        description=entity.description or "",
    )
    if copied_from is None or version.tags.get(_OF) == version.uri:
        return version
    return replace(version, tags={tag: text for tag, text in version.tags.items() if tag not in OF_PROMOTION})


def _decision_tags(version: Version, decision: Decision, champion: Version | None) -> dict[str, str]:
    return {
        _OF: version.uri,
        _DECISION: decision.text,
        _TIME: _now(),
        _AGAINST: "" if champion is None else str(champion.number),
        _NUMBERS: json.dumps(dict(decision.compared), sort_keys=True),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def one_line(place: str) -> Iterator[None]:
    """Convert MLflow's errors to IgptError with one line."""
    try:
        yield
    except MlflowException as error:
        raise _to_igpt_error(error, place) from None


def _to_igpt_error(error: MlflowException, place: str) -> IgptError:
    return IgptError(f"{place}: {first_line(error)}; see the MLflow page")
