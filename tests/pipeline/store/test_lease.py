"""The lease: who may take it, one winner of many, and a dead holder is replaced and fenced off."""

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.store import lease, objects
from pipeline.store.lease import Fence, LeaseHeldError, LeaseLostError, Observation, Step, next_step
from pipeline.store.objects import StoredFile

DEAD = 0.6  # seconds; thirty in production


def seen(term: int = 3, renewal: str = "a", age: float = 0.0, ended: bool = False) -> Observation:
    return Observation(term=term, renewal=renewal, age=age, ended=ended)


@pytest.mark.parametrize(
    ("first", "now", "waited", "step"),
    [
        (seen(term=0), seen(term=0), 0, Step.TAKE),
        (seen(ended=True), seen(ended=True), 0, Step.TAKE),
        (seen(age=3600), seen(age=3600), 0, Step.WAIT),  # dead, or the store was down, or everything was suspended
        (seen(age=3600), seen(age=3614), 14, Step.WAIT),
        (seen(age=3600), seen(age=3616), 16, Step.TAKE),
        (seen(age=3600), seen(age=1, renewal="b"), 4, Step.REFUSE),
        (seen(age=31, renewal=""), seen(age=2, renewal="b"), 1, Step.REFUSE),
        (seen(age=2), seen(age=2), 0, Step.WAIT),
        (seen(age=2), seen(age=29), 27, Step.WAIT),
        (seen(age=2), seen(age=1, renewal="b"), 5, Step.REFUSE),  # it has renewed
        (seen(term=3), seen(term=4), 5, Step.REFUSE),  # another came first
        (seen(term=3), seen(term=4, ended=True), 5, Step.TAKE),  # and is done
        (seen(), seen(), 29, Step.WAIT),  # a store without times: only our own clock
        (seen(), seen(), 31, Step.TAKE),
    ],
)
def test_observations_decide_the_next_step(first: Observation, now: Observation, waited: float, step: Step) -> None:
    assert next_step(first, now, waited, dead_seconds=30) is step


def test_an_observation_has_the_newest_term_and_its_age_by_the_clock_of_the_store() -> None:
    def file(name: str, modified: float, etag: str = "") -> StoredFile:
        return StoredFile(url=f"s3://b/d/lease/{name}", size=1, etag=etag, modified=modified)

    files = [
        file("00000006.ended", 90),
        file("00000007.json", 100),
        file("00000007.renewed", 140, "third"),
        file("look-1", 150),
        file("00000008.json.claims", 149),
    ]
    assert lease.observation(files, "s3://b/d/lease/look-1") == seen(term=7, renewal="third", age=10)
    assert lease.observation([], "s3://b/d/lease/look-1") == seen(term=0, renewal="")


def die_with(folder: str, **about: str) -> Fence:
    """Take the lease and do not renew it, like a killed process."""
    return lease._acquire(folder, {"who": "the dead", **about}, DEAD, print).fence


def test_the_second_process_is_refused_while_the_first_is_alive_and_admitted_afterwards(tmp_path: Path) -> None:
    folder, dead = str(tmp_path), 5 * DEAD  # a busy machine may pause for a while
    with lease.hold(folder, {"flow_run": "1234"}, dead_seconds=dead) as first:
        with (
            pytest.raises(LeaseHeldError, match=r"process \d+ on .* \(flow run 1234\) is working"),
            lease.hold(folder, dead_seconds=dead),
        ):
            pass
        time.sleep(2 * dead)  # it renews
        with pytest.raises(LeaseHeldError), lease.hold(folder, dead_seconds=dead):
            pass
        first.fence.check()
    with lease.hold(folder, dead_seconds=dead) as second:
        assert second.fence.term == first.fence.term + 1
        assert second.taken_over_from is None


