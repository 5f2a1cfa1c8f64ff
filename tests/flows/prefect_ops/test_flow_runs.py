"""What becomes of the runs of a deployment when one of them begins: pure decisions."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from flows.prefect_ops.flow_runs import KnownRun, dead, order

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def run(number: int, state: str = "SCHEDULED", *, due: int = 0, since: int = 0, value: int = 1) -> KnownRun:
    """A run that was due, and came into its state, so many minutes ago."""
    return KnownRun(
        id=UUID(int=number),
        name=f"run-{number}",
        state=state,
        due=NOW - timedelta(minutes=due),
        since=NOW - timedelta(minutes=since),
        parameters={"config": {"value": value}},
    )


def test_of_twenty_late_runs_the_newest_works() -> None:
    late = [run(number, due=20 - number) for number in range(20)]
    mine = run(100, "RUNNING", due=30)
    what = order(mine, late, NOW)
    assert what.works is late[19]
    assert what.superseded == late[:19]


def test_the_newest_itself_sends_the_others_home() -> None:
    late = [run(number, due=20 + number) for number in range(20)]
    mine = run(100, "RUNNING", due=1)
    what = order(mine, late, NOW)
    assert what.works is mine
    assert what.superseded == late


def test_a_run_that_begins_in_time_works_though_newer_ones_come_faster_than_runs_begin() -> None:
    others = [run(1, due=0), run(2, due=0)]
    mine = run(100, "RUNNING", due=1)
    what = order(mine, others, NOW)
    assert what.works is mine
    assert what.superseded == others[:1], "one may wait"


def test_runs_of_the_future_with_other_parameters_and_at_work_are_left_alone() -> None:
    mine = run(100, "RUNNING", due=5)
    others = [run(1, due=-1), run(2, due=3, value=2), run(3, "RUNNING", due=1), run(4, "PENDING", due=1), mine]
    what = order(mine, others, NOW)
    assert (what.works, what.superseded) == (mine, [])


def test_who_is_at_work_without_the_lease_for_long_is_dead() -> None:
    mine = run(100, "RUNNING", since=60)
    others = [
        run(1, "RUNNING", since=3),
        run(2, "RUNNING", since=1),  # may just be looking at the lease
        run(3, "PENDING", since=5),  # its process may be starting
        run(4, "PENDING", since=11),
        run(5, "CANCELLING", since=3),
        run(6, "RUNNING", since=3, value=2),  # another dataset, another lease
        run(7, "SCHEDULED", since=30),
        mine,
    ]
    assert [each.id.int for each in dead(mine, others, NOW)] == [1, 4, 5]
