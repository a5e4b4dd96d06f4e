"""`footnote doctor`: are settings, model, store and catalog there, and do they agree? Every finding names its cure.

With `--repair` what the store lacks, or holds and should not, is mended.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from app.settings import Settings
from app.wiring import Service, open_service, open_worker
from ingest.ledger import Drift
from ingest.parsers.isolation import ParserPool
from ingest.records import Collection, Generation
from retrieval.errors import FootnoteError


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: Literal["ok", "problem"]
    detail: str
    """What was found, and for a problem what to do."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one collection: documents that were looked at, that differed and how, and that still do."""

    collection: str
    checked: int
    missing: int
    stale: int
    orphaned: int
    repaired: int
    left: int


async def repair(settings: Settings) -> AsyncIterator[Repair]:
    """Compare each live index with the catalog, repair it and wait until that is done."""
    async with open_service(settings) as service, _working(service):
        async for generation in service.reconciler.live_generations():
            yield await _repaired(service, generation)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Each check's finding as it is made; a check that another one's failure prevents is left out."""
    try:
        async with open_service(settings) as service:
            yield _disk(settings)
            yield await _catalog(service)
            yield await _store(service)
            yield await _files(service)
            yield await _broker(service)
            yield await _embedder(service)
            yield await _parsers()
            async for finding in _collections(service):
                yield finding
            yield await _jobs(service)
    except FootnoteError as exc:
        yield Finding("start", "problem", exc.message)


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.data_dir).free // 2**20
    if free < settings.min_free_disk_mb:
        detail = f"{free} MiB are free in {settings.data_dir}, so nothing is ingested: free some room, or set FOOTNOTE_DATA_DIR"
        return Finding("disk", "problem", detail)
    return Finding("disk", "ok", f"{free // 1024} GiB free")


async def _catalog(service: Service) -> Finding:
    try:
        await service.catalog.list_collections(limit=1)
    except FootnoteError as exc:
        return Finding("catalog", "problem", exc.message)
    return Finding("catalog", "ok", service.database.engine.dialect.name)


async def _store(service: Service) -> Finding:
    try:
        version, problems = await service.store.ping(), await service.store.problems()
    except FootnoteError as exc:
        return Finding("store", "problem", exc.message)
    return Finding("store", "problem", "; ".join(problems)) if problems else Finding("store", "ok", version)


async def _files(service: Service) -> Finding:
    """May we write, read and remove, and are the bytes there that the catalog knows?"""
    try:
        place = await service.files.ping()
        await service.files.try_out()
        newest = [each.sha256 for each in await service.catalog.list_documents(status="ready", limit=1)]
        there = await service.files.has_originals(newest)
    except FootnoteError as exc:
        return Finding("files", "problem", exc.message)
    if not there:
        cure = "copy the folders originals and texts from where they were, or set FOOTNOTE_FILES_URL back"
        return Finding("files", "problem", f"{place} lacks the bytes of the newest document: {cure}")
    return Finding("files", "ok", place)


async def _broker(service: Service) -> Finding:
    try:
        return Finding("broker", "ok", await service.broker.ping())
    except FootnoteError as exc:
        return Finding("broker", "problem", exc.message)


async def _embedder(service: Service) -> Finding:
    spec = service.settings.embedder
    try:
        embedder = await service.generations.embedder(spec)
        vector = await embedder.embed_query("Does the embedding model answer?")
    except FootnoteError as exc:
        return Finding("embedder", "problem", exc.message)
    if vector.shape != (embedder.dimension,):
        return Finding(
            "embedder",
            "problem",
            f"{spec} gave {vector.shape[0]} dimensions and promised {embedder.dimension}: its files do not fit together",
        )
    return Finding("embedder", "ok", f"{spec}, {embedder.dimension} dimensions, window {embedder.tokenizer.window} tokens")


async def _parsers() -> Finding:
    """May what reads hostile files send anything anywhere? Told by a process that was started as those are."""
    pool = ParserPool(workers=1)
    try:
        reachable = await pool.has_network()
    finally:
        await pool.close()
    detail = (
        "network reachable (the container forbids it to be left; block egress of the workers)" if reachable else "no network"
    )
    return Finding("parsers", "ok", detail)


async def _collections(service: Service) -> AsyncIterator[Finding]:
    cursor: str | None = None
    while page := await service.catalog.list_collections(limit=100, cursor=cursor):
        for collection in page:
            yield await _collection(service, collection)
        cursor = page[-1].name


async def _collection(service: Service, collection: Collection) -> Finding:
    """Does the index belong to the model in use, and does the store hold just what the catalog says?"""
    check = f"collection {collection.name}"
    try:
        live = await service.generations.live(collection.name)
        drifts = await _drifts(service, live[0]) if live else []
    except FootnoteError as exc:
        return Finding(check, "problem", exc.message)
    lost = sum(not drift.rebuildable for drift in drifts)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(drift.kind for drift in drifts).items())
    if lost:
        cure = "see `footnote documents --status degraded` and upload them again"
        return Finding(check, "problem", f"in the store are {kinds}, and the originals of {lost} are gone too: {cure}")
    if drifts:
        return Finding(check, "problem", f"in the store are {kinds} of {collection.documents}: run `footnote doctor --repair`")
    return Finding(check, "ok", f"{collection.documents} documents, {collection.chunks} chunks")


async def _drifts(service: Service, generation: Generation) -> list[Drift]:
    return [drift async for found in service.reconciler.compare(generation) for drift in found.drifts]


async def _repaired(service: Service, generation: Generation) -> Repair:
    kinds: Counter[str] = Counter()
    checked = 0
    async for found in service.reconciler.compare(generation):
        await service.reconciler.repair(generation, found, again=True)
        kinds.update(drift.kind for drift in found.drifts)
        checked += found.checked
    while True:
        await asyncio.sleep(0.2)
        if not await service.reconciler.ledger.repairing(generation):
            break
    left = len(await _drifts(service, generation)) if kinds else 0
    counts = {kind: kinds[kind] for kind in ("missing", "stale", "orphaned")}
    return Repair(generation.collection, checked, **counts, repaired=max(0, kinds.total() - left), left=left)


@asynccontextmanager
async def _working(service: Service) -> AsyncIterator[None]:
    """With a worker of our own, for there may be no other."""
    async with open_worker(service) as worker:
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        try:
            yield
        finally:
            stop.set()
            await running


async def _jobs(service: Service) -> Finding:
    depth = await service.jobs.depth()
    dead = await service.jobs.list_jobs(state="dead", limit=1)
    if dead:
        return Finding(
            "jobs", "problem", f"job {dead[0].id} is dead: see `footnote jobs --state dead`, then `footnote jobs --retry ID`"
        )
    if depth["queued"] and not depth["running"] and not service.settings.workers:
        return Finding("jobs", "problem", f"{depth['queued']} jobs wait and none runs: start `footnote worker`")
    return Finding("jobs", "ok", f"{depth['queued']} waiting, {depth['running']} running")
