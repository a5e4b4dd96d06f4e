"""Who is next: queues by weight, collections in turn, retries when they are due, and leases that no clock decides."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from ingest.catalog import Catalog
from ingest.claims import LONGEST_WAIT, LOWER_FIRST, Turns, Watch, next_jobs, next_place, next_retry, overdue
from ingest.database import open_database
from ingest.documents import add_jobs
from ingest.jobs import Beat, Jobs
from ingest.records import QUEUES, new_job
from ingest.schema import jobs, upgrade
from retrieval.errors import CatalogUnavailable
from tests.ingest.databases import urls
from tests.ingest.test_catalog import Clock, accept, lease_runs_out, upload

AWAY = {"code": "embedder_unavailable", "detail": "away", "retryable": True}


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request, tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    told: list[tuple[str, list[str]]] = []
    async for url in urls(request.param, tmp_path):
        database = await open_database(url, lambda queue, job_ids: told.append((queue, list(job_ids))))
        clock, steady = Clock(), Clock()
        queue = Jobs(database, lease_seconds=30, max_attempts=3, clock=clock, steady=steady)
        yield SimpleNamespace(
            url=url, database=database, catalog=Catalog(database), jobs=queue, clock=clock, steady=steady, told=told
        )
        await database.close()


async def queued(db, kind: str, collection: str, count: int = 1, queue: str | None = None) -> list[str]:
    rows = [new_job(kind, collection) | ({"queue": queue} if queue else {}) for _ in range(count)]
    async with db.database.writing() as connection:
        await add_jobs(connection, rows)
    return [row["id"] for row in rows]


async def served(db, turns: Turns, count: int) -> list[str]:
    """Claims and ends jobs; gives their collections."""
    found = []
    for _ in range(count):
        job = await db.jobs.claim("w", turns)
        assert job is not None
        await db.jobs.succeed(job)
        found.append(job.collection)
    return found


async def test_ten_thousand_documents_do_not_delay_a_small_upload_to_another_collection(db):
    await queued(db, "ingest", "bulk", 10_000)
    turns = Turns()
    assert await served(db, turns, 3) == ["bulk"] * 3
    await queued(db, "ingest", "small", 2)
    assert (await served(db, turns, 4)).count("small") == 2
    assert await served(db, turns, 3) == ["bulk"] * 3


async def test_collections_take_turns_by_name_and_start_over(db):
    for collection in ("b", "a", "c"):
        await queued(db, "ingest", collection, 3)
    turns = Turns()
    assert await served(db, turns, 9) == ["a", "b", "c"] * 3
    assert await db.jobs.claim("w", turns) is None


async def test_within_a_collection_the_oldest_is_first(db):
    ids = await queued(db, "ingest", "a", 5)
    turns = Turns()
    assert [(await db.jobs.claim("w", turns)).id for _ in ids] == sorted(ids)


async def test_urgent_queues_are_first_and_no_queue_starves(db):
    for queue in QUEUES:
        await queued(db, "rebuild", queue, 60, queue)  # the collection is named like the queue
    counts = Counter(await served(db, Turns(), 60))
    assert counts["delete"] > 45
    assert all(counts[queue] >= 2 for queue in QUEUES)


async def test_a_worker_of_some_queues_serves_only_those(db):
    await queued(db, "delete", "a")
    await queued(db, "rebuild", "b")
    turns = Turns(["reindex", "ingest"])
    assert turns.queues == ("ingest", "reindex")
    assert await served(db, turns, 1) == ["b"]
    assert await db.jobs.claim("w", turns) is None
    assert [await served(db, Turns(["delete"]), 1)] == [["a"]]


async def test_many_workers_at_once_claim_each_job_once(db):
    ids = {job_id for c in "abc" for job_id in await queued(db, "ingest", c, 20)}
    claimed: list[str] = []

    async def work(name: str) -> None:
        turns = Turns()
        while (job := await db.jobs.claim(name, turns)) is not None:
            claimed.append(job.id)

    await asyncio.gather(*(work(f"w{i}") for i in range(8)))
    await work("last")  # what others were taking at the same moment
    assert sorted(claimed) == sorted(ids)


async def test_what_can_be_claimed_is_announced_once_it_is_committed_and_not_before(db):
    [accepted] = await accept(db, upload())
    assert db.told == [("ingest", [accepted.job_id])]
    job = await db.jobs.claim("w")
    await db.jobs.release(job)
    assert db.told[1:] == [("ingest", [job.id])]
    await db.jobs.fail(await db.jobs.claim("w"), AWAY)
    assert len(db.told) == 2  # it waits
    db.clock.now += 400
    await db.jobs.cancel(job.id)
    await db.jobs.retry(job.id)
    removal = await db.catalog.delete_document(accepted.id)
    assert db.told[2:] == [("ingest", [job.id]), ("delete", [removal])]
    with suppress(ZeroDivisionError):
        async with db.database.writing() as connection:
            await add_jobs(connection, [new_job("ingest", "a")])
            raise ZeroDivisionError  # rolls back
    await queued(db, "ingest", "b")
    assert len(db.told) == 5


async def test_every_step_of_a_claim_is_a_seek(db):
    """No backlog, due or waiting, is scanned or sorted, however long it is."""
    await queued(db, "ingest", "bulk", 3000)
    async with db.database.writing() as connection:
        waiting = [new_job("ingest", "put-off") | {"run_after": db.clock.now + i} for i in range(3000)]
        done = [new_job("ingest", "old") | {"state": "succeeded"} for _ in range(3000)]
        await connection.execute(sa.insert(jobs), [*waiting, *done])
        await connection.execute(sa.text("ANALYZE"))
    times = {"now": db.clock.now - 1, "never": db.clock.now + LONGEST_WAIT}
    queries = {
        "next_place": next_place(QUEUES).params({f"last_{queue}": "" for queue in QUEUES}),
        "next_jobs": next_jobs("ingest", "bulk", 2),
        "overdue": overdue(QUEUES, 1).params(times),
        "next_retry": next_retry(QUEUES),
        "running": sa.select(jobs.c.id, jobs.c.beats).where(jobs.c.state == "running"),
    }
    for name, query in queries.items():
        text = str(query.compile(db.database.engine.sync_engine, compile_kwargs={"literal_binds": True}))
        plan = await explained(db, text)
        if db.database.is_sqlite:
            assert not re.search(r"SCAN (jobs|busy)|TEMP B-TREE FOR ORDER BY.*jobs", plan), (name, plan)
            index = "ix_jobs_state" if name == "running" else "ix_jobs_due"
            assert f"USING COVERING INDEX {index}" in plan or f"USING INDEX {index}" in plan, (name, plan)
        else:
            assert "Seq Scan on jobs" not in plan, (name, plan)
            rows = [int(each) for each in re.findall(r"actual [^)]*rows=(\d+)", plan)]
            removed = [int(each) for each in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
            assert max([*rows, *removed]) <= 2, (name, plan)


@pytest.mark.parametrize("filters", [(), ("state",), ("collection",), ("collection", "state"), ("document_id",)])
async def test_a_page_of_jobs_is_a_stretch_of_an_index(db, filters):
    wanted = {"state": "running", "collection": "bulk", "document_id": "doc"}
    await listed_by_seeks(db, lambda: db.jobs.list_jobs(**{name: wanted[name] for name in filters}, limit=50))


@pytest.mark.parametrize("filters", [(), ("status",), ("collection",), ("collection", "status"), ("name",), ("parent",)])
async def test_a_page_of_documents_is_a_stretch_of_an_index(db, filters):
    wanted = {"status": "failed", "collection": "bulk", "name": "a.txt", "parent": "doc"}
    await listed_by_seeks(db, lambda: db.catalog.list_documents(**{name: wanted[name] for name in filters}, limit=50))


async def listed_by_seeks(db, listing) -> None:
    if not db.database.is_sqlite:
        pytest.skip("the planner of PostgreSQL reads a small table whole; the indexes are the same")
    seen: list[tuple[str, tuple]] = []
    engine = db.database._direct
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, given, *_: seen.append((statement, given)))
    await listing()
    [(statement, given)] = seen
    async with db.database.reading() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", tuple(given))
        steps = [str(row[-1]) for row in plan]
    few = "_parent_id" in steps[0] or "_document_id" in steps[0]  # what is of one document may be sorted
    assert few or not [step for step in steps if "TEMP B-TREE" in step], steps
    first = steps[0]  # a page of everything walks along the key
    assert first.startswith("SEARCH") or re.fullmatch(r"SCAN (jobs|documents) USING INDEX sqlite_autoindex_\w+_1", first), steps


async def explained(db, query: str) -> str:
    how = "EXPLAIN QUERY PLAN " if db.database.is_sqlite else "EXPLAIN (ANALYZE, TIMING OFF) "
    async with db.database.reading() as connection:
        return "\n".join(str(tuple(row)) for row in await connection.exec_driver_sql(how + query))


# --- retries ---------------------------------------------------------------------------------------------------------------


async def test_the_next_retry_is_known_and_claimed_when_it_is_due(db):
    await accept(db, upload())
    assert await db.jobs.due_in(QUEUES) == float("inf")
    await db.jobs.fail(await db.jobs.claim("w"), AWAY, retry_after=40)
    wait = await db.jobs.due_in(QUEUES)
    assert 40 <= wait <= 41
    assert await db.jobs.due_in(["delete"]) == float("inf")
    db.clock.now += wait - 0.01
    assert await db.jobs.claim("w") is None
    db.clock.now += 0.02
    assert (await db.jobs.claim("w")).attempts == 2


async def test_waits_grow_at_random_and_those_told_the_same_do_not_come_back_together(db):
    waits: list[float] = []
    named: list[float] = []
    for retry_after, found in ((None, waits), (100, named)):
        await queued(db, "ingest", "a", 5)
        for job in [await db.jobs.claim("w") for _ in range(5)]:
            await db.jobs.fail(job, AWAY, retry_after=retry_after)
            async with db.database.reading() as connection:
                at = (await connection.execute(sa.select(jobs.c.run_after).where(jobs.c.id == job.id))).scalar_one()
            found.append(at - db.clock.now)
    assert all(0.5 <= wait <= 1 for wait in waits)
    assert all(100 <= wait <= 101 for wait in named)
    assert len(set(waits)) == len(set(named)) == 5


# --- clocks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-7 * 86400.0, -1800.0, 1800.0, 7 * 86400.0])
async def test_a_clock_that_jumps_takes_no_job_from_a_worker_that_lives(db, jump):
    await accept(db, upload())
    job = await db.jobs.claim("w")
    for _ in range(6):
        db.steady.now += 10
        db.clock.now += jump
        assert await db.jobs.renew([Beat(job, stage="embedding", done=1, total=2)]) == []
        assert await db.jobs.take_back() == 0
    assert await db.jobs.claim("other") is None
    await db.jobs.succeed(job)


@pytest.mark.parametrize("jump", [-7 * 86400.0, 7 * 86400.0])
async def test_a_clock_that_jumps_leaves_no_job_with_a_worker_that_died(db, jump):
    await accept(db, upload())
    dead = await db.jobs.claim("w")
    db.clock.now += jump
    for _ in range(4):
        assert await db.jobs.claim("other") is None
        await db.jobs.take_back()
        db.steady.now += 10
    await db.jobs.take_back()
    assert (await db.jobs.claim("other")).id == dead.id
    assert await db.jobs.renew([Beat(dead, stage="x", done=0, total=None)]) == [dead.id]


async def test_a_clock_that_is_set_back_by_years_keeps_no_retry_waiting(db):
    await accept(db, upload())
    await db.jobs.fail(await db.jobs.claim("w"), AWAY, retry_after=10**9)
    assert await db.jobs.due_in(QUEUES) <= LONGEST_WAIT
    db.clock.now -= 5 * 365 * 86400
    assert (await db.jobs.claim("w")).attempts == 2


async def test_a_pause_of_those_who_watch_is_nobodys_silence():
    watch = Watch(30)
    assert watch.silent({"a": 7}, 0) == []
    assert watch.silent({"a": 7}, 1000) == []  # a catalog that was away, or this process was stopped
    for at in (1010, 1020, 1029):
        assert watch.silent({"a": 7}, at) == []
    assert watch.silent({"a": 7, "b": 1}, 1030) == ["a"]
    assert watch.silent({"a": 8, "b": 1}, 1040) == []  # claimed anew
    assert watch.silent({"b": 1}, 1050) == []
    assert watch.silent({"b": 1}, 1061) == ["b"]


async def test_a_job_that_is_given_back_and_taken_again_and_again_is_not_silent(db):
    await queued(db, "reindex", "a")
    for _ in range(8):
        job = await db.jobs.claim("w")
        db.steady.now += 10
        assert await db.jobs.take_back() == 0
        await db.jobs.release(job)


async def test_a_worker_that_renews_at_the_last_moment_keeps_its_job(db):
    await accept(db, upload())
    job = await db.jobs.claim("w")
    for _ in range(3):
        await db.jobs.take_back()
        db.steady.now += 10
    assert await db.jobs.renew([Beat(job, stage="embedding", done=1, total=2)]) == []
    await db.jobs.take_back()
    assert (await db.jobs.job(job.id)).state == "running"


async def test_a_document_whose_job_was_given_back_waits_again(db):
    [accepted] = await accept(db, upload())
    await db.jobs.release(await db.jobs.claim("w"))
    assert (await db.catalog.document(accepted.id)).status == "queued"
    await db.jobs.claim("w")
    db.clock = db.jobs.clock
    db.jobs.steady = db.clock
    await lease_runs_out(db)
    assert (await db.catalog.document(accepted.id)).status == "queued"


@pytest.mark.parametrize("db", ["postgresql"], indirect=True)
async def test_a_catalog_whose_server_goes_down_is_unavailable_and_then_works_again(db):
    mine = sa.text("datname = current_database() AND pid <> pg_backend_pid()")
    end = sa.select(sa.func.pg_terminate_backend(sa.column("pid"))).select_from(sa.table("pg_stat_activity")).where(mine)

    async def interrupted() -> None:
        async with db.database.writing() as connection:
            async with db.database.reading() as other:
                await other.execute(end)
            await connection.execute(sa.select(jobs.c.id))

    with pytest.raises(CatalogUnavailable):
        await interrupted()
    await queued(db, "ingest", "a")
    assert await db.jobs.claim("w") is not None


# --- migration -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_jobs_of_an_earlier_version_are_claimed(kind, tmp_path):
    async for url in urls(kind, tmp_path):
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(upgrade, "0002")
            for number, (job_kind, state) in enumerate(
                [("delete", "queued"), ("ingest", "queued"), ("rebuild", "queued"), ("ingest", "running")]
            ):
                lease = "1" if state == "running" else "NULL"
                values = f"'job_{number}', '{job_kind}', {number}, 'c', 0, '{state}', 'x', 0, {number % 3}, 5.0, {lease}, 0"
                columns = (
                    "id, kind, priority, collection, version, state, stage, done, attempts, run_after, lease_until, created_at"
                )
                await connection.exec_driver_sql(f"INSERT INTO jobs ({columns}) VALUES ({values})")
        await engine.dispose()
        database = await open_database(url)
        clock = Clock()
        found = Jobs(database, lease_seconds=30, max_attempts=3, clock=clock, steady=clock)
        turns = Turns()
        claimed = [await found.claim("w", turns) for _ in range(4)]
        assert [job and (job.id, job.queue) for job in claimed] == [
            ("job_0", "delete"),
            ("job_1", "ingest"),
            ("job_2", "reindex"),
            None,
        ]
        await lease_runs_out(SimpleNamespace(jobs=found, clock=clock))
        assert (await found.claim("w", turns)) is not None
        await database.close()


def test_every_eighth_claim_begins_with_a_lower_queue_each_in_its_turn():
    turns = Turns()
    first = []
    for _ in range(LOWER_FIRST * 4):
        first.append(next(iter(turns.order())))
        turns.served("ingest", "c")
    assert turns.order() == {"delete": "", "ingest": "c", "maintenance": "", "reindex": ""}
    assert first.count("delete") == LOWER_FIRST * 4 - 4
    assert {"ingest", "reindex", "maintenance"} <= set(first)
