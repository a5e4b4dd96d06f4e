"""Weaviate, the store for many: a collection of ours is a tenant, of one class per schema.

Weaviate has no transactions, so each write of a document has an id of its own (its *version*), and one marker object per
document names the version that is visible. A replace writes the new chunks, counts them, switches the marker by one write,
and only then removes the old chunks. A search asks the markers of what it found, drops the chunks of other versions, and
asks again if a marker may have been switched while it ran. So a reader sees all of the old chunks or all of the new ones;
what a crashed writer left is never seen, and goes with a later replace of the document.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from weaviate.classes.aggregate import Metrics
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter as Where
from weaviate.classes.query import MetadataQuery, Sort
from weaviate.classes.tenants import Tenant

from retrieval.digest import Digest
from retrieval.errors import FootnoteError, StoreIndexMissing, StoreRejected, StoreUnavailable
from retrieval.stores.filters import Node, metadata_columns, resolve, wanted_columns
from retrieval.stores.rows import check_dimension, check_vector, check_vectors, cosines, place_name, ranked
from retrieval.stores.weaviate_address import parse_address
from retrieval.stores.weaviate_connection import WRITE_SECONDS, Connection
from retrieval.stores.weaviate_errors import IndexMissing
from retrieval.stores.weaviate_objects import (
    MARKERS_AT_ONCE,
    MOST_RESULTS,
    Marker,
    Objects,
    grouped,
    raise_for_failed,
    tolerating_twins,
)
from retrieval.stores.weaviate_rows import straight
from retrieval.stores.weaviate_schema import (
    CHUNK_FIELDS,
    INDEX_RECORD,
    Found,
    chunk_class,
    chunk_class_settings,
    framed,
    live_class,
    live_class_settings,
    marker_uuid,
    sound_row,
    to_found,
    to_object,
    to_where,
    unframed,
)
from retrieval.types import NO_CANDIDATES, Candidates, Chunk, EmbeddedChunk, Filter, Holding, Index, Scores, Vector

T = TypeVar("T")

ALIAS = "Footnote"
CLASSES = ("Footnote_", "FootnoteLive_")
BM25_FACTOR = 2.2
"""k1 + 1, which Weaviate leaves out of its scores."""
ROUNDS = 8
"""How often a search is asked again while documents change under it."""
GRACE = 0.25
"""Seconds between switching a marker and deleting the old chunks: a search that began before still finds them."""
ABANDONED = 900.0
"""Seconds after which a version that never became visible is taken for a crashed writer's."""
LONG_AGO = 300.0
"""Seconds: more than the clocks of a cluster's nodes differ, or one is set back, or a write takes that is acknowledged."""
SEEN_MOST = 100_000
DOCUMENTS_AT_ONCE = 100


async def open_weaviate(url: str, *, api_key: str | None = None) -> WeaviateStore:
    """The store at `weaviate://host:8080?grpc=50051`, which need not be there yet: it is found as soon as it answers.

    `ConfigurationError` for a malformed URL, `StoreRejected` for what waiting does not mend: a wrong key, a version too old.
    """
    store = WeaviateStore(Connection(parse_address(url), api_key))
    try:
        with suppress(StoreUnavailable):
            await store.ping()
    except FootnoteError:
        await store.close()
        raise
    return store


