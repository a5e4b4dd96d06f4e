"""What is over is forgotten after a while, so that the catalog stays as large as what it holds."""

from __future__ import annotations

from time import monotonic, time

import sqlalchemy as sa

from ingest.database import Clock, Database, new_id
from ingest.records import FINAL
from ingest.schema import documents, jobs, notices, requests

EVERY_SECONDS = 6 * 3600.0
AT_ONCE = 1000


class History:
    """Forgets ended jobs, answered idempotency keys and notices that were given up, all of more than `keep_seconds` ago.

    A document's last job stays as long as the document, since its id was given out as the document's.
    """

    def __init__(self, database: Database, keep_seconds: float, *, clock: Clock = time, steady: Clock = monotonic) -> None:
        self.database = database
        self.keep_seconds = keep_seconds
        self.clock = clock
        self.steady = steady
        self._next = steady()

    async def tick(self) -> None:
        """Forget, if it is time; 0 seconds to keep means for ever."""
        if self.keep_seconds and self.steady() >= self._next:
            self._next = self.steady() + EVERY_SECONDS
            await self.forget()

    async def forget(self) -> None:
        before = self.clock() - self.keep_seconds
        # The keys first: a repeated request must not be answered with a job that is gone.
        await self._forget(requests.c.key, requests.c.created_at < before)
        await self._forget(notices.c.id, notices.c.run_after.is_(None), notices.c.id < new_id("msg", at=before))
        lasts = sa.exists().where(documents.c.id == jobs.c.document_id, documents.c.job_id == jobs.c.id)
        ended = jobs.c.state.in_(FINAL), jobs.c.finished_at < before
        await self._forget(jobs.c.id, jobs.c.id < new_id("job", at=before), *ended, ~lasts)

    async def _forget(self, key: sa.Column[str], *over: sa.ColumnElement[bool]) -> None:
        """Delete the rows that match, a thousand in one transaction."""
        after = ""
        while True:
            page = sa.select(key).where(key > after, *over).order_by(key).limit(AT_ONCE)
            found = await self.database.scalars(page)
            if found:
                async with self.database.writing() as connection:  # once more what is over: a job may have been revived
                    await connection.execute(sa.delete(key.table).where(key.in_(found), *over))
            if len(found) < AT_ONCE:
                return
            after = found[-1]
