"""How fast work goes, and how long what waits will take at that pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import time

import sqlalchemy as sa

from ingest.database import Database
from ingest.job_rows import Job
from ingest.records import QUEUES
from ingest.schema import jobs

LINE, LINE_SECONDS = 2000, 1.0
"""Jobs that are told when their turn comes, and how long what they are told stays good."""
WINDOW_SECONDS = 120.0
"""Jobs that ended longer ago say nothing of the pace now."""


class Pace:
    """Of the whole queue, by its rows: what any process measures holds for all workers."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time) -> None:
        self.database = database
        self.clock = clock
        self._line: Mapping[str, int] = {}
        self._line_until = 0.0

    async def queued(self) -> int:
        """How many jobs wait that somebody asked for: what a re-index or a repair rebuilds must shut no door."""
        asked_for = sa.and_(jobs.c.state == "queued", jobs.c.queue.in_(("delete", "ingest")))
        [waiting] = await self.database.scalars(sa.select(sa.func.count()).select_from(jobs).where(asked_for))
        return int(waiting)

    async def per_second(self) -> float:
        """Jobs that ended lately, per second; 0.0 if none did."""
        now = self.clock()
        count, first = sa.func.count().label("count"), sa.func.min(jobs.c.finished_at).label("first")
        [ended] = await self.database.rows(sa.select(count, first).where(jobs.c.finished_at > now - WINDOW_SECONDS))
        return ended["count"] / max(1.0, now - ended["first"]) if ended["count"] else 0.0

    async def seconds_for(self, count: int, *, unknown: float) -> float:
        """How long so many jobs take; `unknown` if nothing ended lately."""
        rate = await self.per_second()
        return count / rate if rate else unknown

    async def etas(self, found: Sequence[Job]) -> dict[str, float]:
        """Seconds until each job ends, as far as that can be told.

        One that runs is told by its own rate; one that waits by the jobs before it and the rate at which jobs end; a re-index
        between two steps by the documents that it lacks, after everything else that waits.
        """
        etas = {job.id: job.eta_seconds for job in found if job.eta_seconds is not None}
        waiting = [job for job in found if job.state == "queued"]
        if not waiting or not (rate := await self.per_second()):
            return etas
        ahead = await self._ahead([job.id for job in waiting])
        return etas | {job.id: round((ahead[job.id] + 1) / rate, 1) for job in waiting if job.id in ahead}

    async def _ahead(self, ids: Sequence[str]) -> Mapping[str, int]:
        """How many jobs wait before each of these, as far as these stand among the first that wait.

        All that wait are counted for it, so what was found is told for a second to everybody who asks.
        """
        now = self.clock()
        came_since = len(self._line) < LINE and not self._line.keys() >= set(ids)
        if now >= self._line_until or came_since:
            self._line, self._line_until = await self._read_line(), now + LINE_SECONDS
        return self._line

    async def _read_line(self) -> dict[str, int]:
        """The first that wait, and their places: queue by queue, in which collections take turns."""
        turn = sa.func.row_number().over(partition_by=(jobs.c.queue, jobs.c.collection), order_by=jobs.c.id).label("turn")
        waiting = sa.select(jobs.c.id, jobs.c.queue, jobs.c.collection, turn).where(jobs.c.state == "queued").subquery()
        urgency = sa.case({queue: number for number, queue in enumerate(QUEUES)}, value=waiting.c.queue)
        place = sa.func.row_number().over(order_by=(urgency, waiting.c.turn, waiting.c.collection))
        line = sa.select(waiting.c.id, place.label("place")).order_by("place").limit(LINE)
        rows = await self.database.rows(line)
        return {row["id"]: row["place"] - 1 for row in rows}


class Meter:
    """The rate of one job over the recent past, fed with how much of it is done."""

    def __init__(self, *, window_seconds: float = 20.0) -> None:
        self.window_seconds = window_seconds
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, done: int, now: float) -> float | None:
        """Of `done` per second; None while too little was seen. A count that goes back is a new one."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self.window_seconds:
            self._seen.popleft()
        since, before = self._seen[0]
        elapsed = now - since
        return (done - before) / elapsed if elapsed > 0 and done > before else None
