"""What the model draws, over the training and at its end, and the losses beside models without a network."""

import io

from PIL import Image

from flows.pretrain import PretrainOutcome
from flows.previews import shown_keys
from flows.report import training
from flows.report.content import Curve, Facts, Gallery, Table, Text
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.sample_quality import SampleQuality
from pipeline.inspect import tables
from tests.flows.report.conftest import Built, Logger


def test_samples_move_over_the_steps_and_completions_name_their_images(
    trained: PretrainOutcome, training_config: PretrainConfig, built: Built
) -> None:
    data = built.result.snapshot
    (gallery,) = training.drawn(trained, training_config, data, Logger()).blocks  # type: ignore[arg-type]
    assert isinstance(gallery, Gallery)
    samples, real, completions = gallery.groups
    moving, still = samples.pictures
    assert moving.moves and Image.open(io.BytesIO(moving.data)).n_frames == 3, "two checkpoints and the last step"
    assert moving.caption == "over the training" and still.caption == "after 300 steps"
    assert not still.moves and still.keys == moving.keys == (), "samples show no image of the dataset"
    train = {key for table in tables.images(data, "train") for key in table["key"].to_pylist()}
    keys = real.pictures[0].keys
    assert len(set(keys)) == len(keys) == data.of_split("train")[0].images and set(keys) <= train
    (completed,) = completions.pictures
    assert completed.keys == shown_keys(training_config, data, "completions") and len(completed.keys) == 6


def test_losses_are_beside_their_baselines(trained: PretrainOutcome) -> None:
    curve, facts = training.losses(trained, Logger()).blocks  # type: ignore[arg-type]
    assert isinstance(curve, Curve) and isinstance(facts, Facts)
    for name in ("training", "uniform", "unigram", "per-position unigram"):
        assert f">{name}</text>" in curve.svg
    assert ">validation</text>" not in curve.svg, "there is none in this run"
    values = {fact.name: fact.value for fact in facts.facts}
    assert values["validation loss"] == "1.500 nats per pixel, 2.164 bits" and "restarts" not in values


def test_samples_are_beside_held_out_images(quality: SampleQuality) -> None:
    text, beside, by_class = training.quality(quality, ("a", "b", "c")).blocks
    assert isinstance(text, Text) and isinstance(beside, Table) and isinstance(by_class, Table)
    assert "500 samples" in text.text and "40 held-out images" in text.text and "97.0%" in text.text
    assert [row[1:] for row in beside.rows] == [("81.2%", "95.0%"), ("43.4", "33.7")]
    assert by_class.rows == (("a", "50.0%"), ("b", "30.0%"), ("c", "20.0%"))
