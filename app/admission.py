"""Overload is a normal answer: so many questions at once, so many jobs that wait, and the rest are told when to come back."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from app.metrics import WAITING
from app.wiring import Service
from retrieval.errors import Overloaded

FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.02, 0.5
UNKNOWN_SECONDS = 60.0
"""When to come back where no job ended lately."""
LONGEST_SECONDS = 3600.0


async def admit_upload(service: Service, size: int) -> None:
    """Look for room in the queue and for `size` bytes on the disk before any of them is read.

    Raises `Overloaded` and `StorageFull`. Uploads that come at the same moment may exceed the bound by what they hold.
    """
    most = service.settings.max_queued_jobs
    over = await service.pace.queued() - most
    if over >= 0:
        seconds = await service.pace.seconds_for(over + max(1, most // 20), unknown=UNKNOWN_SECONDS)
        raise Overloaded(
            f"{most} jobs wait (FOOTNOTE_MAX_QUEUED_JOBS): come back after the seconds in Retry-After",
            retry_after=min(max(1.0, seconds), LONGEST_SECONDS),
        )
    service.disk.require(size)


async def settled(service: Service, token: str, seconds: float) -> bool:
    """Wait at most `seconds` until a write is settled: all its documents, and all that came out of them."""
    deadline, pause = time.monotonic() + seconds, FIRST_LOOK_SECONDS
    while await service.catalog.is_pending(token):
        if (left := deadline - time.monotonic()) <= 0:
            return False
        await asyncio.sleep(min(pause, left))
        pause = min(1.5 * pause, LAST_LOOK_SECONDS)
    return True


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
            with WAITING.track_inprogress():
                await self._places.acquire()
        finally:
            self.queued -= 1
        self._since[asyncio.current_task()] = asyncio.get_running_loop().time()

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        held = asyncio.get_running_loop().time() - self._since.pop(asyncio.current_task())
        self._seconds += (held - self._seconds) * 0.1
        self._places.release()
