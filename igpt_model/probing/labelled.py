"""Labelled images as tokens, for classifiers that are trained on images and not on features."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LabelledTokens:
    """Images as tokens, int64 [n, T], and their classes, int64 [n]."""

    tokens_NT: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SplitTokens:
    """The images of a dataset's three splits."""

    train: LabelledTokens
    validation: LabelledTokens
    test: LabelledTokens

    @property
    def classes(self) -> int:
        """The largest class number of all splits, and one."""
        return int(max(part.labels_N.max() for part in (self.train, self.validation, self.test))) + 1