class WeaviateStore:
    """A `VectorStore` on a Weaviate server."""

    def __init__(self, connection: Connection, *, long_ago: float = LONG_AGO) -> None:
        self._connection = connection
        self._long_ago = long_ago
        self._objects = Objects(connection)
        self._seen: dict[tuple[str, str], tuple[str | None, float]] = {}
        self._newest = 0.0
        """The latest time of a switch that was read, in seconds of the server's clock."""

    async def create(self, index: Index) -> None:
        # Asked before each write of a document, so what is there already costs two small requests.
        if await self._is_whole(index):
            return
        replicas = self._connection.address.replicas
        async with self._connection.session(WRITE_SECONDS) as session:
            classes = session.client.collections
            for name, settings in ((chunk_class(index), chunk_class_settings), (live_class(index), live_class_settings)):
                if not await classes.exists(name):
                    await tolerating_twins(classes.create(name, **settings(replicas)))
                await classes.use(name).tenants.create([Tenant(name=place_name(index))])
        # Last, for it says that all the rest is there.
        properties = {"chunks": 0, "dimension": index.dimension}
        async with self._objects.writing(live_class(index), index) as live:
            await tolerating_twins(live.data.insert(properties, uuid=INDEX_RECORD))

    async def _is_whole(self, index: Index) -> bool:
        """Whether the index has all its parts. `DimensionMismatch` if it was made for other vectors."""
        try:
            async with self._objects.reading(live_class(index), index) as live:
                record = await live.query.fetch_object_by_id(INDEX_RECORD)
            async with self._connection.session() as session:
                chunks = await session.client.collections.use(chunk_class(index)).tenants.exists(place_name(index))
        except IndexMissing:
            return False
        if record is not None:
            check_dimension(index, int(record.properties["dimension"]))
        return record is not None and bool(chunks)

    async def drop(self, index: Index) -> None:
        async with self._connection.session(WRITE_SECONDS) as session:
            client = session.client
            # The markers go first: without them nothing is visible, so a half-done drop reads as empty.
            for name in (live_class(index), chunk_class(index)):
                if await client.collections.exists(name):
                    await client.collections.use(name).tenants.remove([place_name(index)])
            alias = await client.alias.get(alias_name=ALIAS)
            if alias is not None and alias.collection == chunk_class(index):
                return
            for name in (chunk_class(index), live_class(index)):
                if await client.collections.exists(name) and not await client.collections.use(name).tenants.get():
                    await client.collections.delete(name)

    async def publish(self, index: Index) -> None:
        target = chunk_class(index)
        async with self._connection.session(WRITE_SECONDS) as session:
            client = session.client
            if not await client.collections.exists(target):
                raise StoreRejected(f"the class {target} does not exist; create the index before publishing it")
            alias = await client.alias.get(alias_name=ALIAS)
            if alias is None:
                await tolerating_twins(client.alias.create(alias_name=ALIAS, target_collection=target))
                alias = await client.alias.get(alias_name=ALIAS)
            if alias is None or alias.collection != target:
                await client.alias.update(alias_name=ALIAS, new_target_collection=target)

    async def replace(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
        check_vectors(index, documents)
        if not documents:
            return
        try:
            before = await self._objects.markers(index, documents, newest=True)
            version = new_version()
            await self._write(index, documents, version)
            await self._switch(index, documents, version)
            await self._remove_old(index, before)
        except IndexMissing as exc:
            if any(documents.values()):
                name = place_name(index)
                raise StoreIndexMissing(f"the index {name} does not exist; create it before writing to it") from exc

    async def nearest(self, index: Index, vector: Vector, limit: int, filter: Filter | None = None) -> Candidates:
        check_vector(index, vector)
        found = await self._search(
            index,
            limit,
            filter,
            lambda query, where, most: query.near_vector(
                vector.tolist(), limit=most, filters=where, include_vector=True, return_properties=CHUNK_FIELDS
            ),
        )
        return candidates(found, cosines(np.stack([each.vector for each in found]), vector), limit) if found else NO_CANDIDATES

    async def keyword(
        self,
        index: Index,
        terms: Sequence[str],
        limit: int,
        filter: Filter | None = None,
    ) -> Candidates:
        if not terms:
            return NO_CANDIDATES
        found = await self._search(
            index,
            limit,
            filter,
            lambda query, where, most: query.bm25(
                " ".join(terms),
                query_properties=["terms"],
                limit=most,
                filters=where,
                include_vector=True,
                return_metadata=MetadataQuery(score=True),
                return_properties=CHUNK_FIELDS,
            ),
        )
        return candidates(found, BM25_FACTOR * np.array([each.score for each in found]), limit)

    async def scan(
        self, index: Index, *, document_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> list[Chunk]:
        parts = [] if document_id is None else [Where.by_property("document_id").equal(framed(document_id))]
        parts += [] if after is None else [Where.by_property("chunk_id").greater_than(framed(after))]
        where = Where.all_of(parts) if parts else None
        found = await self._search(
            index,
            limit,
            None,
            lambda query, _, most: query.fetch_objects(
                limit=most, filters=where, sort=Sort.by_property("chunk_id"), return_properties=CHUNK_FIELDS
            ),
        )
        return [each.read() for each in found]

    async def count(self, index: Index, document_id: str | None = None) -> int:
        return await self._objects.ask(lambda: self._count(index, document_id), missing=0)

    async def _count(self, index: Index, document_id: str | None) -> int:
        if document_id is not None:
            marker = (await self._objects.markers(index, [document_id]))[document_id]
            return marker.chunks if marker else 0
        async with self._objects.reading(live_class(index), index) as live:
            total = await live.aggregate.over_all(return_metrics=Metrics("chunks").integer(sum_=True))
            return int(total.properties["chunks"].sum_ or 0) if "chunks" in total.properties else 0

    async def size(self, index: Index) -> int:
        async def objects() -> int:
            async with self._objects.reading(chunk_class(index), index) as chunks:
                return int((await chunks.aggregate.over_all(total_count=True)).total_count or 0)

        return await self._objects.ask(objects, missing=0)

    async def documents(self, index: Index) -> AsyncIterator[set[str]]:
        after = None
        while True:
            page = await self._objects.page(index, after=after, return_properties=["document_id"])
            if not page:
                return
            yield {unframed(item.properties["document_id"]) for item in page if item.properties.get("document_id")}
            after = page[-1].uuid

    async def holdings(self, index: Index, document_ids: Sequence[str]) -> dict[str, Holding]:
        held: dict[str, Holding] = {}
        for group in grouped(document_ids, DOCUMENTS_AT_ONCE):
            held |= await self._holdings(index, group)
        return held

    async def clean(self, index: Index, document_ids: Sequence[str]) -> None:
        for group in grouped(document_ids, DOCUMENTS_AT_ONCE):
            markers = await self._objects.markers_if_any(index, group)
            found = self._objects.of_documents(index, group, vectors=False)
            gone = [item.uuid async for item in found if is_left_over(item, markers)]
            for uuids in grouped(gone, MARKERS_AT_ONCE):
                await self._objects.remove(index, Where.by_id().contains_any(uuids))

    async def ping(self) -> str:
        async with self._connection.session() as session:
            return f"Weaviate {(await session.client.get_meta())['version']}"

    async def problems(self) -> list[str]:
        found = []
        async with self._connection.session() as session:
            classes = await session.client.collections.list_all(simple=False)
        wanted = self._connection.address.replicas
        ours = {name: each.replication_config.factor for name, each in classes.items() if name.startswith(CLASSES)}
        others = {name: factor for name, factor in ours.items() if wanted is not None and factor != wanted}
        if others:
            name, factor = min(others.items())
            found.append(
                f"{len(others)} classes do not keep replicas={wanted} copies (first {name}, which keeps {factor}): "
                "Weaviate keeps what a class was made with, so set replicas to that, or change the class by its replication API"
            )
        return found + await self._connection.silent()

    async def close(self) -> None:
        await self._connection.close()

    async def _search(
        self, index: Index, limit: int, filter_: Filter | None, ask: Callable[[Any, Any, int], Awaitable[Any]]
    ) -> list[Found]:
        """What `ask(query, where, limit)` finds, as far as it is visible; nothing if the index does not exist."""
        return await self._objects.ask(lambda: self._search_once(index, limit, filter_, ask), missing=[]) if limit > 0 else []

    async def _search_once(
        self, index: Index, limit: int, filter_: Filter | None, ask: Callable[[Any, Any, int], Awaitable[Any]]
    ) -> list[Found]:
        node = True if filter_ is None else await self._resolved(index, filter_)
        if node is False:
            return []
        where = None if node is True else to_where(node)

        async def found(most: int) -> list[Found]:
            async with self._objects.reading(chunk_class(index), index) as chunks:
                return [to_found(row) for row in await ask(straight(chunks), where, most)]

        return await self._visible(index, found, limit)

    async def _visible(self, index: Index, search: Callable[[int], Awaitable[list[Found]]], limit: int) -> list[Found]:
        """The first `limit` visible chunks of a search, asked again while they are in doubt.

        In doubt are a document whose marker may have been switched after the search began, for then some of its new
        chunks may be missing; and a full answer of which some were hidden, for they took the place of others.
        """
        most = min(limit, MOST_RESULTS)
        kept: list[Found] = []
        for _ in range(ROUNDS):
            started, newest = time.monotonic(), self._newest
            found = await search(most)
            markers = await self._objects.markers(index, {each.document_id for each in found})
            kept = [each for each in found if is_live(each, markers)]
            settled = self._settled(index, markers, started, newest)
            complete = len(kept) == len(found) or len(kept) >= limit or len(found) < most
            if settled and complete:
                break
            if not complete:
                most = min(2 * most, MOST_RESULTS)
        return kept[:limit]

    def _settled(self, index: Index, markers: Mapping[str, Marker | None], started: float, newest: float) -> bool:
        """Whether the search, which began at `started`, ran after each marker was switched.

        So it did where the marker was seen in this state before, and where we had read of a switch, `newest`, long after
        this one. Compares our own readings by our own clock, and the server's by its own: a writer's may be wrong.
        """
        if len(self._seen) > SEEN_MOST:
            self._seen.clear()
        self._newest = max(self._newest, *(marker.switched for marker in markers.values() if marker), 0.0)
        now, place = time.monotonic(), place_name(index)
        settled = True
        for document_id, marker in markers.items():
            if marker is not None and marker.switched < newest - self._long_ago:
                continue
            key = (place, document_id)
            live = marker.live if marker else None
            seen = self._seen.get(key)
            if seen is None or seen[0] != live:
                self._seen[key] = (live, now)
                settled = False
            elif seen[1] > started:
                settled = False
        return settled

    async def _holdings(self, index: Index, document_ids: Sequence[str]) -> dict[str, Holding]:
        """The count is the marker's and the digest that of the objects, so that neither can be wrong alone."""
        markers = await self._objects.markers_if_any(index, document_ids)
        digests = {each: Digest() for each in document_ids}
        left_over = dict.fromkeys(document_ids, 0)
        async for item in self._objects.of_documents(index, document_ids, vectors=True):
            document_id = unframed(item.properties["document_id"])
            marker = markers[document_id]
            left_over[document_id] += is_left_over(item, markers)
            if marker and marker.live == unframed(item.properties.get("version")) and (row := sound_row(item)):
                digests[document_id].add(row)
        counts = {each: marker.chunks if marker else 0 for each, marker in markers.items()}
        return {
            each: Holding(counts[each], digest.count, digest.hexdigest(), left_over[each]) for each, digest in digests.items()
        }

    async def _write(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]], version: str) -> None:
        """Store all chunks under a version that nobody sees yet; on failure take them away again."""
        rows = [row for chunks in documents.values() for row in chunks]
        if not rows:
            return
        await self._objects.add_columns(index, {name for row in rows for name in metadata_columns(row.chunk.metadata)})
        written = Where.by_property("version").equal(framed(version))
        try:
            objects = [to_object(row, version) for row in rows]
            await self._objects.insert(chunk_class(index), index, objects)
            # Weaviate 1.39 writes out the log of its vector index before a batch's own vectors are in it: killed now, it would
            # never find them again. The next write of any kind takes them along; an unchanged object is the cheapest.
            await self._objects.insert(chunk_class(index), index, objects[-1:])
            async with self._objects.writing(chunk_class(index), index) as chunks:
                stored = (await chunks.aggregate.over_all(filters=written, total_count=True)).total_count
            if stored != len(rows):
                raise StoreUnavailable(f"Weaviate stored {stored} of {len(rows)} chunks and reported no error; retry")
        except FootnoteError:
            with suppress(FootnoteError):  # they are invisible, and a later replace removes them
                await self._objects.remove(index, written)
            raise

    async def _switch(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]], version: str) -> None:
        """Make the version visible: one write per document, which readers see whole or not at all."""
        markers = [
            DataObject(uuid=marker_uuid(document_id), properties={"live": version, "chunks": len(rows)})
            for document_id, rows in documents.items()
            if rows
        ]
        await self._objects.insert(live_class(index), index, markers)
        gone = [marker_uuid(document_id) for document_id, rows in documents.items() if not rows]
        for group in grouped(gone, MARKERS_AT_ONCE):
            async with self._objects.writing(live_class(index), index) as live:
                raise_for_failed(await live.data.delete_many(where=Where.by_id().contains_any(group)))

    async def _remove_old(self, index: Index, before: Mapping[str, Marker | None]) -> None:
        """Delete the versions that were visible before, and what crashed writers left of these documents.

        A younger version that is not visible may belong to a writer at work, which will switch to it: it stays.
        """
        if any(before.values()):
            await asyncio.sleep(GRACE)
        for document_id, marker in before.items():
            if marker is not None:
                mine = Where.by_property("document_id").equal(framed(document_id))
                await self._objects.remove(index, mine & Where.by_property("version").equal(framed(marker.live)))
        abandoned = Where.by_property("version").less_than(framed(version_at(time.time() - ABANDONED)))
        for group in grouped([framed(each) for each in before], MARKERS_AT_ONCE):
            await self._objects.remove(index, Where.by_property("document_id").contains_any(group) & abandoned)

    async def _resolved(self, index: Index, filter_: Filter) -> Node | bool:
        known = await self._objects.columns(index) if wanted_columns(filter_) else set()
        return resolve(filter_, known)


def new_version() -> str:
    """An id for one write; ids sort by time."""
    return f"{version_at(time.time())}-{secrets.token_hex(8)}"


def version_at(seconds: float) -> str:
    return f"{int(seconds * 1e6):016x}"


def candidates(found: Sequence[Found], scores: Scores, limit: int) -> Candidates:
    """The best of what was found."""
    places = ranked([each.chunk_id for each in found], scores, limit)
    best = [found[at] for at in places.tolist()]
    return Candidates(
        [each.chunk_id for each in best],
        scores[places],
        lambda some: np.stack([best[at].vector for at in some.tolist()]),
        lambda at: best[at].read(),
    )


def is_live(found: Found, markers: Mapping[str, Marker | None]) -> bool:
    marker = markers[found.document_id]
    return marker is not None and marker.live == found.version


def is_left_over(item: Any, markers: Mapping[str, Marker | None]) -> bool:
    """Whether an object is not visible and older than what a writer at work may still switch to."""
    version = unframed(item.properties.get("version"))
    marker = markers[unframed(item.properties["document_id"])]
    return version < version_at(time.time() - ABANDONED) and (marker is None or marker.live != version)
