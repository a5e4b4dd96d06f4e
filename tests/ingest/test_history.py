"""What is over is forgotten, and what anybody may still ask for is not; on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from ingest.catalog import Catalog
from ingest.chunk import Chunking
from ingest.database import open_database
from ingest.documents import taken_for_granted
from ingest.history import AT_ONCE, EVERY_SECONDS, History
from ingest.jobs import Jobs
from ingest.records import Upload
from ingest.schema import jobs, notices, requests
from retrieval.errors import JobNotFound
from tests.ingest.databases import urls

DAY = 86_400.0


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request, tmp_path):
    async for url in urls(request.param, tmp_path):
        database = await open_database(url)
        catalog, queue = Catalog(database), Jobs(database, lease_seconds=30, max_attempts=2, notify=True)
        yield SimpleNamespace(database=database, catalog=catalog, jobs=queue)
        await database.close()


def in_days(days: float, db) -> History:
    """The history as it is so many days later."""
    return History(db.database, 30 * DAY, clock=lambda: time.time() + days * DAY)


async def accept(db, name: str, content: str, key: str | None = None):
    upload = Upload(name, (content * 64)[:64], 3, "text/plain", {})
    request = (key, "f") if key else None
    return await db.catalog.accept("default", [upload], chunking=Chunking(254), exist=taken_for_granted, request=request)


async def failed(db, name: str, content: str, key: str | None = None):
    [accepted] = await accept(db, name, content, key)
    await db.jobs.fail(await db.jobs.claim("w"), {"code": "x", "detail": "y", "retryable": False})
    return accepted


async def count(db, table: sa.Table) -> int:
    async with db.database.reading() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()


async def test_ended_jobs_keys_and_given_up_notices_go_after_their_time_and_not_before(db):
    first = await failed(db, "a.txt", "1", key="k")
    last = await failed(db, "a.txt", "2")
    async with db.database.writing() as connection:
        await connection.execute(sa.update(notices).values(run_after=None))
    before = [await count(db, table) for table in (jobs, requests, notices)]
    await in_days(29, db).forget()
    assert [await count(db, table) for table in (jobs, requests, notices)] == before
    await in_days(31, db).forget()
    assert [await count(db, table) for table in (jobs, requests, notices)] == [1, 0, 0]
    with pytest.raises(JobNotFound):
        await db.jobs.job(first.job_id)
    assert (await db.jobs.retry(last.job_id)).state == "queued", "a document's last job stays with it, and can be revived"


async def test_what_waits_runs_or_is_still_to_be_told_stays(db):
    await failed(db, "told.txt", "1")
    await accept(db, "running.txt", "2")
    await db.jobs.claim("w")
    await accept(db, "waiting.txt", "3")
    await in_days(400, db).forget()
    assert [await count(db, table) for table in (jobs, notices)] == [3, 1]


async def test_more_than_one_lot_goes_in_one_pass(db):
    await failed(db, "a.txt", "1")
    async with db.database.writing() as connection:
        row = dict((await connection.execute(sa.select(jobs))).mappings().one())
        copies = [{**row, "id": f"job_0{number:023}", "document_id": "doc_gone"} for number in range(2 * AT_ONCE + 1)]
        await connection.execute(sa.insert(jobs), copies)
    await in_days(31, db).forget()
    assert await count(db, jobs) == 1


async def test_it_looks_at_its_start_and_then_every_few_hours_and_never_if_all_is_kept(db):
    now = 1000.0
    history = History(db.database, 1e-9, steady=lambda: now)
    for later, left in ((0.0, 0), (EVERY_SECONDS - 1, 1), (EVERY_SECONDS, 0)):
        await accept(db, "a.txt", str(later), key=f"k{later}")
        now = 1000.0 + later
        await history.tick()
        assert await count(db, requests) == left
    await accept(db, "a.txt", "kept", key="kept")
    await History(db.database, 0).tick()
    assert await count(db, requests) == 1
