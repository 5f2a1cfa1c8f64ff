"""What MLflow's registry tells of models: the newest version, the champion, the results of the probe."""

from collections.abc import Iterator
from contextlib import suppress

from flows.monitor.sample import Sample
from igpt_model.registry.client import CHAMPION, PROBED_AT, Registry

_PROBE = "igpt.probe."


class ModelReader:
    """Reads the samples of models by name."""

    def __init__(self, tracking_uri: str, models: tuple[str, ...]) -> None:
        self._registry = Registry(tracking_uri)
        self._models = models

    def __call__(self) -> list[Sample]:
        """Raises IgptError when MLflow does not answer."""
        registered = set(self._registry.names())
        return [sample for model in self._models for sample in self._of_model(model, model in registered)]

    def _of_model(self, model: str, registered: bool) -> Iterator[Sample]:
        labels = {"model": model}
        versions = self._registry.versions(model) if registered else []
        champions = [version.number for version in versions if CHAMPION in version.aliases]
        newest = versions[0] if versions else None
        created = 0.0 if newest is None else newest.created.timestamp()
        yield Sample(name="igpt_model_version", value=0 if newest is None else newest.number, labels=labels)
        yield Sample(name="igpt_model_champion_version", value=max(champions, default=0), labels=labels)
        yield Sample(name="igpt_model_registered_timestamp_seconds", value=created, labels=labels)
        probed = 0.0
        with suppress(ValueError):  # somebody may have changed the tag
            probed = 0.0 if newest is None else float(newest.tags.get(PROBED_AT, 0))
        yield Sample(name="igpt_model_probed_timestamp_seconds", value=probed, labels=labels)
        for tag, text in ({} if newest is None else newest.tags).items():
            if tag.startswith(_PROBE):
                with suppress(ValueError):  # some tags are text
                    measure = {**labels, "measure": tag.removeprefix(_PROBE)}
                    yield Sample(name="igpt_model_probe", value=float(text), labels=measure)
