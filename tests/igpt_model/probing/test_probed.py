"""A model is stored with what its probe found."""

from pathlib import Path

import numpy as np
import pytest

from igpt_model.probing.probed import FILE, ProbedModel
from pipeline.errors import IgptError
from tests.igpt_model.registry.test_serving import make_bundle, make_head


@pytest.mark.parametrize("is_probed", [True, False])
def test_what_was_saved_is_loaded(is_probed: bool, tmp_path: Path) -> None:
    ProbedModel(bundle=make_bundle(), best_layer=2, head=make_head() if is_probed else None).save(tmp_path)
    kept = ProbedModel.load(tmp_path)
    assert kept.best_layer == 2 and kept.bundle.classes == ("a", "b", "c")
    assert (kept.head is not None) == is_probed
    assert kept.head is None or np.array_equal(kept.head.weight_KC, make_head().weight_KC)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"best_layer": null}', "[]"])
def test_a_damaged_file_is_one_line(content: str | None, tmp_path: Path) -> None:
    ProbedModel.unprobed(make_bundle()).save(tmp_path)
    (tmp_path / FILE).unlink() if content is None else (tmp_path / FILE).write_text(content)
    with pytest.raises(IgptError, match=r"models:/a/1: probed\.json is missing or damaged"):
        ProbedModel.load(tmp_path, origin="models:/a/1")


def test_without_a_probe_features_are_of_the_middle_layer() -> None:
    assert ProbedModel.unprobed(make_bundle()).best_layer == 1
