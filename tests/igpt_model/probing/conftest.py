"""The features that the probes are tried on."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from igpt_model.probing.linear import (
    LabelledFeatures,
    SplitFeatures,
)


@pytest.fixture(scope="session")
def digits() -> SplitFeatures:
    data = load_digits()
    names = {"train": slice(0, 900), "validation": slice(900, 1300), "test": slice(1300, 1797)}
    return SplitFeatures(
        **{
            name: LabelledFeatures(features=data.data[cut].astype(np.float32), labels=data.target[cut])
            for name, cut in names.items()
        }
    )
