"""The lease: who may take it, that one of many does, that a dead holder is replaced and his token is worth nothing."""

import threading
import time
from pathlib import Path

import pytest

from pipeline import lease, storage
from pipeline.lease import Fence, LeaseHeldError, LeaseLostError, Sight, Step, next_step
from pipeline.storage import StoredFile

DEAD = 0.6  # seconds; thirty in production


def seen(term: int = 3, renewal: str = "a", age: float = 0.0, ended: bool = False) -> Sight:
    return Sight(term=term, renewal=renewal, age=age, ended=ended)


@pytest.mark.parametrize(
    ("first", "now", "waited", "step"),
    [
        (seen(term=0), seen(term=0), 0, Step.TAKE),
        (seen(ended=True), seen(ended=True), 0, Step.TAKE),
        (seen(age=31), seen(age=31), 0, Step.TAKE),  # long dead when one comes
        (seen(age=2), seen(age=2), 0, Step.WAIT),
        (seen(age=2), seen(age=29), 27, Step.WAIT),
        (seen(age=2), seen(age=1, renewal="b"), 5, Step.REFUSE),  # it has renewed
        (seen(term=3), seen(term=4), 5, Step.REFUSE),  # another came first
        (seen(term=3), seen(term=4, ended=True), 5, Step.TAKE),  # and is done
        (seen(), seen(), 29, Step.WAIT),  # a store without times: only our own clock
        (seen(), seen(), 31, Step.TAKE),
    ],
)
def test_what_is_seen_decides(first: Sight, now: Sight, waited: float, step: Step) -> None:
    assert next_step(first, now, waited, dead_seconds=30) is step


def test_a_look_takes_the_newest_term_and_the_clock_of_the_store() -> None:
    def file(name: str, modified: float, etag: str = "") -> StoredFile:
        return StoredFile(url=f"s3://b/d/lease/{name}", size=1, etag=etag, modified=modified)

    files = [
        file("00000006.ended", 90),
        file("00000007.json", 100),
        file("00000007.renewed", 140, "third"),
        file("look-1", 150),
        file("00000008.json.claims", 149),
    ]
    assert lease.sight(files, "s3://b/d/lease/look-1") == seen(term=7, renewal="third", age=10)
    assert lease.sight([], "s3://b/d/lease/look-1") == seen(term=0, renewal="")


def die_with(folder: str, **about: str) -> Fence:
    """Have the lease and stop renewing it, as a killed process does."""
    term, _ = lease._acquire(folder, {"who": "the dead", **about}, DEAD, print)
    return Fence(folder=folder, term=term)


def test_the_second_is_refused_while_the_first_is_alive_and_let_in_afterwards(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with lease.hold(folder, {"flow_run": "1234"}, dead_seconds=DEAD) as first:
        with (
            pytest.raises(LeaseHeldError, match=r"process \d+ on .* \(flow run 1234\) is at work"),
            lease.hold(folder, dead_seconds=DEAD),
        ):
            pass
        time.sleep(2 * DEAD)  # it renews
        first.fence.check()
    with lease.hold(folder, dead_seconds=DEAD) as second:
        assert second.fence.term == first.fence.term + 1
        assert second.taken_over_from is None


def test_a_dead_holder_is_replaced_and_its_token_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    old = die_with(folder, flow_run="1234")
    old.check()
    lines: list[str] = []
    began = time.monotonic()
    with lease.hold(folder, dead_seconds=DEAD, say=lines.append) as held:
        assert time.monotonic() - began >= 0.5 * DEAD
        assert held.taken_over_from is not None and held.taken_over_from["flow_run"] == "1234"
        held.fence.check()
        with pytest.raises(LeaseLostError, match="another process took over"):
            old.check()
    assert any("the dead (flow run 1234) died at work" in line for line in lines)
    with pytest.raises(LeaseLostError):
        old.check()  # for ever


def test_an_error_inside_ends_the_lease_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease.hold(str(tmp_path)):
        _ = 1 / 0
    began = time.monotonic()
    with lease.hold(str(tmp_path)):
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("after_a_death", [False, True])
def test_of_many_at_once_one_has_it(tmp_path: Path, after_a_death: bool) -> None:
    folder = str(tmp_path)
    if after_a_death:
        die_with(folder)
    inside: list[int] = []
    most: list[int] = []
    refused: list[str] = []
    leave = threading.Event()

    def want(number: int) -> None:
        try:
            with lease.hold(folder, dead_seconds=2):
                inside.append(number)
                most.append(len(inside))
                leave.wait(20)
                inside.remove(number)
        except LeaseHeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(refused) < 7 and time.monotonic() < deadline:
        time.sleep(0.05)
    leave.set()
    for thread in threads:
        thread.join()
    assert (max(most), len(refused)) == (1, 7)


def test_old_terms_are_forgotten_and_their_numbers_never_come_back(tmp_path: Path) -> None:
    for term in range(1, 5):
        with lease.hold(str(tmp_path)) as held:
            assert held.fence.term == term
    names = {file.url.rsplit("/", 1)[-1] for file in storage.list_files(f"{tmp_path}/lease")}
    assert names == {"00000004.json", "00000004.ended"}
