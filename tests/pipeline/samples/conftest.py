"""Digits in many small shards, as the tests of training have them."""

from tests.igpt_model.data.conftest import config, data

__all__ = ["config", "data"]
