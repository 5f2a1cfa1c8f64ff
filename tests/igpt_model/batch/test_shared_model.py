"""A model over shared weights is the model, and has no copy of them."""

import pickle

import pytest
import torch

from igpt_model.batch.shared_model import SharedModel
from tests.igpt_model.registry.test_serving import make_bundle


@pytest.mark.parametrize("fields", [{}, {"objective": "masked"}, {"classes": 3}, {"low_resolution": 2}], ids=str)
def test_a_model_over_read_only_weights_is_the_same(fields: dict, recwarn: pytest.WarningsRecorder) -> None:
    bundle = make_bundle(**fields)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(SharedModel.of(bundle), protocol=5, buffer_callback=buffers.append)
    assert len(data) < 10_000, "weights are beside the pickle, where Ray shares them"
    read_only = [bytes(buffer) for buffer in buffers]  # as Ray's
    shared: SharedModel = pickle.loads(data, buffers=read_only)  # noqa: S301
    opened = shared.open()
    assert opened.classes == bundle.classes and opened.model.config == bundle.model.config
    for name, weight in bundle.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], weight)
        assert opened.model.state_dict()[name].data_ptr() == shared.weights[name].ctypes.data
    assert not recwarn.list
