"""Names that are used outside the code: in environments of containers, in scripts, in config files."""

import json
import logging
import logging.config
from pathlib import Path

import yaml

from flows.config.refresh import RefreshConfig
from igpt_model.config import PretrainConfig
from pipeline.typed_config import config_file
from tests.compatibility.earlier import FLAT, check_holds


def test_logging_configurations_find_the_json_formatter(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"class": "pipeline.logs.JsonFormatter", "format": "%(message)s"}},
            "handlers": {"file": {"class": "logging.FileHandler", "filename": str(log), "formatter": "json"}},
            "loggers": {"tried": {"handlers": ["file"], "level": "INFO", "propagate": False}},
        }
    )
    try:
        logging.getLogger("tried").info("%d images", 7)
    finally:
        for handler in list(logging.getLogger("tried").handlers):
            logging.getLogger("tried").removeHandler(handler)
            handler.close()
    assert json.loads(log.read_text())["message"] == "7 images"


def test_a_flat_pretrain_config_is_read() -> None:
    path = FLAT / "configs" / "pretrain.yaml"
    check_holds(config_file.load(PretrainConfig, path), yaml.safe_load(path.read_text()))


def test_a_flat_refresh_config_is_read() -> None:
    path = FLAT / "configs" / "refresh.yaml"
    check_holds(config_file.load(RefreshConfig, path), yaml.safe_load(path.read_text()))
