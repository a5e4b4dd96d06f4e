"""Jobs of small documents that are claimed, renewed and settled together, each with an end of its own."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from ingest.brokers.local import open_local
from ingest.claims import LOT, LOT_BYTES, Turns
from ingest.database import Database
from ingest.documents import OriginalVanished
from ingest.job_rows import LeaseLost
from ingest.jobs import Beat
from ingest.pipeline import STORING, WAITING_FOR_DISK, WAITING_FOR_STORE
from ingest.records import Upload
from ingest.worker import Worker
from retrieval.errors import UnreadableDocument
from tests.ingest import test_catalog
from tests.ingest.test_catalog import accept, entry, generation, lease_runs_out, parts_of, source, upload, vanished

db = test_catalog.db


def sized(name: str, size: int) -> Upload:
    return Upload(name, f"{hash(name) % 2**64:064x}", size, "text/plain", {})


def texts(count: int) -> list[Upload]:
    return [upload(f"{number:03}.txt", str(number)) for number in range(count)]


async def claimed(db, count: int):
    accepted = await accept(db, *texts(count))
    lot = await db.jobs.claim_lot("w", Turns())
    assert [job.document_id for job in lot] == [each.id for each in accepted]
    return lot


async def test_small_documents_of_one_collection_are_one_lot(db):
    accepted = await accept(db, *texts(LOT + 5))
    await accept(db, upload("elsewhere.txt"), collection="other")
    turns, lots = Turns(), []
    while lot := await db.jobs.claim_lot("w", turns):
        lots.append(lot)
    assert [(len(lot), {job.collection for job in lot}) for lot in lots] == [
        (LOT, {"default"}),
        (1, {"other"}),
        (5, {"default"}),
    ]
    assert {(await db.catalog.document(each.id)).status for each in accepted} == {"processing"}


async def test_large_documents_are_lots_of_their_own(db):
    sizes = [LOT_BYTES // 2, LOT_BYTES // 2, LOT_BYTES * 9, 10, LOT_BYTES, 10]  # bytes
    await accept(db, *(sized(f"{number}.txt", size) for number, size in enumerate(sizes)))
    turns = Turns()
    assert [len(await db.jobs.claim_lot("w", turns)) for _ in range(6)] == [2, 1, 1, 1, 1, 0]


async def test_what_was_tried_before_is_tried_alone(db):
    """One of them may have killed the worker: it should not take the others with it until they are dead, too."""
    lot = await claimed(db, 5)
    await lease_runs_out(db)
    turns = Turns()
    assert [len(await db.jobs.claim_lot("other", turns)) for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert {(await db.jobs.job(job.id)).attempts for job in lot} == {2}


async def test_two_jobs_of_one_document_are_never_in_one_lot(db):
    [first] = await accept(db, upload("a.txt", "1"))
    await db.jobs.cancel(first.job_id)
    await accept(db, upload("b.txt", "1"), upload("a.txt", "2"))
    await db.jobs.retry(first.job_id)
    turns = Turns()
    lots = [await db.jobs.claim_lot("w", turns) for _ in range(3)]
    documents = [[job.document_id for job in lot] for lot in lots]
    assert sorted(map(len, documents)) == [0, 0, 2]
    assert len(set(documents[0])) == len(documents[0])


async def test_a_lot_is_settled_in_one_transaction(db, monkeypatch):
    lot, gen = await claimed(db, 20), await generation(db)
    begun: list[Database] = []
    writing = Database.writing
    monkeypatch.setattr(Database, "writing", lambda self: (begun.append(self), writing(self))[1])
    outcomes = await asyncio.gather(*(db.jobs.settle.ingest(job, [entry(gen)], source()) for job in lot))
    assert (outcomes, len(begun)) == (["settled"] * 20, 1)
    held = [await db.catalog.document(job.document_id) for job in lot]
    assert {(document.status, document.live_version, document.chunks) for document in held} == {("ready", 1, entry(gen).chunks)}
    assert {(await db.jobs.job(job.id)).state for job in lot} == {"succeeded"}


async def test_each_of_a_lot_has_its_own_end(db):
    """One lost its lease, one was overtaken, one is deleted, one's text is gone, one has parts, one was written elsewhere."""
    lot = await claimed(db, 7)
    gen = await generation(db)
    old = await generation(db, live=False, fingerprint="f2")
    await db.jobs.release(lot[0])
    await accept(db, upload("001.txt", "newer"))
    await db.catalog.delete_document(lot[2].document_id)

    def settle(job, target=gen, parts=(), **more):
        return db.jobs.settle.ingest(job, [entry(target)], source(), parts, **more)

    outcomes = await asyncio.gather(
        settle(lot[0]),
        settle(lot[1]),
        settle(lot[2]),
        settle(lot[3], texts=vanished),
        settle(lot[4], parts=[upload("part.txt")]),
        settle(lot[5], target=old),
        settle(lot[6]),
        return_exceptions=True,
    )
    assert [each if isinstance(each, str) else type(each) for each in outcomes] == [
        LeaseLost, "superseded", "superseded", OriginalVanished, "settled", "moved", "settled",
    ]  # fmt: skip
    states = [(await db.jobs.job(job.id)).state for job in lot]
    assert states == ["queued", "cancelled", "cancelled", "running", "succeeded", "running", "succeeded"]
    assert len(await parts_of(db, lot[4].document_id)) == 1


