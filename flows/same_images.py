"""Brings the numbers of a candidate and a champion to the same images: those that the candidate was validated on.

An arrival of images changes the held-out images, so a champion of yesterday was measured on others than today's
candidate. Its loss is then measured again, once for each version and content, and its accuracy by a probe.
"""

from collections.abc import Callable
from dataclasses import dataclass

from flows.evaluate import version_loss
from igpt_model.evaluating.ray import Executor
from igpt_model.registry.client import Registry, Version, as_tagged
from igpt_model.registry.gate import ACCURACY, BITS, PALETTE, SPLITS, Comparison, GateConfig
from igpt_model.tracking import runs
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError, first_line
from pipeline.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class SameImages:
    """Compares versions of one registry on the same images, as far as the gate asks for it."""

    registry: Registry
    gate: GateConfig
    executor: Callable[[], Executor]
    """Called when something is to be measured."""
    probe: Callable[[Version, Snapshot], object] | None = None
    """Probes a version on a dataset, which writes its tags; None: a version without a probe there is refused."""
    progress: Progress = silent

    def __call__(self, candidate: Version, champion: Version) -> Comparison:
        """The tags of both, with metrics on the candidate's validation images."""
        splits = candidate.tags.get(SPLITS)
        # Other colours cannot be measured; without digests nobody knows what was measured. The gate tells either.
        same_palette = candidate.tags.get(PALETTE) == champion.tags.get(PALETTE)
        if splits in (None, champion.tags.get(SPLITS)) or not same_palette or self.gate.across_splits:
            return as_tagged(candidate, champion)
        try:
            data = _dataset_of(candidate)
            measured = {SPLITS: splits, **self._accuracy(champion, data)}
            return Comparison(
                candidate={**candidate.tags, **self._bits(candidate, data)},
                champion={**champion.tags, **measured, **self._bits(champion, data)},
            )
        except IgptError as error:
            problem = f"it and the champion could not be measured on the same images: {first_line(error)}"
            return Comparison(candidate=candidate.tags, champion=champion.tags, problem=problem)

    def _bits(self, version: Version, data: Snapshot) -> dict[str, str]:
        """Bits per pixel of a version. Both are measured, so that they are numbers of one program and one format."""
        if self.gate.min_bits_gain is None:
            return {}
        loss = version_loss(self.registry, version, data, "validation", self.executor(), self.progress)
        return {BITS: f"{loss.bits_per_pixel:.5f}"}

    def _accuracy(self, champion: Version, data: Snapshot) -> dict[str, str]:
        """The validation accuracy of the champion's probe on a dataset; probes it if nobody has."""
        if self.gate.min_accuracy_gain is None:
            return {}
        accuracy = _probed_accuracy(champion, data)
        if accuracy is None and self.probe is not None:
            self.probe(champion, data)
            accuracy = _probed_accuracy(self.registry.find(champion.uri), data)
        if accuracy is None:
            raise IgptError(
                f"{champion.uri} has no probe on these; `igpt probe model={champion.uri} dataset={data.dataset} "
                f"snapshot={data.number}` makes one, min_accuracy_gain=null does without"
            )
        return {ACCURACY: accuracy}


def _probed_accuracy(version: Version, data: Snapshot) -> str | None:
    """The validation accuracy of a version on a snapshot's content, from its tags; None: it was not probed there."""
    if runs.trained_on(version.tags, data):
        return version.tags.get(ACCURACY)
    _, _, probed_digest = version.tags.get(runs.probe_tag(data, "snapshot"), "").partition(" ")
    if not data.is_known_as(probed_digest):
        return None
    return version.tags.get(runs.probe_tag(data, "best_validation_accuracy"))


def _dataset_of(version: Version) -> Snapshot:
    """The snapshot that a version was trained on. Raises IgptError when it is not there any more."""
    dataset, number = version.tags.get("igpt.dataset", ""), version.tags.get("igpt.snapshot", "")
    if not dataset or not number.isdecimal():
        raise IgptError(f"{version.uri} does not tell its dataset (tags igpt.dataset and igpt.snapshot)")
    data = snapshot.read(dataset, int(number))
    if not runs.trained_on(version.tags, data):
        raise IgptError(f"{dataset}: snapshot {number} is not the one that {version.uri} was trained on")
    return data
