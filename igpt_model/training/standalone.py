"""What `python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...` needs beside the training: config, worker, output.

Without Ray, MLflow, Prefect and pydantic. Metrics go to standard output, checkpoints and result.json to the run's
folder, where `igpt pretrain` with the same config looks for them. torchrun says how many workers there are, whatever
`workers` is.
"""

import json
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist

from igpt_model.config import PretrainConfig
from igpt_model.worker import Worker
from pipeline.errors import IgptError

USAGE = "usage: python -m igpt_model.train CONFIG.yaml [FIELD=VALUE]...  (the fields of `igpt config pretrain`)"


def read_config(path: Path, overrides: Sequence[str]) -> PretrainConfig:
    """A config from a YAML or JSON file and FIELD=VALUE overrides. Raises IgptError naming the field at fault."""
    values = _parse(_read(path), path)
    if not isinstance(values, dict):
        raise IgptError(f"{path}: a config is a mapping of fields, this is a {type(values).__name__}")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise IgptError(f"{override!r} is not an override: write FIELD=VALUE, as in steps=500")
        values[name] = _json_or(text)
    kinds = get_type_hints(PretrainConfig)
    known = {field.name: field for field in fields(PretrainConfig)}
    for name, value in values.items():
        if name not in known:
            raise IgptError(f"{path}: unknown field {name}; `igpt config pretrain` prints the known ones")
        values[name] = _checked(name, value, kinds[name])
    for name, field in known.items():
        if name not in values and (field.default is MISSING or name == "dataset"):
            raise IgptError(f"{path}: {name} is missing; set it in the file or as {name}=VALUE")
    if not values["dataset"]:
        raise IgptError(f"{path}: dataset is empty: give the URL or path of a dataset that `igpt dataset build` made")
    return PretrainConfig(**values)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise IgptError(f"{path}: {getattr(error, 'strerror', error)}; give the path of a YAML or JSON file") from None


def _json_or(text: str) -> Any:
    """The value of JSON text, or the text itself when it is none: a word, a path."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse(text: str, path: Path) -> Any:
    """The value of JSON or YAML text."""
    value = _json_or(text)
    if value is not text:
        return value
    try:
        import yaml  # noqa: PLC0415 (a machine that only trains need not have it)
    except ImportError:
        raise IgptError(f"{path}: reading YAML needs PyYAML: install pyyaml, or write the file as JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise IgptError(f"{path}: not valid YAML{line}; compare with `igpt config pretrain`") from None


def _checked(name: str, value: Any, kind: Any) -> Any:
    """A value if it is of a field's type: one of a few literals, int, float, bool, str, or None where it may be."""
    options = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    allowed = [repr(v) for option in options for v in get_args(option)] or [option.__name__ for option in options]
    raise IgptError(f"{name} is {value!r}: it must be {' or '.join(allowed).replace('NoneType', 'null')}")


class Printer:
    """Prints what a training tells, a line a time."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        print(f"step {step}  {shown}", flush=True)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def saved(self, step: int) -> None:
        """Say nothing: checkpoints are written in silence."""


@contextmanager
def worker(config: PretrainConfig) -> Iterator[Worker]:
    """Which worker of torchrun this process is, or the only one. Raises IgptError when there is no GPU to use."""
    if config.use_gpu and not torch.cuda.is_available():
        raise IgptError("use_gpu is set and PyTorch sees no GPU: install the driver, or set use_gpu to false")
    torch.set_num_threads(config.cpus_per_worker)
    device = torch.device("cpu")
    if config.use_gpu:
        device = torch.device("cuda", dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield Worker(device=device)
        return
    dist.init_process_group("nccl" if config.use_gpu else "gloo")
    try:
        yield Worker(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()
