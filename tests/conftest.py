"""Fixtures that need no service: real photographs, an image folder made of them, and builds without a cluster."""

import io
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import pytest
import threadpoolctl
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from pipeline.garbage import collect_less_often
from tests.side_by_side import STACK_FOLDER

# Most objects of a test process stay: modules of large libraries, and tests.
collect_less_often()

# One thread per process, also in processes that tests start: threads that wait for each other on busy cores take many
# times as long. PyTorch, imported later, reads the variable; the libraries of NumPy and scikit-learn are limited here.
os.environ["OMP_NUM_THREADS"] = "1"
threadpoolctl.threadpool_limits(1)

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be all that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.machine", "tests.rigs.fixtures"]
# The time of an example depends on the machine.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("long", hypothesis.settings.get_profile("untimed"), max_examples=2000)
hypothesis.settings.load_profile("untimed")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests by the services that they share, so that the others can run side by side with them."""
    if "needs_hosts" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.rig)
    shared = item._fixtureinfo.name2fixturedefs.get("stack") if isinstance(item, pytest.Function) else None
    if shared and shared[-1].scope == "session":
        item.add_marker(pytest.mark.stack)
        assert item.nodeid.startswith(STACK_FOLDER), f"{item.nodeid} uses the stack: it belongs into {STACK_FOLDER}"


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the modules with tests that share something dear: it is made once if the whole module runs together."""
    for name in ("refreshed", "production"):
        modules = {item.path for item in items if name in getattr(item, "fixturenames", ())}
        for item in items:
            if item.path in modules:
                item.add_marker(name)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Undo the side effects of a test that runs a command or a training in this process.

    These are the libraries' variables, a redirected console, and the number of threads.
    """
    variables = dict(os.environ)
    yield
    if dict(os.environ) != variables:
        os.environ.clear()
        os.environ.update(variables)
    if (console := sys.modules.get("flows.terminal.console")) is not None:
        console.console.redirected, console.console.stderr = None, False
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """Square cuttings of two real photographs, uint8 [120, 64, 64, 3]: 60 of a temple, then 60 of a flower."""
    tiles = []
    for photo_HWC in load_sample_images().images:
        rows, columns = photo_HWC.shape[0] // 64, photo_HWC.shape[1] // 64
        grid = photo_HWC[: rows * 64, : columns * 64].reshape(rows, 64, columns, 64, 3)
        tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, 64, 64, 3))
    photos_N64643 = np.concatenate(tiles)
    photos_N64643.setflags(write=False)
    return photos_N64643


@pytest.fixture(scope="session")
def image_folder(photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classes digit (20 grey PNG), flower (40 JPEG) and temple (40 PNG); copy it before a change."""
    root = tmp_path_factory.mktemp("images")
    for name in ("digit", "flower", "temple"):
        (root / name).mkdir()
    for number, digit_88 in enumerate(load_digits().images[:20]):
        grey = np.kron(digit_88 * 255 / 16, np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(grey).save(root / "digit" / f"{number:02d}.png")
    for number in range(40):
        Image.fromarray(photos[number]).save(root / "temple" / f"{number:02d}.png")
        Image.fromarray(photos[60 + number]).save(root / "flower" / f"{number:02d}.jpg", quality=90)
    return root


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def igpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Command]:
    """Runs the command line in this process, in an empty folder."""
    from flows.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGPT_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> Command:
        monkeypatch.setattr(sys, "argv", ["igpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        return Command(code=int(ended.value.code or 0), out=said.out, err=said.err)

    return run


def write_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of some files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def run_here(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, shared: tuple[Any, ...] = (), **_: Any
) -> Iterator[tuple[int, Any]]:
    """Like tasks.map_tasks, but in this process."""
    for number, call in enumerate(calls):
        yield number, function(*call, *shared)


@pytest.fixture(scope="module")
def without_cluster() -> Iterator[None]:
    """Tasks of a build run in this process."""
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        yield
