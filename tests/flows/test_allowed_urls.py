"""The table of what deployed runs may name: checked before any request, in every field of their configs."""

import re
import socket
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from flows import allowed_urls, scheduled
from flows.config.describe import describe
from flows.config.refresh import RefreshConfig
from flows.services import settings
from igpt_model.config import PretrainConfig
from igpt_model.probing.config import ProbeConfig
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError
from pipeline.typed_config import values

ALLOWED = ("s3://raw", "s3://datasets/ours")
DATASET = DatasetConfig(raw="s3://raw/photos", dataset="s3://datasets/ours/photos")


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, ""),
        ({"raw": "s3://raw"}, ""),
        ({"raw": "s3://raw/"}, ""),
        ({"labels": "s3://raw/labels.csv"}, ""),
        ({"raw": "http://169.254.169.254/latest/meta-data"}, "raw is 'http://169.254.169.254/latest/meta-data'"),
        ({"raw": "https://example.org/images.tar"}, "raw is 'https://"),
        ({"raw": "/etc"}, "raw is '/etc'"),
        ({"raw": "relative"}, "raw is 'relative'"),
        ({"raw": "file:///etc"}, "raw is 'file:///etc'"),
        ({"raw": "simplecache::s3://raw/photos"}, "raw is 'simplecache::"),
        ({"raw": "s3://rawer/photos"}, "raw is 's3://rawer/photos'"),
        ({"raw": "s3://RAW/photos"}, "raw is 's3://RAW/photos'"),
        ({"raw": "s3://raw/../mlflow"}, "raw is 's3://raw/../mlflow'"),
        ({"raw": "s3://mlflow/1"}, "raw is 's3://mlflow/1'"),
        ({"dataset": "s3://datasets/others"}, "dataset is 's3://datasets/others'"),
        ({"dataset": "s3://datasets/ours-too"}, "dataset is 's3://datasets/ours-too'"),
        ({"labels": "/etc/passwd"}, "labels is '/etc/passwd'"),
        ({"labels": "/run/igpt/keys/signing-key"}, "labels is '/run/igpt/keys/signing-key'"),
        ({"palette": "http://example.org/p.npy"}, "palette is 'http://example.org/p.npy'"),
        ({"raw": "gopher://x/\x1b[2J\nline"}, "raw is "),
    ],
)
def test_what_a_deployed_run_may_name(fields: dict[str, str], refused: str) -> None:
    config = replace(DATASET, **fields)
    allowed_urls.check(config, None)
    if not refused:
        allowed_urls.check(config, ALLOWED)
        return
    with pytest.raises(IgptError) as error:
        allowed_urls.check(config, ALLOWED)
    said = str(error.value)
    assert refused in said and "deployed runs may name s3://raw and s3://datasets/ours only" in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (ProbeConfig(model="models:/igpt@champion", dataset="s3://datasets/ours/d"), ""),
        (ProbeConfig(model="http://x/m", dataset="s3://datasets/ours/d"), "model is 'http://x/m'"),
        (ProbeConfig(model="models:/m/1", dataset="s3://datasets/ours/d", features="/tmp"), "features is '/tmp'"),
        (
            ProbeConfig(model="s3://raw/r", dataset="s3://datasets/ours/d", checkpoints="all", beside=("/a",)),
            "beside is '/a'",
        ),
    ],
)
def test_what_a_probe_may_name(config: ProbeConfig, refused: str) -> None:
    if refused:
        with pytest.raises(IgptError, match=re.escape(refused)):
            allowed_urls.check(config, ALLOWED)
    else:
        allowed_urls.check(config, ALLOWED)


def test_every_field_that_names_a_place_is_checked() -> None:
    def named(kind: type[Any]) -> Iterator[str]:
        types = values.field_types(kind)
        for field in fields(kind):
            section = values.section_of(types[field.name])
            if section is not None and is_dataclass(section):
                yield from named(section)
        words = "URL|A run, |Further runs|Registered version"
        yield from re.findall(rf"# (?:{words})[^\n]*\n(?: *#[^\n]*\n)*? *(\w+):", describe(kind))

    places = {name for kind in (RefreshConfig, DatasetConfig, PretrainConfig, ProbeConfig) for name in named(kind)}
    assert places == allowed_urls.PLACES


@pytest.mark.parametrize("flow", ["build", "refresh", "probe"])
def test_a_deployed_run_refuses_it_before_any_request(flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setenv("IGPT_ALLOWED_URLS", "s3://raw s3://datasets/ours")
    monkeypatch.setattr(socket.socket, "connect", connect)
    hostile = replace(DATASET, raw="http://127.0.0.1:9/x")
    call = {
        "build": lambda: scheduled.scheduled_build.fn(hostile),
        "refresh": lambda: scheduled.scheduled_refresh.fn(
            RefreshConfig(dataset=hostile, pretrain=values.read(PretrainConfig, {"keeping": {"runs": "s3://raw"}}))
        ),
        "probe": lambda: scheduled.scheduled_probe.fn(ProbeConfig(dataset="http://127.0.0.1:9/x"), "models:/m/1"),
    }[flow]
    with pytest.raises(IgptError, match=r"is 'http://127\.0\.0\.1:9/x': deployed runs may name"):
        call()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("", None), ("s3://raw", ("s3://raw",)), (" s3://a  gs://b/c ", ("s3://a", "gs://b/c"))],
)
def test_the_setting(text: str | None, expected: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGPT_ALLOWED_URLS", raising=False)
    if text is not None:
        monkeypatch.setenv("IGPT_ALLOWED_URLS", text)
    assert settings.allowed_urls() == expected


@pytest.mark.parametrize("url", ["/data", "raw", "file:///data", "http://x/y", "https://x/y", "s3://", "s3:/raw"])
def test_it_takes_no_local_path_and_no_web_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_ALLOWED_URLS", f"s3://raw {url}")
    with pytest.raises(IgptError, match="IGPT_ALLOWED_URLS has "):
        settings.allowed_urls()
