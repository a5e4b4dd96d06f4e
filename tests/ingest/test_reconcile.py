"""Reconciliation against a real store and both kinds of catalog: what is drift, what only looks like it, and who may act."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from ingest.blobs.folder import Folder
from ingest.catalog import Catalog
from ingest.database import open_database
from ingest.disk import Disk
from ingest.documents import OriginalVanished
from ingest.files import Files
from ingest.generations import Generations
from ingest.job_rows import Job
from ingest.jobs import Jobs
from ingest.ledger import Ledger
from ingest.pipeline import Pipeline
from ingest.reconcile import Reconciler
from ingest.records import Entry, Upload
from ingest.schema import entries, passes
from retrieval.digest import digest_of
from retrieval.stores import open_store
from tests.contracts.rows_for_tests import DIMENSION, document
from tests.ingest.databases import urls
from tests.ingest.test_catalog import CHUNKING


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(request, tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    """A catalog, a store, a live generation of one collection, and what compares them."""
    async for url in urls(request.param, tmp_path):
        database = await open_database(url)
        catalog, jobs = Catalog(database), Jobs(database, lease_seconds=30, max_attempts=3)
        store, files = await open_store(f"lance:{tmp_path}/lance"), Files(Folder(tmp_path))
        await catalog.create_collection("c", chunking=CHUNKING)
        gen = await catalog.create_generation(
            "c", embedder="e", fingerprint="f", schema="s", dimension=DIMENSION, chunking=CHUNKING, live=True
        )
        await store.create(gen.index)
        reconciler = Reconciler(catalog=catalog, ledger=Ledger(database), files=files, store=store)
        yield SimpleNamespace(
            database=database,
            catalog=catalog,
            jobs=jobs,
            store=store,
            files=files,
            gen=gen,
            reconciler=reconciler,
            folder=tmp_path,
        )
        await store.close()
        await database.close()


async def bytes_of(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


async def accept(place, name: str = "a", version: int = 1) -> str:
    stored = await place.files.put("originals", bytes_of(f"{name} {version}"), limit=100)
    item = Upload(name, stored.sha256, stored.size, "text/plain", {})
    [accepted] = await place.catalog.accept("c", [item], chunking=CHUNKING, exist=place.files.has_originals)
    return accepted.id


async def write(place, job: Job, count: int = 3) -> Entry:
    """What a worker does before it settles."""
    rows = document(job.document_id, count, version=job.version)
    await place.store.replace(place.gen.index, {job.document_id: rows})
    text_key = await place.files.put_text(f"text of {job.document_id} {job.version}")
    return Entry(place.gen, text_key, count, frozenset(), digest=digest_of(rows))


async def ingested(place, name: str = "a", version: int = 1) -> str:
    document_id = await accept(place, name, version)
    job = await place.jobs.claim("w")
    await settle(place, job, await write(place, job))
    return document_id


async def settle(place, job: Job, entry: Entry) -> None:
    doc = await place.catalog.document(job.document_id)
    source = {"status": "ready", "receipt": {}, "version": job.version, "sha256": doc.sha256, "media_type": "text/plain"}
    assert await place.jobs.settle.ingest(job, [entry], source, texts=place.files.has_texts) == "settled"


async def compared(place) -> list:
    return [found async for found in place.reconciler.compare(place.gen)]


async def drifts(place) -> dict[str, str]:
    return {drift.document_id: drift.kind for found in await compared(place) for drift in found.drifts}


async def repair(place, found: list, **how) -> None:
    for each in found:
        await place.reconciler.repair(place.gen, each, **how)


async def test_what_is_as_it_was_written_is_no_drift(place):
    for name in "abc":
        await ingested(place, name)
    assert await drifts(place) == {}
    assert sum(found.checked for found in await compared(place)) == 3


async def test_a_worker_that_is_ahead_of_the_ledger_is_no_drift_until_its_job_has_failed(place):
    document_id = await ingested(place)
    await accept(place, version=2)
    job = await place.jobs.claim("w")
    await write(place, job, 5)
    assert await drifts(place) == {}
    assert await place.jobs.fail(job, {"code": "x", "detail": "y", "retryable": False}) == "failed"
    assert await drifts(place) == {document_id: "stale"}
    await repair(place, await compared(place))
    assert (await place.catalog.document(document_id)).status == "failed"  # of its newest version, which is worth knowing
    job = await place.jobs.claim("w")
    assert (job.kind, job.queue, job.document_id) == ("rebuild", "maintenance", document_id)


async def test_a_first_version_that_failed_after_it_was_written_is_taken_out_by_a_job(place):
    document_id = await accept(place)
    job = await place.jobs.claim("w")
    await write(place, job)
    assert await drifts(place) == {}
    await place.jobs.fail(job, {"code": "x", "detail": "y", "retryable": False})
    assert await drifts(place) == {document_id: "orphaned"}
    await repair(place, await compared(place))
    assert await place.store.count(place.gen.index) == 3  # only one of the document's jobs may touch it
    await pipeline_of(place).run(await place.jobs.claim("w"), lambda *_: None)
    assert await place.store.count(place.gen.index) == 0
    assert await drifts(place) == {}


def pipeline_of(place) -> Pipeline:
    generations = Generations(place.catalog, default_spec="e", open_embedder=lambda _: pytest.fail("nothing is embedded"))
    parts = {"catalog": place.catalog, "jobs": place.jobs, "files": place.files, "store": place.store}
    return Pipeline(**parts, generations=generations, parsers=None, disk=Disk(place.folder, 0), cache=None)


async def new_version(place, document_id):
    await accept(place, version=2)


async def newer_version_settled(place, document_id):
    await ingested(place, version=2)


async def deletion(place, document_id):
    await place.catalog.delete_document(document_id)


async def deletion_done(place, document_id):
    await place.catalog.delete_document(document_id)
    await place.jobs.settle.delete(await place.jobs.claim("w"))


async def switch(place, document_id):
    values = {"embedder": "e", "schema": "s", "dimension": DIMENSION, "chunking": CHUNKING, "live": False}
    new = await place.catalog.create_generation("c", fingerprint="other", **values)
    await place.jobs.add_rebuilds(new, [document_id])
    job = await place.jobs.claim("w")
    source = await place.catalog.live_source(document_id)
    await place.jobs.settle.rebuild(job, Entry(new, "t" * 64, 3, frozenset()), source)
    assert await place.catalog.switch(new, embedder=None) == []


@pytest.mark.parametrize("change", [new_version, newer_version_settled, deletion, deletion_done, switch])
async def test_what_changed_after_the_store_was_read_is_not_acted_upon(place, change):
    document_id = await ingested(place)
    await place.store.replace(place.gen.index, {document_id: []})
    found = await compared(place)
    assert [drift.kind for each in found for drift in each.drifts] == ["missing"]
    await change(place, document_id)
    waiting = await place.jobs.depth()
    await repair(place, found)
    assert await place.jobs.depth() == waiting
    assert "degraded" not in {each.status for each in await place.catalog.list_documents(limit=5)}


async def test_entries_from_before_get_their_digest_if_their_chunks_are_of_their_version(place):
    good, old = await ingested(place, "good"), await ingested(place, "old")
    async with place.database.writing() as connection:
        await connection.execute(sa.update(entries).values(digest=None))
    await place.store.replace(place.gen.index, {old: document(old, 3, version=7)})
    await repair(place, await compared(place))
    async with place.database.reading() as connection:
        rows = (await connection.execute(sa.select(entries.c.document_id, entries.c.digest))).all()
    assert dict(map(tuple, rows)) == {good: digest_of(document(good, 3)), old: None}
    assert (await place.catalog.document(good)).status == "ready"
    assert (await place.catalog.document(old)).status == "degraded"


async def test_a_rebuild_that_failed_shows_why_and_is_tried_again_when_asked(place):
    document_id = await ingested(place)
    await place.store.replace(place.gen.index, {document_id: []})
    await repair(place, await compared(place))
    job = await place.jobs.claim("w")
    await place.jobs.fail(job, {"code": "parse_timeout", "detail": "it took too long", "retryable": False})
    shown = await place.catalog.document(document_id)
    assert (shown.status, shown.error["code"]) == ("degraded", "parse_timeout")
    assert "took too long" in shown.error["detail"]
    await repair(place, await compared(place))
    assert await place.jobs.claim("w") is None
    await repair(place, await compared(place), again=True)
    job = await place.jobs.claim("w")
    source = await place.catalog.live_source(document_id)
    assert await place.jobs.settle.rebuild(job, await write(place, await as_version(place, job)), source) == "settled"
    shown = await place.catalog.document(document_id)
    assert (shown.status, shown.error) == ("ready", None)
    assert await drifts(place) == {}


async def as_version(place, job: Job) -> SimpleNamespace:
    live = await place.catalog.live_source(job.document_id)
    return SimpleNamespace(document_id=job.document_id, version=live["version"])


async def test_a_degraded_document_that_is_whole_again_by_itself_is_ready(place):
    document_id = await ingested(place)
    rows = document(document_id, 3)
    await place.store.replace(place.gen.index, {document_id: []})
    await repair(place, await compared(place))
    await place.jobs.cancel((await place.jobs.claim("w")).id)
    assert (await place.catalog.document(document_id)).status == "degraded"
    await place.store.replace(place.gen.index, {document_id: rows})  # the store was restored from its backup
    await repair(place, await compared(place))
    assert (await place.catalog.document(document_id)).status == "ready"


async def test_one_process_at_a_time_makes_a_pass_and_a_dead_one_is_followed(place):
    ledger = place.reconciler.ledger
    begun = await asyncio.gather(*(ledger.begin("indexes", name, every=60) for name in "abc"))
    assert sorted(begun) == [False, False, True]
    winner = "abc"[begun.index(True)]
    assert await ledger.note("indexes", winner, checked=5, found=2, mended=1)
    async with place.database.writing() as connection:
        await connection.execute(sa.update(passes).values(lease_until=time() - 1))
    assert await ledger.begin("indexes", "next", every=60)
    assert not await ledger.note("indexes", winner, checked=5)
    assert await ledger.note("indexes", "next", checked=1, ended=True)
    assert not await ledger.begin("indexes", winner, every=60)
    [record] = [each for each in await ledger.passes() if each.name == "indexes"]
    assert (record.checked, record.found, record.mended) == (6, 2, 1)
    assert record.finished_at == pytest.approx(time(), abs=60)


async def test_a_pass_reads_digests_where_counts_differ_and_once_a_day(place):
    document_id = await ingested(place)
    reconciler = place.reconciler
    reconciler.every_seconds = 1e-9
    await reconciler.tick()
    assert await checked(place) == 1
    await reconciler.tick()
    assert await checked(place) == 1  # the counts agree
    await place.store.replace(place.gen.index, {document_id: document(document_id, 2)})
    await reconciler.tick()
    assert await checked(place) == 2
    assert (await place.catalog.document(document_id)).status == "degraded"


async def checked(place) -> int:
    return {each.name: each.checked for each in await place.reconciler.ledger.passes()}["indexes"]


async def test_files_that_nothing_names_go_once_they_are_old(place):
    document_id = await ingested(place)
    forgotten, young = [await place.files.put_text(f"nobody's {n}") for n in range(2)]
    named = await place.catalog.document(document_id)
    for kind, key in (("texts", forgotten), ("texts", named.text_key), ("originals", named.sha256)):
        os.utime(place.folder / kind / key[:2] / key, (0, 0))
    assert await place.reconciler.ledger.begin("files", place.reconciler.name, every=0)
    assert await place.reconciler.pass_over_files(older_than=3600) == 1
    assert not await place.files.has_texts([forgotten])
    assert await place.files.has_texts([young, named.text_key])
    assert await place.files.has_originals([named.sha256])


async def test_a_text_that_is_removed_while_another_document_begins_to_name_it_is_never_missed(place):
    """Removing and naming the same bytes at once: whoever was settled has its text, whichever came first."""
    outcomes = []
    for turn in range(4):
        await accept(place, str(turn))
        job = await place.jobs.claim("w")
        for is_contested in (True, False):
            key = await place.files.put_text("the same")
            removing = [place.catalog.remove_blobs([key], place.files.discard)] if is_contested else []
            settling = settle(place, job, Entry(place.gen, key, 0, frozenset(), digest=digest_of([])))
            outcome, *_ = await asyncio.gather(settling, *removing, return_exceptions=True)
            outcomes.append(outcome)
            if outcome is None:
                break
        assert await place.files.has_texts([key])
        await place.catalog.delete_document(job.document_id)
        await place.catalog.remove_blobs(await place.jobs.settle.delete(await place.jobs.claim("w")), place.files.discard)
        assert not await place.files.has_texts([key])
    assert all(outcome is None or isinstance(outcome, OriginalVanished) for outcome in outcomes)


async def test_nothing_is_settled_whose_text_was_removed(place):
    document_id = await accept(place)
    job = await place.jobs.claim("w")
    entry = await write(place, job)
    await place.catalog.remove_blobs([entry.text_key], place.files.discard)
    with pytest.raises(OriginalVanished):
        await settle(place, job, entry)
    assert (await place.catalog.document(document_id)).status == "processing"


async def test_a_repair_is_queued_once_and_the_end_of_a_reindex_leaves_it(place):
    document_id = await ingested(place)
    for _ in range(2):
        await place.jobs.rebuild_again([place.gen], document_id)
    assert await place.jobs.rebuilds(place.gen) == {}, "it would count as a document of a re-index"
    await place.jobs.forget_rebuilds(place.gen)
    job = await place.jobs.claim("w")
    assert (job.kind, job.document_id, job.generation_id) == ("rebuild", document_id, place.gen.id)
    await place.jobs.succeed(job)
    assert await place.jobs.claim("w") is None
