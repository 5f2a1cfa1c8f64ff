"""Which of a deployment's runs work, are superseded or are dead when one of them starts."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from flows.prefect_ops.flow_runs import DeployedRun, dead, decide

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def run(number: int, state: str = "SCHEDULED", *, due: int = 0, since: int = 0, value: int = 1) -> DeployedRun:
    """A run that was due `due` minutes ago, and entered its state `since` minutes ago."""
    return DeployedRun(
        id=UUID(int=number),
        name=f"run-{number}",
        state=state,
        due=NOW - timedelta(minutes=due),
        since=NOW - timedelta(minutes=since),
        parameters={"config": {"value": value}},
    )


def test_of_twenty_late_runs_only_the_newest_works() -> None:
    late = [run(number, due=20 - number) for number in range(20)]
    current = run(100, "RUNNING", due=30)
    decision = decide(current, late, NOW)
    assert decision.active is late[19]
    assert decision.superseded == late[:19]


def test_the_newest_run_supersedes_all_waiting_ones() -> None:
    late = [run(number, due=20 + number) for number in range(20)]
    current = run(100, "RUNNING", due=1)
    decision = decide(current, late, NOW)
    assert decision.active is current
    assert decision.superseded == late


def test_a_run_that_starts_in_time_works_even_if_newer_ones_wait() -> None:
    others = [run(1, due=0), run(2, due=0)]
    current = run(100, "RUNNING", due=1)
    decision = decide(current, others, NOW)
    assert decision.active is current
    assert decision.superseded == others[:1], "the newest one may wait"


def test_future_runs_runs_with_other_parameters_and_running_ones_are_not_touched() -> None:
    current = run(100, "RUNNING", due=5)
    others = [run(1, due=-1), run(2, due=3, value=2), run(3, "RUNNING", due=1), run(4, "PENDING", due=1), current]
    decision = decide(current, others, NOW)
    assert (decision.active, decision.superseded) == (current, [])


def test_a_run_that_has_worked_for_long_without_the_lease_is_dead() -> None:
    current = run(100, "RUNNING", since=60)
    others = [
        run(1, "RUNNING", since=3),
        run(2, "RUNNING", since=1),  # may be about to acquire the lease
        run(3, "PENDING", since=5),  # its process may be starting
        run(4, "PENDING", since=11),
        run(5, "CANCELLING", since=3),
        run(6, "RUNNING", since=3, value=2),  # another dataset, another lease
        run(7, "SCHEDULED", since=30),
        current,
    ]
    assert [run.id.int for run in dead(current, others, NOW)] == [1, 4, 5]
