"""The objects of an index in Weaviate: read, written and removed. What their versions mean is for the store above."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from weaviate.classes.config import ConsistencyLevel
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter as Where
from weaviate.classes.query import MetadataQuery, Sort
from weaviate.exceptions import (
    ObjectAlreadyExistsError,
    UnexpectedStatusCodeError,
    WeaviateInsertManyAllFailedError,
    WeaviateInvalidInputError,
)

from retrieval.errors import FootnoteError, StoreRejected, StoreUnavailable
from retrieval.stores.filters import kind_of_column
from retrieval.stores.rows import place_name
from retrieval.stores.weaviate_connection import SEARCH_SECONDS, WRITE_SECONDS, Connection, Session
from retrieval.stores.weaviate_errors import CURES, IndexMissing, is_missing, kind_of
from retrieval.stores.weaviate_rows import straight
from retrieval.stores.weaviate_schema import batches, chunk_class, column, framed, live_class, marker_uuid
from retrieval.types import Index

T = TypeVar("T")

MOST_RESULTS = 10_000
"""QUERY_MAXIMUM_RESULTS, Weaviate's default bound of one answer."""
INSERT_ATTEMPTS = 4
MARKERS_AT_ONCE = 500
OBJECTS_AT_ONCE = 1000
"""Of a walk through what is stored; with their vectors a few megabytes."""


@dataclass(frozen=True, slots=True)
class Marker:
    """Which version of a document is visible, and how many chunks it has."""

    live: str
    chunks: int
    switched: float
    """When it came to be visible, in seconds of the server's clock."""