async def test_documents_whose_parts_go_may_be_settled_with_others(db):
    [holder, *_] = lot = await claimed(db, 3)
    gen = await generation(db)
    await db.jobs.settle.ingest(holder, [entry(gen)], source(), [upload("part.txt")])
    for job in lot[1:]:
        await db.jobs.settle.ingest(job, [entry(gen)], source())
    await accept(db, *(upload(f"{number:03}.txt", "newer") for number in range(3)))
    turns = Turns()
    newer = [job for _ in range(2) for job in await db.jobs.claim_lot("w", turns) if job.version == 2]
    assert len(newer) == 3
    outcomes = await asyncio.gather(*(db.jobs.settle.ingest(job, [entry(gen)], source(2)) for job in newer))
    assert outcomes == ["settled"] * 3
    assert {status for _, status in (await parts_of(db, holder.document_id)).values()} == {"deleting"}


async def test_leases_are_renewed_together_and_each_is_lost_alone(db):
    lot = await claimed(db, 4)
    gen = await generation(db)
    await db.jobs.settle.ingest(lot[0], [entry(gen)], source())
    await db.jobs.cancel(lot[1].id)
    await db.jobs.release(lot[2])
    beats = [Beat(job, "embedding", done=number, total=9) for number, job in enumerate(lot)]
    assert await db.jobs.renew(beats) == [lot[1].id, lot[2].id]
    shown = [await db.jobs.job(job.id) for job in lot]
    assert [(job.stage, job.done) for job in shown] == [("succeeded", 0), ("cancelled", 0), ("queued", 0), ("embedding", 3)]
    assert await db.jobs.renew([]) == []


async def test_a_worker_that_goes_gives_back_all_it_holds_at_once(db):
    lot, gen = await claimed(db, 6), await generation(db)
    await db.jobs.settle.ingest(lot[0], [entry(gen)], source())
    await db.jobs.cancel(lot[1].id)
    await db.jobs.release(*lot)
    found = [await db.jobs.job(job.id) for job in lot]
    assert [(job.state, job.attempts) for job in found] == [("succeeded", 1), ("cancelled", 1), *[("queued", 0)] * 4]
    assert {(await db.catalog.document(job.document_id)).status for job in lot[2:]} == {"queued"}
    assert len(await db.jobs.claim_lot("other", Turns())) == 4


@pytest.mark.parametrize("stage", [WAITING_FOR_DISK, WAITING_FOR_STORE])
async def test_a_job_that_waits_can_say_for_what(db, stage):
    [job, other] = await claimed(db, 2)
    assert await db.jobs.renew([Beat(job, stage, 0, None), Beat(other, stage, 0, None)]) == []
    await db.jobs.release(job, after=1, stage=stage)
    assert [(await db.jobs.job(each.id)).stage for each in (job, other)] == [stage, stage]


class Ends:
    """A pipeline in which each document comes to the end that its name speaks of."""

    def __init__(self, db, gen) -> None:
        self.db, self.gen = db, gen
        self.began: list[str] = []
        self.made_good: list[str] = []

    async def run(self, job, progress) -> None:
        name = (await self.db.catalog.document(job.document_id)).name
        self.began.append(name)
        progress("embedding", 1, 2)
        match name:
            case "bad.txt":
                raise UnreadableDocument("it is damaged")
            case "broken.txt":
                raise ZeroDivisionError
            case "slow.txt":
                await asyncio.sleep(60)
            case "late.txt":
                progress(STORING, 2, 2)
                await asyncio.sleep(60)
            case "overtaken.txt":
                progress(STORING, 2, 2)
                await self.db.jobs.cancel(job.id)
        await self.db.jobs.settle.ingest(job, [entry(self.gen)], source())

    async def make_good(self, job) -> None:
        self.made_good.append(job.id)

    async def housekeep(self) -> None:
        """Nothing is kept."""


