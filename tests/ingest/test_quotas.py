"""Quotas of collections, and the tokens by which a reader waits for what was written; on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from ingest.database import new_id
from ingest.documents import taken_for_granted
from ingest.records import Quota, Upload
from ingest.schema import writes
from retrieval.errors import CollectionNotFound, QuotaExceeded
from tests.ingest import test_catalog
from tests.ingest.test_catalog import CHUNKING, entry, generation, source, upload

db = test_catalog.db


async def accept(db, *uploads: Upload, quota: Quota = Quota(), request=None):  # noqa: B008 - frozen
    return await db.catalog.accept("default", uploads, chunking=CHUNKING, exist=taken_for_granted, request=request, quota=quota)


async def settled(db, *parts: Upload) -> str:
    """Run the next job to its end; gives how it went."""
    gen = await generation(db)
    job = await db.jobs.claim("w")
    return await db.jobs.settle.ingest(job, [entry(gen)], source(job.version), parts)


# --- quotas ---------------------------------------------------------------------------------------------------------------


async def test_what_a_quota_has_no_room_for_is_refused_and_the_others_are_not(db):
    accepted = await accept(db, upload("a"), upload("b"), upload("c"), quota=Quota(documents=2))
    assert [(each.name, each.error and each.error["code"]) for each in accepted] == [
        ("a", None),
        ("b", None),
        ("c", "quota_exceeded"),
    ]
    with pytest.raises(QuotaExceeded, match="PATCH /collections/default"):
        await accept(db, upload("d"))
    assert len(await db.catalog.list_documents(limit=9)) == 2
    assert (await db.catalog.usage(["default"]))["default"].documents == 2


async def test_bytes_count_and_a_new_version_counts_only_by_what_it_is_longer(db):
    [first] = await accept(db, Upload("a", "1" * 64, 6, "text/plain", {}), quota=Quota(bytes=10))
    with pytest.raises(QuotaExceeded):
        await accept(db, Upload("b", "2" * 64, 5, "text/plain", {}))
    [again] = await accept(db, Upload("a", "3" * 64, 10, "text/plain", {}))
    assert (again.id, again.duplicate) == (first.id, False)
    [same] = await accept(db, Upload("a", "3" * 64, 10, "text/plain", {}))
    assert same.duplicate
    with pytest.raises(QuotaExceeded):
        await accept(db, Upload("a", "4" * 64, 11, "text/plain", {}))


async def test_two_uploads_at_once_cannot_both_take_the_last_place(db):
    await accept(db, upload("first"), quota=Quota(documents=4))
    tried = await asyncio.gather(*(accept(db, upload(f"{n}")) for n in range(8)), return_exceptions=True)
    assert sum(isinstance(each, list) for each in tried) == 3
    assert all(isinstance(each, list | QuotaExceeded) for each in tried)
    assert len(await db.catalog.list_documents(limit=99)) == 4


async def test_parts_count_and_those_without_room_are_for_the_worker_to_cut(db):
    [box] = await accept(db, upload("box.zip"), quota=Quota(documents=3))
    assert (await db.catalog.room_for_parts(box.id)).documents == 2
    gen = await generation(db)
    job = await db.jobs.claim("w")
    parts = [upload(name) for name in "abc"]
    assert await db.jobs.settle.ingest(job, [entry(gen)], source(), parts) == "full"
    assert await db.jobs.settle.ingest(job, [entry(gen)], source(), parts[:2]) == "settled"
    with pytest.raises(QuotaExceeded):
        await accept(db, upload("one more"))
    await accept(db, upload("box.zip", "2"))  # a new version of the archive has as much room for its own parts again
    assert (await db.catalog.room_for_parts(box.id)).documents == 2


async def test_a_deletion_makes_room_at_once(db):
    [first] = await accept(db, upload("a"), quota=Quota(documents=1))
    await db.catalog.delete_document(first.id)
    await accept(db, upload("b"))


async def test_a_quota_can_be_changed_and_what_is_over_it_stays(db):
    await accept(db, upload("a"), upload("b"))
    changed = await db.catalog.set_quota("default", max_documents=1)
    assert changed.quota == Quota(documents=1)
    with pytest.raises(QuotaExceeded):
        await accept(db, upload("c"))
    await accept(db, upload("a", "2"))  # no document more
    assert len(await db.catalog.list_documents(limit=9)) == 2
    await db.catalog.set_quota("default", max_documents=0, max_bytes=9)
    await accept(db, upload("c"))
    with pytest.raises(CollectionNotFound):
        await db.catalog.set_quota("nowhere", max_documents=1)


# --- tokens ---------------------------------------------------------------------------------------------------------------


async def test_a_write_is_pending_until_its_last_part_is_settled(db):
    [box] = await accept(db, upload("box.zip"))
    assert await db.catalog.is_pending(box.token)
    assert await settled(db, upload("mail.eml", "2")) == "settled"
    assert await db.catalog.is_pending(box.token)
    assert await settled(db, upload("deep.txt", "3")) == "settled"
    assert await db.catalog.is_pending(box.token)
    assert await settled(db) == "settled"
    assert not await db.catalog.is_pending(box.token)


async def test_each_write_waits_for_its_own_documents_only(db):
    [first] = await accept(db, upload("a"))
    [second] = await accept(db, upload("b"))
    assert first.token != second.token
    await settled(db)
    assert [await db.catalog.is_pending(each.token) for each in (first, second)] == [False, True]


async def test_a_duplicate_waits_for_the_upload_that_it_repeats(db):
    await accept(db, upload("a"))
    [again] = await accept(db, upload("a"))
    assert again.duplicate
    assert await db.catalog.is_pending(again.token)
    await settled(db)
    assert not await db.catalog.is_pending(again.token)
    [late] = await accept(db, upload("a"))
    assert not await db.catalog.is_pending(late.token)


async def test_a_write_that_a_newer_one_overtakes_is_pending_until_that_is_settled(db):
    [old] = await accept(db, upload("a"))
    await accept(db, upload("a", "2"))
    await settled(db)
    assert (await db.catalog.document(old.id)).version == 2
    assert not await db.catalog.is_pending(old.token)


async def test_what_failed_or_was_cancelled_keeps_nobody_waiting(db):
    [failed, cancelled] = await accept(db, upload("a"), upload("b"))
    job = await db.jobs.claim("w")
    await db.jobs.fail(job, {"code": "x", "detail": "x", "retryable": True})
    assert await db.catalog.is_pending(failed.token)  # it is tried again
    await db.jobs.cancel(failed.job_id)
    await db.jobs.cancel(cancelled.job_id)
    assert not await db.catalog.is_pending(failed.token)


async def test_a_repeated_request_gets_the_token_of_the_first(db):
    request = ("key", "fingerprint")
    [first] = await accept(db, upload("a"), request=request)
    [again] = await accept(db, upload("a"), request=request)
    assert first.token == again.token != ""


async def test_what_old_tokens_covered_is_forgotten_and_what_new_ones_cover_is_not(db):
    [new] = await accept(db, upload("a"))
    async with db.database.writing() as connection:
        await connection.execute(sa.insert(writes).values(token=new_id("w", at=1e9), document_id=new.id))
    await db.catalog.forget_writes()
    async with db.database.reading() as connection:
        assert list((await connection.execute(sa.select(writes.c.token))).scalars()) == [new.token]