class Objects:
    """Reads and writes over one connection. Of an index that does not exist they say `IndexMissing`, unless they use `ask`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def reading(self, name: str, index: Index) -> AsyncIterator[Any]:
        """The part of a class that belongs to an index, to read from.

        Read from one copy, whatever the level of writes: Weaviate searches one copy at any level, and what one copy holds fits
        together, which a mixture of two that differ does not (docs/decisions/0009).
        """
        async with self._connection.session(SEARCH_SECONDS) as session:
            yield part(session, name, index, ConsistencyLevel.ONE)

    @asynccontextmanager
    async def writing(self, name: str, index: Index) -> AsyncIterator[Any]:
        """The same to write to, or to read what a write builds on."""
        async with self._connection.session(WRITE_SECONDS) as session:
            yield part(session, name, index, self._connection.address.consistency)

    async def ask(self, ask: Callable[[], Awaitable[T]], missing: T) -> T:
        """What `ask` gives, `missing` if the index does not exist.

        Asked once more if the node went away meanwhile, since a new connection may work at once; and if there seemed to be
        no index, since a server that starts knows of none: an empty answer would pass for "nothing was found".
        """
        try:
            return await self._connection.asked_again(ask)
        except IndexMissing:
            await self._connection.require_ready()
        try:
            return await self._connection.asked_again(ask)
        except IndexMissing:
            return missing

    async def markers_if_any(self, index: Index, document_ids: Sequence[str]) -> dict[str, Marker | None]:
        return await self.ask(lambda: self.markers(index, document_ids), missing=dict.fromkeys(document_ids))

    async def markers(self, index: Index, document_ids: Iterable[str], *, newest: bool = False) -> dict[str, Marker | None]:
        """The marker of each document, None where it has none; the `newest` of its copies if a write builds on it."""
        reading = self.writing if newest else self.reading
        uuids = {marker_uuid(each): each for each in document_ids}
        markers: dict[str, Marker | None] = dict.fromkeys(uuids.values())
        whose = {uuid.bytes: each for uuid, each in uuids.items()}
        for group in grouped(list(uuids), MARKERS_AT_ONCE):
            async with reading(live_class(index), index) as live:
                these = Where.by_id().contains_any(group)
                when = MetadataQuery(last_update_time=True)
                found = await straight(live).fetch_objects(filters=these, limit=len(group), return_metadata=when)
            for row in found:
                if live := row.text("live"):
                    markers[whose[row.uuid]] = Marker(live, row.number("chunks"), row.updated)
        return markers

    async def page(self, index: Index, **query: Any) -> list[Any]:
        async def objects() -> list[Any]:
            async with self.reading(chunk_class(index), index) as chunks:
                return list((await chunks.query.fetch_objects(limit=OBJECTS_AT_ONCE, **query)).objects)

        return await self.ask(objects, missing=[])

    async def of_documents(self, index: Index, document_ids: Sequence[str], *, vectors: bool) -> AsyncIterator[Any]:
        """All objects of these documents with all that is stored of them, whatever their version."""
        mine = Where.by_property("document_id").contains_any([framed(each) for each in document_ids])
        where, by_id, is_full = mine, Sort.by_property("chunk_id"), True
        while is_full:
            found = await self.page(index, filters=where, sort=by_id, include_vector=vectors)
            # Two writes of one chunk have the same id: the last id of a full page comes again with the next, whole.
            is_full = len(found) == OBJECTS_AT_ONCE
            last = found[-1].properties.get("chunk_id") if is_full else None
            page = [item for item in found if not is_full or item.properties.get("chunk_id") != last]
            for item in page:
                yield item
            if not page or last is None:
                return
            where = mine & Where.by_property("chunk_id").greater_or_equal(last)

    async def insert(self, name: str, index: Index, objects: Sequence[DataObject[Any, Any]]) -> None:
        """Store objects in batches, and read the result of each; those that failed are tried again."""
        async with self._connection.session(WRITE_SECONDS) as session:
            most = session.message_bytes
        for batch in batches(objects, most):
            await self._insert_batch(name, index, batch)

    async def _insert_batch(self, name: str, index: Index, objects: list[DataObject[Any, Any]]) -> None:
        pause = 0.1
        for attempt in range(1, INSERT_ATTEMPTS + 1):
            async with self.writing(name, index) as part_:
                errors = await failures(part_, objects)
            if not errors:
                return
            message = next(iter(errors.values()))
            objects = [objects[position] for position in errors]
            kind = kind_of(message)
            if attempt == INSERT_ATTEMPTS or kind not in {None, StoreUnavailable}:
                raise refused(kind or StoreRejected, len(objects), index, message)
            await asyncio.sleep(pause)
            pause *= 3

    async def remove(self, index: Index, where: Any) -> None:
        """Delete all chunks that match; one call of Weaviate's deletes a bounded number."""
        matches = MOST_RESULTS
        while matches >= MOST_RESULTS:
            async with self.writing(chunk_class(index), index) as chunks:
                deleted = await chunks.data.delete_many(where=where)
            raise_for_failed(deleted)
            matches = deleted.matches

    async def add_columns(self, index: Index, wanted: Collection[str]) -> None:
        """Give the class the properties that the metadata needs; another writer may add the same ones meanwhile."""
        missing = set(wanted) - await self.columns(index) if wanted else set()
        if missing:
            async with self._connection.session(WRITE_SECONDS) as session:
                config = session.client.collections.use(chunk_class(index)).config
                for each in sorted(missing):
                    await tolerating_twins(config.add_property(column(kind_of_column(each), each)))

    async def columns(self, index: Index) -> set[str]:
        """The properties of the class now. Asked each time (a few milliseconds): another process may have dropped the class
        and made it anew, and Weaviate would guess a type for a property that it does not know."""
        async with self._connection.session() as session:
            config = await session.client.collections.use(chunk_class(index)).config.get(simple=True)
        return {prop.name for prop in config.properties}


def part(session: Session, name: str, index: Index, level: ConsistencyLevel) -> Any:
    return session.client.collections.use(name).with_tenant(place_name(index)).with_consistency_level(level)


def grouped(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


async def failures(part: Any, objects: Sequence[DataObject[Any, Any]]) -> dict[int, str]:
    """Store objects; the error of each that failed, by its place."""
    try:
        result = await part.data.insert_many(objects)
    except WeaviateInsertManyAllFailedError as exc:
        if is_missing(exc):
            raise
        return dict.fromkeys(range(len(objects)), str(exc))
    return {position: error.message for position, error in result.errors.items()}


def refused(kind: type[FootnoteError], count: int, index: Index, message: str) -> FootnoteError:
    return kind(f"Weaviate refused {count} objects of {place_name(index)}: {CURES.get(kind, 'see its message')} ({message})")


def raise_for_failed(deleted: Any) -> None:
    if deleted.failed:
        raise StoreUnavailable(f"Weaviate could not delete {deleted.failed} of {deleted.matches} objects; retry")


async def tolerating_twins(creation: Awaitable[Any]) -> None:
    """Create something, or find that another process has just created it."""
    try:
        await creation
    except (UnexpectedStatusCodeError, WeaviateInvalidInputError, ObjectAlreadyExistsError) as exc:
        if not any(sign in str(exc) for sign in ("already exists", "already in use")):
            raise
