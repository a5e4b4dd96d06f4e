"""So many at once, so many that wait, and the rest are told when to come back."""

from __future__ import annotations

import asyncio

import pytest

from app.admission import Admission
from retrieval.errors import Overloaded


class Guest:
    """Holds a place until it is told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission))

    async def _stay(self, admission: Admission) -> None:
        async with admission:
            self.inside.set()
            await self.leave.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def arrive(admission: Admission, count: int) -> list[Guest]:
    guests = [Guest(admission) for _ in range(count)]
    await settle()
    return guests


async def go(guests: list[Guest]) -> None:
    for guest in guests:
        guest.leave.set()
    await asyncio.gather(*(guest.task for guest in guests))


async def test_as_many_as_the_limit_are_inside_and_the_others_wait_their_turn():
    admission = Admission(limit=2, waiting=3)
    guests = await arrive(admission, 5)
    assert [guest.inside.is_set() for guest in guests] == [True, True, False, False, False]
    assert admission.queued == 3
    guests[1].leave.set()
    await settle()
    assert [guest.inside.is_set() for guest in guests] == [True, True, True, False, False]
    await go(guests)
    assert admission.queued == 0


async def test_who_finds_the_queue_full_is_told_when_to_come_back():
    admission = Admission(limit=1, waiting=1)
    guests = await arrive(admission, 2)
    with pytest.raises(Overloaded) as caught:
        async with admission:
            pytest.fail("there was no place")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    await go(guests)
    async with admission:
        assert admission.queued == 0


async def test_without_a_queue_nobody_waits():
    admission = Admission(limit=1, waiting=0)
    guests = await arrive(admission, 1)
    with pytest.raises(Overloaded):
        async with admission:
            pass
    await go(guests)
    async with admission:
        pass


async def test_the_slower_those_inside_are_the_later_one_is_told_to_come_back():
    admission = Admission(limit=1, waiting=30)
    for _ in range(20):
        async with admission:
            await asyncio.sleep(0.06)
    quick = Admission(limit=1, waiting=30)
    for _ in range(60):
        async with quick:
            pass
    waits = []
    for each in (admission, quick):
        guests = await arrive(each, 31)
        with pytest.raises(Overloaded) as caught:
            await each.__aenter__()
        waits.append(caught.value.retry_after)
        await go(guests)
    assert waits[0] > waits[1] == 1.0


async def test_a_place_is_free_again_after_an_error():
    admission = Admission(limit=1, waiting=0)
    with pytest.raises(ValueError, match="inside"):
        async with admission:
            raise ValueError("inside")
    async with admission:
        pass


async def test_a_place_is_free_again_after_a_cancellation_inside_or_in_the_queue():
    admission = Admission(limit=1, waiting=2)
    inside, queued, last = await arrive(admission, 3)
    queued.task.cancel()
    await settle()
    assert admission.queued == 1
    inside.task.cancel()
    await settle()
    assert last.inside.is_set()
    await go([last])
    async with admission:
        assert admission.queued == 0
    assert queued.task.cancelled()
    assert inside.task.cancelled()
