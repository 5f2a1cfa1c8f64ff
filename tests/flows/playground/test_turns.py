"""Requests are computed one at a time and in order, one of each person, and each is told its place."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from flows.playground.limits import Limits
from flows.playground.turns import Turns, all_answers
from pipeline.errors import IgptError


class Person:
    """Asks once, and writes down what it is told."""

    def __init__(self, turns: Turns, name: str, log: list[str]) -> None:
        self.places: list[int] = []
        self.may_end = asyncio.Event()
        self.task = asyncio.create_task(self._ask(turns, name, log))

    async def _ask(self, turns: Turns, name: str, log: list[str]) -> None:
        async with turns.turn(name, self.places.append):
            log.append(f"{name} begins")
            await self.may_end.wait()
            log.append(f"{name} ends")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_one_at_a_time_in_order_with_its_place() -> None:
    async def test() -> None:
        turns, log = Turns(Limits()), list[str]()
        people = [Person(turns, name, log) for name in "abc"]
        await settle()
        assert log == ["a begins"]
        assert [person.places for person in people] == [[0], [1, 1], [2]]
        for person in people:
            person.may_end.set()
            await person.task
        assert log == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]
        assert [person.places[-1] for person in people] == [0, 0, 0]

    run(test)


def test_who_goes_away_holds_nobody_up() -> None:
    async def test() -> None:
        turns, log = Turns(Limits()), list[str]()
        first, second, third = (Person(turns, name, log) for name in "abc")
        await settle()
        second.task.cancel()
        await settle()
        assert third.places[-1] == 1
        first.task.cancel()
        await settle()
        assert log == ["a begins", "c begins"]
        third.may_end.set()
        await third.task

    run(test)


def test_a_person_has_one_request_and_the_line_an_end() -> None:
    async def test() -> None:
        turns, log = Turns(Limits(waiting=2)), list[str]()
        first = Person(turns, "a", log)
        await settle()
        with pytest.raises(IgptError, match="not answered yet"):
            await Person(turns, "a", log).task
        second = Person(turns, "b", log)
        await settle()
        with pytest.raises(IgptError, match="2 requests are waiting"):
            await Person(turns, "c", log).task
        first.may_end.set()
        second.may_end.set()
        await asyncio.gather(first.task, second.task)
        await settle()
        last = Person(turns, "c", log)
        last.may_end.set()
        await last.task

    run(test)


def test_a_person_has_so_many_requests_in_a_minute() -> None:
    async def test() -> None:
        now = 0.0
        turns = Turns(Limits(requests_per_minute=3), clock=lambda: now)

        async def ask(user: str, at: float) -> None:
            nonlocal now
            now = at
            async with turns.turn(user, lambda _: None):
                pass

        for at in (0.0, 10.0, 20.0):
            await ask("a", at)
        with pytest.raises(IgptError, match="3 requests in a minute"):
            await ask("a", 59.0)
        await ask("b", 59.0)
        await ask("a", 61.0)
        with pytest.raises(IgptError, match="3 requests in a minute"):
            await ask("a", 62.0)

    run(test)


def test_a_turn_lasts_until_all_of_it_is_computed() -> None:
    """Else the next person would ask a model that still answers this one."""

    async def test() -> None:
        ended = []

        async def answer(name: str, seconds: float, error: Exception | None) -> str:
            await asyncio.sleep(seconds)
            ended.append(name)
            if error is not None:
                raise error
            return name

        assert await all_answers([answer("a", 0.02, None), answer("b", 0, None)]) == ["a", "b"]
        with pytest.raises(ZeroDivisionError):
            await all_answers([answer("c", 0, ZeroDivisionError()), answer("d", 0.02, None)])
        assert ended == ["b", "a", "c", "d"]

    run(test)
