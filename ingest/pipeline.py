"""The story of a document: bytes, parsed, chunked, embedded, stored; and of its removal, and of a whole re-index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ingest.catalog import Catalog
from ingest.chunk import Piece, chunk
from ingest.files import Files
from ingest.generations import Generations
from ingest.jobs import Job, Jobs
from ingest.parsers import Parsed
from ingest.parsers.isolation import ParserPool
from ingest.records import Document, Entry, Generation
from retrieval.analysis import analyze, guess_language
from retrieval.embedders import Embedder
from retrieval.errors import DocumentNotFound, FootnoteError
from retrieval.stores import VectorStore
from retrieval.types import Chunk, EmbeddedChunk, chunk_id

EMBED_BATCH = 64
LANGUAGE_SAMPLE = 4000
"""Characters: more does not change the guess."""

NO_TEXT = "no text was found in it, so no question can find it; if it shows text, it may be an image of text"

Progress = Callable[[str, int, int | None], None]
"""Takes the stage, and how much of what total is done."""


class ReindexIncomplete(FootnoteError):
    """Documents that are answerable now could not be built anew, so the live generation stays."""

    code = "reindex_incomplete"


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a document, as far as indexing it needs to know."""

    id: str
    name: str
    version: int
    sha256: str
    media_type: str
    metadata: Mapping[str, Any]


