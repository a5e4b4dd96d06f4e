"""Overload is a normal answer: so many questions at once, so many that wait, and the rest are told when to come back."""

from __future__ import annotations

import asyncio
from types import TracebackType

from retrieval.errors import Overloaded


class Admission:
    """`async with admission:` holds one of `limit` places; at most `waiting` callers queue for one, more get `Overloaded`.

    `retry_after` is the time that those ahead need at the rate of the last ones served.
    """

    def __init__(self, *, limit: int, waiting: int) -> None:
        self.limit = limit
        self.waiting = waiting
        self.queued = 0
        self._places = asyncio.Semaphore(limit)
        self._seconds = 0.1  # moving average of how long a place is held
        self._since: dict[asyncio.Task[object] | None, float] = {}

    async def __aenter__(self) -> None:
        if self._places.locked() and self.queued >= self.waiting:
            wait = (self.queued + self.limit) / self.limit * self._seconds
            raise Overloaded(
                "too many questions at once: come back after the seconds in Retry-After", retry_after=max(1.0, wait)
            )
        self.queued += 1
        try:
            await self._places.acquire()
        finally:
            self.queued -= 1
        self._since[asyncio.current_task()] = asyncio.get_running_loop().time()

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        held = asyncio.get_running_loop().time() - self._since.pop(asyncio.current_task())
        self._seconds += (held - self._seconds) * 0.1
        self._places.release()
