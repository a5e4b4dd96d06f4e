"""Which index generation and which embedding model go together, and what a re-index would change."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from ingest.catalog import Catalog
from ingest.chunk import Chunking
from ingest.records import Collection, Generation
from ingest.together import Together
from retrieval.analysis import ANALYSIS_VERSION
from retrieval.embedders import Embedder
from retrieval.errors import EmbedderMismatch, FootnoteError

Target: TypeAlias = tuple[Generation, Embedder]
TOGETHER = 100
"""Documents that ask at the same time where to go, and are told by one reading."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `reindex` would do to one collection."""

    collection: str
    documents: int
    chunks: int
    embedder: str
    changes: tuple[str, ...]
    """Why, in words; empty where the live generation is already what it should be."""


class Generations:
    """Opens each embedder once, by spec, and refuses to mix the vectors of two."""

    def __init__(self, catalog: Catalog, *, default_spec: str, open_embedder: Callable[[str], Awaitable[Embedder]]) -> None:
        self.catalog = catalog
        self.default_spec = default_spec
        self._open = open_embedder
        self._embedders: dict[str, asyncio.Task[Embedder]] = {}
        self._targets = Together(self._read_targets, most=TOGETHER, of_all=(FootnoteError,))

    async def embedder(self, spec: str) -> Embedder:
        """The embedder of this spec, opened on first use; an opening that failed is tried again by the next caller."""
        task = self._embedders.get(spec)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._embedders[spec] = asyncio.ensure_future(self._open(spec))
        return await asyncio.shield(task)

    async def warm(self) -> None:
        """Load the model of the setting before the first question asks for it; if it cannot be, that question says why."""
        with suppress(FootnoteError):
            await (await self.embedder(self.default_spec)).embed_query("ready")

    async def live(self, collection: str) -> tuple[Generation, Embedder] | None:
        """What a reader of the collection searches, and by which model; None while it is empty.

        Raises `CollectionNotFound`, and `EmbedderMismatch` if the setting names another model than the index was built by.
        """
        generation = await self.catalog.live_generation(collection)
        if generation is None:
            return None
        embedder = await self.embedder(generation.embedder if generation.pinned else self.default_spec)
        if embedder.fingerprint != generation.fingerprint:
            raise EmbedderMismatch(
                f"collection {collection!r} was indexed by {generation.embedder}, and the embedder in use is {embedder.spec}: "
                f"run `footnote reindex --collection {collection}`, or set FOOTNOTE_EMBEDDER={generation.embedder}"
            )
        return generation, embedder

    async def targets(self, collection: str) -> list[Target]:
        """Every generation that a new document is written to: the live one (made if need be) and those being built."""
        return await self._targets.do(collection, None)

    async def _read_targets(self, collection: str, asked: Sequence[None]) -> list[list[Target]]:
        first = await self.live(collection) or await self._first(await self.catalog.collection(collection))
        building = await self.catalog.generations(collection, states=("building",))
        return [[first, *[(each, await self.embedder(each.embedder)) for each in building]]] * len(asked)

    async def plan(self, collection: Collection, *, spec: str | None, chunking: Chunking | None = None) -> Plan:
        """Compare the live generation with what `spec` (None: the collection's own, or the setting) would give."""
        embedder = await self.embedder(spec or collection.embedder or self.default_spec)
        generation = await self.catalog.live_generation(collection.name)
        changes = []
        if generation is not None:
            if generation.fingerprint != embedder.fingerprint:
                changes.append(f"embedding model {generation.embedder} -> {embedder.spec}")
            elif generation.schema != schema_of(embedder):
                changes.append("lexical analysis")
            if chunking is not None and chunking != generation.chunking:
                changes.append(f"chunks of {generation.chunking} -> {chunking}")
        return Plan(collection.name, collection.documents, collection.chunks, embedder.spec, tuple(changes))

    async def begin(self, collection: Collection, *, spec: str | None, chunking: Chunking | None = None) -> Generation:
        """Begin, or find unfinished, the generation that a re-index of the collection builds."""
        embedder = await self.embedder(spec or collection.embedder or self.default_spec)
        live = await self.catalog.live_generation(collection.name)
        cut = chunking or (live.chunking if live else _chunking(collection))
        return await self._create(collection.name, embedder, cut, live=live is None)

    async def close(self) -> None:
        for task in self._embedders.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().close()

    async def _first(self, collection: Collection) -> tuple[Generation, Embedder]:
        embedder = await self.embedder(collection.embedder or self.default_spec)
        return await self._create(collection.name, embedder, _chunking(collection), live=True), embedder

    async def _create(self, name: str, embedder: Embedder, chunking: Chunking, *, live: bool) -> Generation:
        return await self.catalog.create_generation(
            name,
            embedder=embedder.spec,
            fingerprint=embedder.fingerprint,
            schema=schema_of(embedder),
            dimension=embedder.dimension,
            chunking=chunking,
            live=live,
        )


def schema_of(embedder: Embedder) -> str:
    """Names what rows of one store class share: whose vectors, of which length, and whose terms."""
    seed = f"{embedder.fingerprint}|{embedder.dimension}|{ANALYSIS_VERSION}"
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def _chunking(collection: Collection) -> Chunking:
    return Chunking(size=collection.chunk_size, overlap=collection.chunk_overlap, context=collection.chunk_context)