class Pipeline:
    """Carries out jobs. Every step may be repeated: a job that died half-way is simply run again."""

    def __init__(
        self, *, catalog: Catalog, jobs: Jobs, files: Files, store: VectorStore, generations: Generations, parsers: ParserPool
    ) -> None:
        self.catalog = catalog
        self.jobs = jobs
        self.files = files
        self.store = store
        self.generations = generations
        self.parsers = parsers

    async def run(self, job: Job, progress: Progress) -> None:
        """Carry out a job and settle it. Raises what the steps raise, and `LeaseLost`."""
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
            await self.jobs.settle_ingest(job, [], {})
            return
        source = Source(document.id, document.name, document.version, document.sha256, document.media_type, document.metadata)
        parsed, text_key = await self._parse(source, progress)
        collection = await self.catalog.collection(document.collection)
        written: dict[str, Entry] = {}
        outcome = "moved"
        while outcome == "moved":
            for generation, embedder in await self.generations.targets(collection):
                if generation.id not in written:
                    written[generation.id] = await self._index(source, parsed, text_key, generation, embedder, progress)
            held = max(entry.chunks for entry in written.values())
            outcome = await self.jobs.settle_ingest(job, list(written.values()), _settled(source, parsed, held))
        if outcome == "superseded":
            await self._forget_if_gone(job, written)

    async def delete(self, job: Job) -> None:
        """Remove a document from every generation, then from the catalog, then its bytes unless another has the same."""
        for generation in await self.catalog.generations(job.collection):
            await self.store.replace(generation.index, {str(job.document_id): []})
        for sha256 in await self.jobs.settle_delete(job):
            await self.catalog.remove_blob(sha256, partial(self.files.discard, sha256))

    async def rebuild(self, job: Job, progress: Progress) -> None:
        """One document of a re-index: build its live version anew in the generation that the job names."""
        generation = next((g for g in await self.catalog.generations(job.collection) if g.id == job.generation_id), None)
        live = await self.catalog.live_source(str(job.document_id))
        if generation is None or live is None:
            await self.jobs.succeed(job)  # the collection or the document went away meanwhile
            return
        source = Source(**live)
        parsed, text_key = await self._parse(source, progress)
        embedder = await self.generations.embedder(generation.embedder)
        entry = await self._index(source, parsed, text_key, generation, embedder, progress)
        if await self.jobs.settle_rebuild(job, entry, _settled(source, parsed, entry.chunks)) == "superseded":
            await self._forget_if_gone(job, {generation.id: entry})

    async def reindex(self, job: Job) -> None:
        """One step of a re-index: queue what the new generation lacks, or switch to it if it lacks nothing.

        Between its steps the job waits in the queue, so that it holds no worker while the documents are rebuilt.
        """
        generation = next((g for g in await self.catalog.generations(job.collection) if g.id == job.generation_id), None)
        if generation is None or generation.state == "live":
            await self.jobs.succeed(job)
            return
        missing = await self.catalog.missing(generation, limit=500)
        if not missing:
            pinned = generation.embedder if generation.embedder != self.generations.default_spec else None
            missing = await self.catalog.switch(generation, embedder=pinned)
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

    async def housekeep(self) -> None:
        """Drop generations that no query reads any more."""
        for generation in await self.catalog.retired():
            await self.store.drop(generation.index)
            await self.catalog.forget_generation(generation.id)

    async def _document(self, job: Job) -> Document | None:
        try:
            return await self.catalog.document(str(job.document_id))
        except DocumentNotFound:
            return None

    async def _parse(self, source: Source, progress: Progress) -> tuple[Parsed, str]:
        progress("parsing", 0, None)
        parsed = await self.parsers.parse(self.files.path("originals", source.sha256), source.name, source.media_type)
        return parsed, await self.files.put_text(parsed.text)

    async def _index(
        self, source: Source, parsed: Parsed, text_key: str, generation: Generation, embedder: Embedder, progress: Progress
    ) -> Entry:
        progress("chunking", 0, None)
        pieces = await asyncio.to_thread(chunk, parsed, embedder.tokenizer, generation.chunking)
        language = await asyncio.to_thread(guess_language, parsed.text[:LANGUAGE_SAMPLE])
        chunks = [_chunk(source, parsed, position, piece, language) for position, piece in enumerate(pieces)]
        texts = [
            f"{piece.context}\n{each.text}" if piece.context else each.text for piece, each in zip(pieces, chunks, strict=True)
        ]
        embedded: list[EmbeddedChunk] = []
        for first in range(0, len(chunks), EMBED_BATCH):
            progress("embedding", first, len(chunks))
            batch = texts[first : first + EMBED_BATCH]
            vectors = await embedder.embed_documents(batch)
            terms = await asyncio.to_thread(_terms, batch, language)
            embedded += [
                EmbeddedChunk(c, v, t) for c, v, t in zip(chunks[first : first + EMBED_BATCH], vectors, terms, strict=True)
            ]
        progress("storing", len(chunks), len(chunks))
        await self.store.create(generation.index)
        await self.store.replace(generation.index, {source.id: embedded})
        return Entry(generation, text_key, len(chunks), frozenset({language} if language else ()))

    async def _forget_if_gone(self, job: Job, written: Mapping[str, Entry]) -> None:
        """A document that was deleted while we indexed it must not be found until its deletion runs."""
        document = await self._document(job)
        if document is None or document.status == "deleting":
            for entry in written.values():
                await self.store.replace(entry.generation.index, {str(job.document_id): []})


def _terms(texts: Sequence[str], language: str | None) -> list[str]:
    return [" ".join(analyze(text, language)) for text in texts]


def _chunk(source: Source, parsed: Parsed, position: int, piece: Piece, language: str | None) -> Chunk:
    text = parsed.text[piece.start : piece.end]
    return Chunk(
        id=chunk_id(source.id, source.version, piece.start, piece.end, text),
        document_id=source.id,
        document_name=source.name,
        position=position,
        text=text,
        start=piece.start,
        end=piece.end,
        page=piece.page,
        headings=piece.headings,
        language=language,
        metadata=source.metadata,
    )


def _settled(source: Source, parsed: Parsed, chunks: int) -> dict[str, Any]:
    """What the catalog records of an indexed version; the receipt's reason decides between `ready` and `needs_attention`."""
    receipt = {**parsed.receipt.as_dict(), "chunks": chunks}
    if not chunks and not receipt["needs_attention"]:
        receipt["needs_attention"] = NO_TEXT
    status = "needs_attention" if receipt["needs_attention"] else "ready"
    return {
        "status": status,
        "receipt": receipt,
        "version": source.version,
        "sha256": source.sha256,
        "media_type": source.media_type,
    }
