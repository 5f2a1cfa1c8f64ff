"""The digits as a dataset that no test changes."""

import pytest

from pipeline.dataset.snapshot import Snapshot


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """300 digits as a snapshot."""
    from tests.igpt_model.training.test_loop import digits_snapshot

    return digits_snapshot(tmp_path_factory.mktemp("digits"))
