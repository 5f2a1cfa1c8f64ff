"""The settings of an evaluation."""

import pytest

from igpt_model.evaluating.config import EvaluateConfig
from pipeline.errors import IgptError
from pipeline.typed_config import config_file


def test_a_split_is_one_of_three() -> None:
    assert config_file.load(EvaluateConfig, None, ["dataset=s3://a", "snapshot=3"]).split == "test"
    with pytest.raises(IgptError, match="split is 'all'"):
        config_file.load(EvaluateConfig, None, ["split=all"])
