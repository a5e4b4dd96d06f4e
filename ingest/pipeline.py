"""The story of a document: bytes, read and embedded portion by portion, stored; its removal; and a whole re-index."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from ingest.aside import aside
from ingest.catalog import Catalog
from ingest.claims import LOT
from ingest.disk import Disk
from ingest.documents import MAX_DEPTH, MAX_PART_BYTES, MAX_PARTS, Room
from ingest.embedding_cache import EmbeddingCache
from ingest.files import Files
from ingest.generations import Generations
from ingest.job_rows import Job
from ingest.jobs import Jobs
from ingest.parsers import HEAD_BYTES, Parsed, detect
from ingest.parsers.isolation import ParserPool
from ingest.parts import UNKNOWN, keep_parts
from ingest.passages import Passages, Progress, Source
from ingest.reading import Reading
from ingest.records import Document, Entry, Generation, Upload, status_when_whole
from ingest.settling import Outcome
from ingest.together import Together
from retrieval.digest import digest_of
from retrieval.embedders import Embedder
from retrieval.errors import FootnoteError, StoreUnavailable
from retrieval.stores import VectorStore

NO_TEXT = "no text was found in it, so no question can find it; if it shows text, it may be an image of text"
DISK_SECONDS = 2.0
"""So long a worker holds a job back while the disk is full: enough that the queue is not turned over all the time."""
STORE_SECONDS = 1.0
STORING = "storing"
"""The stage from which on the store may hold what a job has read."""
WAITING_FOR_DISK, WAITING_FOR_STORE = "waiting for disk", "waiting for store"
"""Stages, of which the catalog holds 20 characters."""
REMOVALS = 4
"""At once: each holds the catalog while the file store is asked."""


class ReindexIncomplete(FootnoteError):
    """Documents that are answerable now could not be built anew, so the live generation stays."""

    code = "reindex_incomplete"


class Stopwatch:
    """Passes progress on, and knows how long each stage took; a stage may come more than once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage != self._stage:
            self._count()
            self._stage = stage
        self._progress(stage, done, total)

    def seconds(self) -> dict[str, float]:
        """Of each stage so far."""
        self._count()
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}

    def _count(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since = now


class Pipeline:
    """Carries out jobs. Every step may be repeated: a job that died half-way is simply run again."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        jobs: Jobs,
        files: Files,
        store: VectorStore,
        generations: Generations,
        parsers: ParserPool,
        disk: Disk,
        cache: EmbeddingCache,
    ) -> None:
        self.catalog = catalog
        self.jobs = jobs
        self.files = files
        self.store = store
        self.generations = generations
        self.parsers = parsers
        self.disk = disk
        self.cache = cache
        self._removing = asyncio.Semaphore(REMOVALS)
        self._cutting = ThreadPoolExecutor(1, "cutting")
        self._documents = Together(self._read_documents, most=LOT, of_all=(FootnoteError,))

    async def run(self, job: Job, progress: Progress) -> None:
        """Carry out a job and settle it. Raises what the steps raise, and `LeaseLost`."""
        if not await self._has_store(job, progress) or (job.kind != "delete" and not await self._has_room(job, progress)):
            return
        match job.kind:
            case "ingest":
                await self.ingest(job, progress)
            case "delete":
                await self.delete(job)
            case "rebuild":
                await self.rebuild(job, progress)
            case _:
                await self.reindex(job)

    async def ingest(self, job: Job, progress: Progress) -> None:
        """Parse the newest version, write it to the live and to every building generation, then settle."""
        document = await self._document(job)
        if document is None or document.version != job.version or document.status == "deleting":
            await self.jobs.settle.ingest(job, [], {})
            return
        source = await self._source(document)
        before = await self.catalog.blobs_of(source.id) if source.version > 1 else ()
        watch = Stopwatch(progress)
        with self.files.scratch() as scratch:
            async with self._reading(source, watch, scratch, parts=scratch) as reading:
                written = await self._write(source, reading, {}, watch)
                parsed = await reading.whole()
            async with self._stored_parts(source, parsed, scratch) as parts:
                while (outcome := await self._settle(job, source, parsed, parts, written, watch)) in {"moved", "full"}:
                    if outcome == "full":  # other parts of the upload were settled meanwhile
                        await self._cut(parts, await self.catalog.room_for_parts(source.id))
                    else:
                        written = await self._write(source, reading, written, watch)
        if outcome == "superseded":
            await self._discard(parts)
            await self._forget_if_gone(job, [entry.generation for entry in written.values()])
        else:
            await self.catalog.remove_blobs([*before], self.files.discard)

    async def delete(self, job: Job) -> None:
        """Remove a document from every generation, then from the catalog, then its bytes unless another has the same.

        It goes after all that came out of it, so that the end of its job is the end of them all.
        """
        if await self.jobs.unfinished([job.id]) > 1:
            await self.jobs.release(job, after=0.1, stage="deleting parts")
            return
        for generation in await self.catalog.generations(job.collection):
            await self.store.replace(generation.index, {str(job.document_id): []})
        blobs = await self.jobs.settle.delete(job)
        async with self._removing:
            await self.catalog.remove_blobs(blobs, self.files.discard)

    async def rebuild(self, job: Job, progress: Progress) -> None:
        """Build a document's live version anew in the generation that the job names: for a re-index, or to repair it."""
        generation = next((g for g in await self.catalog.generations(job.collection) if g.id == job.generation_id), None)
        live = await self.catalog.live_source(str(job.document_id))
        if generation is not None and live is None:  # no version of it is to be found, so none may lie there
            await self.store.replace(generation.index, {str(job.document_id): []})
        if generation is None or live is None:
            await self.jobs.succeed(job)
            return
        source = Source(**live)
        before = await self.catalog.blobs_of(source.id)
        embedder = await self.generations.embedder(generation.embedder)
        with self.files.scratch() as scratch:
            async with self._reading(source, progress, scratch) as reading:
                entry = await self._index(source, reading, generation, embedder, progress)
        if await self.jobs.settle.rebuild(job, entry, source.place(), texts=self.files.has_texts) == "superseded":
            await self._forget_if_gone(job, [generation])
        await self.catalog.remove_blobs([*before], self.files.discard)

    async def make_good(self, job: Job) -> None:
        """A lost job had begun to write: that may have come after what others wrote who have it now, or have cancelled it.

        The live version, or nothing where there is none, is written again behind all jobs of the document that run; one that
        is gone is removed at once.
        """
        found = await self.catalog.generations(job.collection)
        generations = [each for each in found if job.generation_id in {None, each.id}]
        await self.jobs.rebuild_again(generations, str(job.document_id))
        await self._forget_if_gone(job, generations)

    async def reindex(self, job: Job) -> None:
        """One step of a re-index: queue what the new generation lacks, or switch to it if it lacks nothing.

        Between its steps the job waits in the queue, so that it holds no worker while the documents are rebuilt.
        """
        generation = next((g for g in await self.catalog.generations(job.collection) if g.id == job.generation_id), None)
        if generation is None:
            await self.jobs.succeed(job)
            return
        missing = await self._missing(generation)
        if not missing:
            await self.store.create(generation.index)
            await self.store.publish(generation.index)
            await self.jobs.forget_rebuilds(generation)
            await self.jobs.succeed(job)
            return
        await self.jobs.add_rebuilds(generation, missing)
        states = await self.jobs.rebuilds(generation)
        if not states.get("queued") and not states.get("running"):
            await self.jobs.forget_rebuilds(generation)
            count = f"{len(missing)} documents" if len(missing) < 100 else "many documents"
            raise ReindexIncomplete(
                f"{count} could not be built anew (first {missing[0]}); the old index stays live, see the log"
            )
        await self.jobs.release(job, after=0.5, stage="rebuilding", done=states.get("succeeded", 0), total=sum(states.values()))

    async def _missing(self, generation: Generation) -> list[str]:
        """Documents that a generation lacks; if there are none, it is live afterwards, or was after a try that died then."""
        if generation.state == "live":
            return []
        if missing := await self.catalog.missing(generation, limit=500):
            return missing
        pinned = generation.embedder if generation.embedder != self.generations.default_spec else None
        return await self.catalog.switch(generation, embedder=pinned)

    async def housekeep(self) -> None:
        """Drop generations that no query reads any more, files that nobody finishes, and what old tokens covered."""
        await self.catalog.forget_writes()
        await self.files.sweep()
        for generation in await self.catalog.retired():
            await self.store.drop(generation.index)
            await self.catalog.forget_generation(generation.id)

    async def _has_room(self, job: Job, progress: Progress) -> bool:
        """Wait a moment for room on the disk, then give the job back: a deletion, which makes room, must get its turn."""
        if self.disk.has_room():
            return True
        progress(WAITING_FOR_DISK, 0, None)
        await asyncio.sleep(DISK_SECONDS)
        if self.disk.has_room():
            return True
        await self.jobs.release(job, after=DISK_SECONDS, stage=WAITING_FOR_DISK)
        return False

    async def _has_store(self, job: Job, progress: Progress) -> bool:
        """The same for a store that is away: found out before the work and not counted, so no document fails for it."""
        try:
            await self.store.ping()
        except StoreUnavailable:
            progress(WAITING_FOR_STORE, 0, None)
            await asyncio.sleep(STORE_SECONDS)
            await self.jobs.release(job, after=STORE_SECONDS, stage=WAITING_FOR_STORE)
            return False
        return True

    async def _document(self, job: Job) -> Document | None:
        return await self._documents.do(job.collection, str(job.document_id))

    async def _read_documents(self, _collection: str, ids: Sequence[str]) -> list[Document | None]:
        found = {document.id: document for document in await self.catalog.list_documents(ids=ids, limit=len(ids))}
        return [found.get(each) for each in ids]

    async def _source(self, document: Document) -> Source:
        """The newest version; of a part that was nothing we knew, its type now, or the reason why there is none."""
        media_type = document.media_type
        if media_type == UNKNOWN:
            head = await self.files.stream("originals", document.sha256, end=min(HEAD_BYTES, document.size))
            media_type = detect(document.name, b"".join([piece async for piece in head]), document.size)
        held = (document.id, document.collection, document.name, document.version, document.sha256)
        return Source(*held, media_type, document.metadata)

    @asynccontextmanager
    async def _reading(
        self, source: Source, progress: Progress, scratch: Path, *, parts: Path | None = None
    ) -> AsyncIterator[Reading]:
        """The document, read while the block goes on; files within it are left in `parts`."""
        progress("reading", 0, None)
        original = await self.files.local("originals", source.sha256, scratch)
        async with aclosing(self.parsers.portions(original, source.name, source.media_type, parts)) as portions:
            yield Reading(source.name, portions)

    async def _write(
        self, source: Source, reading: Reading, written: Mapping[str, Entry], progress: Progress
    ) -> dict[str, Entry]:
        """What was `written` and what generations that readers follow now, or will, lacked of the document."""
        now = dict(written)
        for generation, embedder in await self.generations.targets(source.collection):
            if generation.id not in now:
                now[generation.id] = await self._index(source, reading, generation, embedder, progress)
        return now

    @asynccontextmanager
    async def _stored_parts(self, source: Source, parsed: Parsed, scratch: Path) -> AsyncIterator[list[Upload]]:
        """Files within the document, as many as there is room for, in the file store; if the block fails, they go again."""
        parts: list[Upload] = []
        try:
            if parsed.parts:
                room = await self.catalog.room_for_parts(source.id)
                await keep_parts(parts, parsed.parts, scratch, self.files, source.metadata, room)
            yield parts
        except BaseException:
            await self._discard(parts)
            raise

    async def _cut(self, parts: list[Upload], room: Room) -> None:
        """Let go of the last parts, for which there is no room."""
        fitting = room.fitting(parts)
        gone, parts[fitting:] = parts[fitting:], []
        kept = {part.sha256 for part in parts}
        await self._discard([part for part in gone if part.sha256 not in kept])

    async def _discard(self, parts: Sequence[Upload]) -> None:
        await self.catalog.remove_blobs([part.sha256 for part in parts], self.files.discard)

    async def _settle(
        self,
        job: Job,
        source: Source,
        parsed: Parsed,
        parts: Sequence[Upload],
        written: Mapping[str, Entry],
        watch: Stopwatch,
    ) -> Outcome:
        entries = list(written.values())
        settled = _settled(source, parsed, parts, max(entries, key=lambda entry: entry.chunks), watch.seconds())
        exist, texts = self.files.has_originals, self.files.has_texts
        return await self.jobs.settle.ingest(job, entries, settled, parts, exist=exist, texts=texts)

    async def _index(
        self, source: Source, reading: Reading, generation: Generation, embedder: Embedder, progress: Progress
    ) -> Entry:
        """Embed the document while it is read; when all of it is there, write it in one step."""
        passages = Passages(source, embedder, generation.chunking, progress, self.cache, self._cutting)
        async for portion in reading.portions():
            await passages.add(portion)
        text_key = await self.files.put_text((await reading.whole()).text)
        chunks = len(passages.embedded)
        progress(STORING, chunks, chunks)
        if not chunks:
            await self.store.create(generation.index)  # which else the first write does
        await self.store.replace(generation.index, {source.id: passages.embedded})
        languages = frozenset({passages.language} if passages.language else ())
        digest = await aside(sum(len(row.chunk.text) for row in passages.embedded), digest_of, passages.embedded)
        tokens, cut = passages.tokens, passages.tokens_cut
        return Entry(generation, text_key, chunks, languages, tokens, cut, digest, passages.computed)

    async def _forget_if_gone(self, job: Job, generations: Sequence[Generation]) -> None:
        """A document that was deleted while we indexed it must not be found until its deletion runs."""
        document = await self._document(job)
        if document is None or document.status == "deleting":
            for generation in generations:
                await self.store.replace(generation.index, {str(job.document_id): []})


def _settled(
    source: Source, parsed: Parsed, parts: Sequence[Upload], entry: Entry, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What the catalog records of an indexed version; the receipt's reason decides between `ready` and `needs_attention`."""
    counts = {"chunks": entry.chunks, "tokens": entry.tokens, "tokens_cut": entry.tokens_cut, "parts": len(parts)}
    counts |= {"embedded": entry.embedded, "cached": entry.chunks - entry.embedded}
    receipt = {**parsed.receipt.as_dict(), **counts, "stages": dict(seconds)}
    if parts:
        receipt["notes"].append(f"{len(parts):,} documents came out of it.")
    doubts = [receipt["needs_attention"], _beyond(len(parsed.parts) - len(parts))]
    if not entry.chunks and not parsed.parts:
        doubts = [receipt["needs_attention"] or NO_TEXT]
    receipt["needs_attention"] = " ".join(filter(None, doubts)) or None
    return {**source.place(), "status": status_when_whole(receipt), "receipt": receipt}


def _beyond(parts: int) -> str | None:
    if not parts:
        return None
    return (
        f"{parts:,} files in it were not read: of one upload, {MAX_PARTS:,} are with {MAX_PART_BYTES // 2**30} GiB together, "
        f"and those that lie {MAX_DEPTH} deep at most, "
        "as far as the collection's quota has room. Take them out and upload them by themselves, or raise the quota."
    )
