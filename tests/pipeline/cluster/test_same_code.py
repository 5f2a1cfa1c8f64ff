"""Which code counts as the same, and that nodes are asked and workers check themselves, on a real Ray cluster.

tests/integration/test_other_commit.py has a node of another commit.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import ray

from pipeline.cluster import same_code, tasks
from pipeline.cluster.same_code import Code, SameCode
from pipeline.errors import IgptError

pytestmark = pytest.mark.usefixtures("own_ray")

OWN = Code(version="1.2.0", commit="a" * 40, declared="", digest="d" * 64, place="one:/opt")
ELSEWHERE = replace(OWN, place="two:/opt")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (OWN, True),
        (ELSEWHERE, True),
        (replace(ELSEWHERE, commit=""), True),  # an installation without git, with the same files
        (replace(ELSEWHERE, commit="", digest="e" * 64), False),
        (replace(ELSEWHERE, commit="b" * 40), False),  # perhaps with other packages beside it
        (replace(ELSEWHERE, version="1.2.1"), False),
        (replace(ELSEWHERE, commit=f"{'a' * 40}-dirty", digest="e" * 64), False),
        (replace(ELSEWHERE, commit=f"{'a' * 40}-dirty"), True),  # changes outside of the packages
        # Somebody works in the checkout of the driver and the local Ray.
        (replace(OWN, commit=f"{'b' * 40}-dirty", digest="e" * 64), True),
        (replace(OWN, commit="b" * 40, declared="b" * 40), False),
        (Code(version="", commit="", declared="", digest="", place="two"), False),
    ],
)
def test_what_counts_as_the_same_code(other: Code, same: bool) -> None:
    assert OWN.is_as_good_as(other) is same and other.is_as_good_as(OWN) is same


def described(code: Code = ELSEWHERE) -> dict[str, str]:
    return dict(vars(code))


def described_as_another() -> dict[str, str]:
    return described(replace(ELSEWHERE, commit="b" * 40))


def test_a_run_stops_where_a_node_has_another_commit() -> None:
    same_code.check_nodes(SameCode(expected=OWN, describe=described), (__name__,))
    with pytest.raises(IgptError) as refused:
        same_code.check_nodes(SameCode(expected=OWN, describe=described_as_another), (__name__,))
    (node,) = tasks.node_resources()
    assert str(refused.value) == (
        f"Ray's node {node} runs 1.2.0 of commit bbbbbbbbbbbb (files dddddddd); this driver runs 1.2.0 of commit "
        "aaaaaaaaaaaa (files dddddddd), and has written nothing: bring both to one commit (infra/UPGRADE.md), then run "
        "it again"
    )


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[SameCode]:
    check = SameCode(expected=OWN, describe=described_as_another)
    monkeypatch.setattr(tasks, "_before_work", check)
    yield check


def test_a_worker_with_another_commit_refuses_its_task(checked: SameCode, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match=r"runs 1\.2\.0 of commit b+ .*, the driver 1\.2\.0 of commit a+ "):
        list(tasks.map_tasks((tmp_path / "ran").touch, [()]))
    assert not (tmp_path / "ran").exists()


def test_nodes_answer_with_modules_that_they_lack() -> None:
    module = ModuleType("only_here")
    exec("def part():\n    return 6\n\ndef answer():\n    return 7 * part()", vars(module))
    sys.modules["only_here"] = module
    try:
        assert list(tasks.ask_nodes(module.answer, ("only_here",)).values()) == [42]
        with pytest.raises(ray.exceptions.RayError):
            ray.get(ray.remote(module.answer).remote())
    finally:
        del sys.modules["only_here"]


def test_another_version_of_ray_is_told_in_one_line() -> None:
    code = (
        "import ray, sys\nray.__version__ = '2.59.0'\nfrom pipeline.cluster import tasks\n"
        "try:\n    tasks.connect(sys.argv[1])\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"IgptError Ray at {address} is of another version"), done.stdout + done.stderr
    assert "2.59.0" in done.stdout and ray.__version__ in done.stdout and done.stdout.count("\n") == 1
