"""Calls that are made as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ingest.together import Together


class Acts:
    """Does what it is told when it is let go on; what is in `bad` fails, and all that is done with it."""

    def __init__(self, *bad: str) -> None:
        self.bad = set(bad)
        self.calls: list[list[str]] = []
        self.go = asyncio.Event()

    async def __call__(self, _key: str, items: Sequence[str]) -> list[str]:
        self.calls.append(list(items))
        await self.go.wait()
        if found := self.bad & set(items):
            raise ValueError(*sorted(found))
        return [item.upper() for item in items]


async def started(together: Together[str, str, str], *items: str, key: str = "") -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(together.do(key, item)) for item in items]
    await asyncio.sleep(0.01)
    return tasks


async def test_what_comes_while_one_is_under_way_is_done_as_one():
    acts = Acts()
    together = Together(acts, most=3)
    first = await started(together, "a")
    others = await started(together, "b", "c", "d", "e")
    assert acts.calls == [["a"]]
    acts.go.set()
    assert await asyncio.gather(*first, *others) == list("ABCDE")
    assert acts.calls == [["a"], ["b", "c", "d"], ["e"]]
    assert together.idle
    await together.do("", "f")
    assert acts.calls[-1] == ["f"]


async def test_those_with_another_key_wait_for_nobody():
    acts = Acts()
    together = Together(acts, most=9)
    tasks = [*await started(together, "a", "b", key="one"), *await started(together, "c", key="other")]
    assert acts.calls == [["a", "b"], ["c"]]
    acts.go.set()
    assert await asyncio.gather(*tasks) == list("ABC")
    assert together.idle


async def test_who_comes_soon_after_a_call_waits_for_company(monkeypatch):
    monkeypatch.setattr("ingest.together.LONGEST_REST", 30.0)
    acts = Acts()
    together = Together(acts, most=3, rest=1e9)
    [first] = await started(together, "a")
    acts.go.set()
    assert await first == "A"  # nobody was there to wait for
    later = await started(together, "b", "c")
    assert acts.calls == [["a"]]
    assert not together.idle
    later += await started(together, "d", "e")
    assert await asyncio.gather(*later[:3]) == ["B", "C", "D"]
    assert acts.calls == [["a"], ["b", "c", "d"]]
    later[3].cancel()
    await asyncio.gather(*later, return_exceptions=True)


async def test_company_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr("ingest.together.LONGEST_REST", 0.05)
    acts = Acts()
    acts.go.set()
    together = Together(acts, most=3, rest=1e9)
    await together.do("", "a")
    assert await asyncio.wait_for(together.do("", "b"), 5) == "B"
    assert acts.calls == [["a"], ["b"]]
    while not together.idle:
        await asyncio.sleep(0.02)


async def test_an_error_is_its_own_callers():
    acts = Acts("bad")
    together = Together(acts, most=9)
    tasks = [*await started(together, "first"), *await started(together, "good", "bad", "also good")]
    acts.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [str, str, ValueError, str]
    assert acts.calls == [["first"], ["good", "bad", "also good"], ["good"], ["bad"], ["also good"]]


async def test_who_is_cancelled_while_waiting_is_never_done():
    acts = Acts()
    together = Together(acts, most=9)
    [first] = await started(together, "first")
    gone, last = await started(together, "gone", "last")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    acts.go.set()
    await asyncio.gather(first, last)
    assert acts.calls == [["first"], ["last"]]


async def test_who_is_cancelled_while_it_is_done_ends_when_that_has_ended():
    acts = Acts()
    together = Together(acts, most=9)
    gone, stays = await started(together, "gone", "stays")
    gone.cancel()
    await asyncio.sleep(0.05)
    assert not gone.done()
    acts.go.set()
    await stays
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert acts.calls == [["gone", "stays"]]


async def test_what_nobody_wants_any_more_is_stopped():
    acts = Acts()
    together = Together(acts, most=9)
    tasks = await started(together, "a", "b")
    for task in tasks:
        task.cancel()
    assert {type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
    assert together.idle
    acts.go.set()
    await together.do("", "c")
    assert acts.calls == [["a", "b"], ["c"]]


async def test_what_failed_together_is_not_done_again_for_who_has_gone():
    acts = Acts("bad")
    together = Together(acts, most=9)
    gone, bad, good = await started(together, "gone", "bad", "good")
    gone.cancel()
    acts.go.set()
    results = await asyncio.gather(gone, bad, good, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, ValueError, str]
    assert acts.calls == [["gone", "bad", "good"], ["bad"], ["good"]]


async def test_an_error_of_all_is_found_once():
    acts = Acts("bad")
    together = Together(acts, most=9, of_all=(ValueError,))
    tasks = await started(together, "good", "bad", "also good")
    acts.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    assert len(acts.calls) == 1