def test_a_dead_holder_is_replaced_and_its_token_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    began = time.monotonic()
    old = die_with(folder, flow_run="1234")
    old.check()
    lines: list[str] = []
    with lease.hold(folder, dead_seconds=DEAD, say=lines.append) as held:
        assert time.monotonic() - began >= 0.9 * DEAD
        assert held.taken_over_from is not None and held.taken_over_from["flow_run"] == "1234"
        held.fence.check()
        with pytest.raises(LeaseLostError, match="another process took over"):
            old.check()
    assert any("the dead (flow run 1234) died while working" in line for line in lines)
    with pytest.raises(LeaseLostError):
        old.check()  # for ever


def test_an_error_inside_ends_the_lease_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease.hold(str(tmp_path)):
        _ = 1 / 0
    began = time.monotonic()
    with lease.hold(str(tmp_path)):
        assert time.monotonic() - began < 20  # of thirty


def test_renewals_continue_after_one_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failed = objects.write_bytes, threading.Event()

    def fail_once(url: str, data: bytes, *, patient: bool = True) -> None:
        if url.endswith(".renewed") and not failed.is_set():
            failed.set()
            raise OSError("no space left on device")
        write(url, data, patient=patient)

    monkeypatch.setattr(objects, "write_bytes", fail_once)
    with lease.hold(str(tmp_path), dead_seconds=DEAD):
        assert failed.wait(10)
        deadline = time.monotonic() + 10
        while not (tmp_path / "lease" / "00000001.renewed").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("after_a_death", [False, True])
def test_one_of_many_concurrent_processes_gets_the_lease(tmp_path: Path, after_a_death: bool) -> None:
    folder = str(tmp_path)
    if after_a_death:
        die_with(folder)
        for path in (tmp_path / "lease").glob("*.json"):  # long ago
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    inside: list[int] = []
    most: list[int] = []
    refused: list[str] = []
    leave = threading.Event()

    def want(number: int) -> None:
        try:
            with lease.hold(folder, dead_seconds=10):  # longer than a busy machine pauses
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


def test_old_terms_are_deleted_and_their_numbers_never_reused(tmp_path: Path) -> None:
    for term in range(1, 5):
        with lease.hold(str(tmp_path)) as held:
            assert held.fence.term == term
    names = {file.url.rsplit("/", 1)[-1] for file in objects.list_files(f"{tmp_path}/lease")}
    assert names == {"00000003.json", "00000003.ended", "00000004.json", "00000004.ended"}


def test_a_process_with_a_stale_observation_gets_no_old_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    look, stale = lease._observe, seen(term=0)
    for _ in range(4):
        with lease.hold(folder):
            pass
    looks = [stale]  # a process that was suspended between its observation and its step
    monkeypatch.setattr(lease, "_observe", lambda folder: looks.pop() if looks else look(folder))
    with lease.hold(folder) as held:
        assert held.fence.term == 5
        looks.append(stale)  # another
        with pytest.raises(LeaseHeldError), lease.hold(folder):
            pass
        names = {file.url.rsplit("/", 1)[-1] for file in objects.list_files(f"{folder}/lease")}
        assert "00000001.json" not in names
        held.fence.check()


def test_the_later_of_two_creators_of_a_term_holds_it(tmp_path: Path) -> None:
    """A store without conditional writes lets a late creator overwrite it."""
    folder = str(tmp_path)
    with lease.hold(folder) as held:
        objects.write_bytes(f"{folder}/lease/00000001.json", b'{"id": "another"}')
        with pytest.raises(LeaseLostError):
            held.fence.check()


def test_a_holder_is_not_declared_dead_after_a_standstill_of_the_observer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage of the store all leases look old, and their holders renew in a moment."""
    folder, dead = str(tmp_path), 4.0
    fence = die_with(folder)
    look, looked = lease._observe, 0

    def slow(folder: str) -> Observation:
        nonlocal looked
        looked += 1
        if looked == 2:
            time.sleep(1.5 * dead)
        if looked == 3:
            objects.write_bytes(f"{folder}/lease/{fence.term:08d}.renewed", b"1")
        return look(folder)

    monkeypatch.setattr(lease, "_observe", slow)
    with pytest.raises(LeaseHeldError), lease.hold(folder, dead_seconds=dead):
        pass
    fence.check()