async def test_a_worker_ends_a_lot_job_by_job_and_gives_back_the_rest(db, tmp_path):
    names = ["bad.txt", "broken.txt", "slow.txt", "good.txt", "fine.txt"]
    accepted = await accept(db, *map(upload, names))
    pipeline, stop = Ends(db, await generation(db)), asyncio.Event()
    broker = await open_local(f"local:{tmp_path}/wake")
    worker = Worker(db.jobs, pipeline, broker, concurrency=1, drain_seconds=0.2)
    running = asyncio.create_task(worker.run(stop))
    states: list[str] = []
    async with asyncio.timeout(20):
        while states.count("succeeded") < 2 or "failed" not in states or (await db.jobs.job(accepted[1].job_id)).attempts < 1:
            states = [(await db.jobs.job(each.job_id)).state for each in accepted]
            await asyncio.sleep(0.05)
    assert (await db.jobs.job(accepted[2].job_id)).state == "running"
    stop.set()
    await asyncio.wait_for(running, 20)
    await broker.close()
    found = [await db.jobs.job(each.job_id) for each in accepted]
    assert [job.state for job in found] == ["failed", "queued", "queued", "succeeded", "succeeded"]
    assert found[0].error["code"] == "unreadable_document"
    assert found[1].error["code"] == "internal_error"
    assert (found[2].attempts, found[2].error) == (0, None)
    assert sorted(pipeline.began) == sorted(names)


async def test_a_lost_job_stops_and_the_rest_of_its_lot_goes_on(db, tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.worker.BEAT_SECONDS", 0.1)
    accepted = await accept(db, *map(upload, ("slow.txt", "good.txt", "late.txt", "overtaken.txt")))
    pipeline, stop = Ends(db, await generation(db)), asyncio.Event()
    broker = await open_local(f"local:{tmp_path}/wake")
    worker = Worker(db.jobs, pipeline, broker, concurrency=1)
    running = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(20):
        while (await db.catalog.document(accepted[1].id)).status != "ready" or len(pipeline.began) < len(accepted):
            await asyncio.sleep(0.05)
        await db.jobs.cancel(accepted[0].job_id)
        await db.jobs.cancel(accepted[2].job_id)
        [later] = await accept(db, upload("later.txt"))  # there is room for one lot: the lost job's must have ended
        while (await db.catalog.document(later.id)).status != "ready":
            await asyncio.sleep(0.05)
    assert (await db.jobs.job(accepted[0].job_id)).state == "cancelled"
    # One lost by its beat and one as it was settled; the slow one had not begun to write.
    assert sorted(pipeline.made_good) == sorted([accepted[2].job_id, accepted[3].job_id])
    stop.set()
    await asyncio.wait_for(running, 20)
    await broker.close()


async def test_a_worker_takes_a_lot_more_when_what_is_left_is_one_lot_less(db, tmp_path):
    """Two lots at once, one of which is slow in one document: others go on beside it."""
    names = ["slow.txt", *(f"{number}.txt" for number in range(3 * LOT))]
    accepted = await accept(db, *map(upload, names))
    pipeline, stop = Ends(db, await generation(db)), asyncio.Event()
    broker = await open_local(f"local:{tmp_path}/wake")
    running = asyncio.create_task(Worker(db.jobs, pipeline, broker, concurrency=2, drain_seconds=0).run(stop))
    async with asyncio.timeout(30):
        while (await db.jobs.depth())["queued"] or (await db.jobs.depth())["running"] > 1:
            await asyncio.sleep(0.05)
    assert (await db.jobs.job(accepted[0].job_id)).state == "running"
    stop.set()
    await asyncio.wait_for(running, 20)
    await broker.close()
    assert await db.jobs.depth() == {"queued": 1, "running": 0}


async def test_the_statements_of_a_lot_seek_by_the_key(db):
    """A condition on several columns alone would have one of the databases read all rows."""
    lot = await claimed(db, 3)
    if not db.database.is_sqlite:
        pytest.skip("PostgreSQL's planner reads a small table whole")
    seen: list[str] = []
    engine = db.database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: seen.append(statement))
    await db.jobs.renew([Beat(job, "embedding", 1, 2) for job in lot])
    gen = await generation(db)
    await asyncio.gather(*(db.jobs.settle.ingest(job, [entry(gen)], source()) for job in lot))
    plans = []
    async with db.database.reading() as connection:
        for statement in dict.fromkeys(each for each in seen if "jobs" in each or "entries" in each):
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                count = statement.count("?")
                plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("x",) * count)
                plans.append("\n".join(str(tuple(row)) for row in plan))
    assert plans
    assert not [plan for plan in plans if "SCAN jobs" in plan or "SCAN entries" in plan]
