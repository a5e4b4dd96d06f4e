"""The source of truth for collections, index generations and documents. Jobs are in `ingest.jobs`, in the same database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from time import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.accepting import accept_all
from ingest.chunk import Chunking
from ingest.database import Database, new_id
from ingest.documents import (
    Exist,
    Room,
    below,
    failed_below,
    lock_blobs,
    remove,
    require_originals,
    room_below,
    usage,
)
from ingest.records import (
    Accepted,
    Collection,
    Document,
    Generation,
    Quota,
    Upload,
    check_collection_name,
    document_of,
    generation_of,
)
from ingest.schema import collections, documents, entries, generations, jobs, metadata_keys, requests, writes
from retrieval.errors import CollectionNotFound, DocumentNotFound, IdempotencyConflict
from retrieval.types import Index

BLOBS_AT_ONCE = 500
RETIRED_SECONDS = 60
"""How long a retired generation stays in the store, for the queries that had begun on it."""
TOKEN_SECONDS = 2 * 24 * 3600
"""How long we remember what a consistency token covers; an older one is taken for settled."""
NO_QUOTA = Quota()
# Asked with each question, so it is made once.
_LIVE = (
    sa.select(
        collections.c.name.label("found"),
        collections.c.embedder.is_not(None).label("pinned"),
        collections.c.revision,
        generations,
    )
    .select_from(collections.outerjoin(generations, generations.c.id == collections.c.live_generation))
    .where(collections.c.name == sa.bindparam("collection"))
)


class Catalog:
    """Collections, generations and documents; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- collections and generations -------------------------------------------------------------------------------------

    async def create_collection(self, name: str, *, chunking: Chunking, quota: Quota = NO_QUOTA) -> Collection:
        """Create a collection, or find it; its first generation is made by the first ingest."""
        check_collection_name(name)
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{name}")
            return await self._ensure_collection(connection, name, chunking, quota)

    async def set_quota(self, name: str, **limits: int) -> Collection:
        """Change `max_documents` or `max_bytes`, also to less than the collection holds. Raises `CollectionNotFound`."""
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{name}")
            if limits:
                await connection.execute(sa.update(collections).where(collections.c.name == name).values(**limits))
        return await self.collection(name)

    async def usage(self, names: Sequence[str]) -> dict[str, Room]:
        """How many documents and bytes count towards each collection's quota."""
        async with self.database.reading() as connection:
            return {name: await usage(connection, name) for name in names}

    async def collection(self, name: str) -> Collection:
        """Raises `CollectionNotFound`."""
        found = await self._collections(sa.and_(collections.c.name == name), limit=1)
        if not found:
            raise _no_collection(name)
        return found[0]

    async def has_collection(self, name: str) -> bool:
        return await self.database.first(sa.select(collections.c.name).where(collections.c.name == name)) is not None

    async def list_collections(self, *, limit: int, cursor: str | None = None) -> list[Collection]:
        return await self._collections(collections.c.name > (cursor or ""), limit=limit)

    async def live_generation(self, collection: str) -> Generation | None:
        """What readers of the collection search; None while nothing was ever indexed. Raises `CollectionNotFound`."""
        row = await self.database.first(_LIVE, {"collection": collection})
        if row is None:
            raise _no_collection(collection)
        return generation_of(row) if row["id"] else None

    async def revise(self, index: Index) -> None:
        """Note that what readers of the index find may have changed; a no-op where it is not the one that they read."""
        read = sa.and_(collections.c.name == index.collection, collections.c.live_generation == index.generation)
        revised = sa.update(collections).where(read).values(revision=collections.c.revision + 1)
        async with self.database.writing() as connection:
            await connection.execute(revised)

    async def generations(self, collection: str, *, states: Sequence[str] = ("building", "live")) -> list[Generation]:
        query = (
            sa.select(generations)
            .where(generations.c.collection == collection, generations.c.state.in_(states))
            .order_by(generations.c.id)
        )
        return [generation_of(row) for row in await self.database.rows(query)]

    async def create_generation(
        self, collection: str, *, embedder: str, fingerprint: str, schema: str, dimension: int, chunking: Chunking, live: bool
    ) -> Generation:
        """Begin a generation, live (a collection's first) or building; an equal unfinished one is found again."""
        wanted = {
            "embedder": embedder,
            "fingerprint": fingerprint,
            "schema": schema,
            "dimension": dimension,
            "chunk_size": chunking.size,
            "chunk_overlap": chunking.overlap,
            "chunk_context": chunking.context,
        }
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{collection}")
            row = await self._row(connection, sa.select(collections).where(collections.c.name == collection))
            if row is None:
                raise _no_collection(collection)
            if live and row["live_generation"]:
                return generation_of(
                    await self._one(connection, sa.select(generations).where(generations.c.id == row["live_generation"]))
                )
            same = sa.select(generations).where(
                generations.c.collection == collection,
                generations.c.state == "building",
                *(generations.c[k] == v for k, v in wanted.items()),
            )
            if (unfinished := await self._row(connection, same)) is not None:
                return generation_of(unfinished)
            values = {
                "id": new_id("gen"),
                "collection": collection,
                "state": "live" if live else "building",
                "languages": [],
                "created_at": time(),
                **wanted,
            }
            await connection.execute(sa.insert(generations).values(**values))
            if live:
                await connection.execute(
                    sa.update(collections).where(collections.c.name == collection).values(live_generation=values["id"])
                )
        return generation_of(values)

    async def switch(self, generation: Generation, *, embedder: str | None) -> list[str]:
        """Make a building generation live if it holds every document that the live one holds; else the ids it still lacks.

        `embedder` is the collection's own embedder from then on (None: follow the setting).
        """
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{generation.collection}")
            missing = await self._missing(connection, generation, limit=100)
            if missing:
                return missing
            mine = generations.c.collection == generation.collection
            await connection.execute(
                sa.update(generations)
                .where(mine, generations.c.state != "retired", generations.c.id != generation.id)
                .values(state="retired", retired_at=time())
            )
            await connection.execute(sa.update(generations).where(generations.c.id == generation.id).values(state="live"))
            values = {
                "live_generation": generation.id,
                "embedder": embedder,
                "chunk_size": generation.chunk_size,
                "chunk_overlap": generation.chunk_overlap,
                "chunk_context": generation.chunk_context,
            }
            await connection.execute(sa.update(collections).where(collections.c.name == generation.collection).values(**values))
        return []

    async def missing(self, generation: Generation, *, limit: int = 100) -> list[str]:
        """Ids of documents that the live generation holds in a version that this one does not."""
        async with self.database.reading() as connection:
            return await self._missing(connection, generation, limit=limit)

    async def retired(self) -> list[Generation]:
        """Generations that no query can still be reading."""
        query = sa.select(generations).where(
            generations.c.state == "retired", generations.c.retired_at < time() - RETIRED_SECONDS
        )
        return [generation_of(row) for row in await self.database.rows(query)]

    async def forget_generation(self, generation_id: str) -> None:
        async with self.database.writing() as connection:
            await connection.execute(sa.delete(entries).where(entries.c.generation_id == generation_id))
            await connection.execute(sa.delete(generations).where(generations.c.id == generation_id))

    async def delete_collection(self, name: str) -> tuple[list[Generation], list[str]]:
        """Forget a collection and all in it. Gives its generations, now retired, and the hashes of its originals and texts."""
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{name}")
            mine = sa.select(generations).where(generations.c.collection == name, generations.c.state != "retired")
            gone = [generation_of(row) for row in (await connection.execute(mine)).mappings()]
            result = await connection.execute(sa.delete(collections).where(collections.c.name == name))
            if not result.rowcount:
                raise _no_collection(name)
            ids = [generation.id for generation in gone]
            # Jobs before documents, as those who claim and settle lock them.
            await connection.execute(sa.delete(jobs).where(jobs.c.collection == name))
            blobs = set(
                (await connection.execute(sa.select(documents.c.sha256).where(documents.c.collection == name))).scalars()
            )
            held = (
                await connection.execute(
                    sa.select(entries.c.sha256, entries.c.text_key).where(entries.c.generation_id.in_(ids))
                )
            ).all()
            blobs.update(key for row in held for key in row)
            await connection.execute(sa.delete(entries).where(entries.c.generation_id.in_(ids)))
            await connection.execute(
                sa.update(generations).where(generations.c.id.in_(ids)).values(state="retired", retired_at=time())
            )
            for table in (documents, metadata_keys):
                await connection.execute(sa.delete(table).where(table.c.collection == name))
        return gone, sorted(blobs)

    # --- documents ---------------------------------------------------------------------------------------------------------

    async def accept(
        self,
        collection: str,
        uploads: Sequence[Upload],
        *,
        chunking: Chunking,
        exist: Exist,
        request: tuple[str, str] | None = None,
        quota: Quota = NO_QUOTA,
    ) -> list[Accepted]:
        """Write the documents and their jobs in one transaction; from here on they cannot be lost.

        `chunking` and `quota` are those of the collection if it is new. What the quota has no room for is refused, and the
        others are not; if it has room for none, this raises `QuotaExceeded`.

        `request` is an idempotency key with the request's fingerprint: the same pair gives the first answer again, the
        same key with another fingerprint raises `IdempotencyConflict`. Raises `OriginalVanished`.
        """
        check_collection_name(collection)
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{collection}")
            if (
                request
                and (earlier := await self._row(connection, sa.select(requests).where(requests.c.key == request[0])))
                is not None
            ):
                if earlier["fingerprint"] != request[1]:
                    raise IdempotencyConflict("this Idempotency-Key was used for another request; use a new key")
                return [Accepted(**item) for item in earlier["response"]]
            await self._ensure_collection(connection, collection, chunking, quota)
            accepted = await accept_all(connection, collection, uploads)
            await require_originals(self.database, connection, uploads, exist)
            if request:
                response = [asdict(each) for each in accepted]
                await connection.execute(
                    sa.insert(requests).values(key=request[0], fingerprint=request[1], response=response, created_at=time())
                )
        return accepted

    async def is_pending(self, token: str) -> bool:
        """Whether a document of this write, or one that came out of it, is not settled in its newest version."""
        tree = sa.select(writes.c.document_id.label("id")).where(writes.c.token == token).cte("tree", recursive=True)
        tree = tree.union(sa.select(documents.c.id).join(tree, documents.c.parent_id == tree.c.id))
        pending = sa.select(jobs.c.id).join(tree, jobs.c.document_id == tree.c.id)
        unsettled = sa.and_(jobs.c.kind == "ingest", jobs.c.state.in_(["queued", "running"]))
        return await self.database.first(pending.where(unsettled).limit(1)) is not None

    async def forget_writes(self) -> None:
        """Tokens of long ago need no rows."""
        oldest = new_id("w", at=time() - TOKEN_SECONDS)
        async with self.database.writing() as connection:
            await connection.execute(sa.delete(writes).where(writes.c.token < oldest))

    async def document(self, document_id: str) -> Document:
        """Raises `DocumentNotFound`."""
        found = await self._documents(documents.c.id == document_id, limit=1)
        if not found:
            raise _no_document(document_id)
        return found[0]

    async def list_documents(
        self,
        *,
        collection: str | None = None,
        status: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        ids: Sequence[str] | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> list[Document]:
        """Newest first; `cursor` is the last id of the page before."""
        wanted = {"collection": collection, "status": status, "name": name, "parent_id": parent}
        where = [documents.c[column] == value for column, value in wanted.items() if value is not None]
        if ids is not None:
            where.append(documents.c.id.in_(ids))
        if cursor is not None:
            where.append(documents.c.id < cursor)
        return await self._documents(sa.and_(sa.true(), *where), limit=limit)

    async def delete_document(self, document_id: str) -> str:
        """Mark a document as going, with all that came out of it, and queue their removal; gives the document's own job.

        Asking again gives the same job.
        """
        found = sa.select(documents).where(documents.c.id == document_id)
        async with self.database.writing() as connection:
            row = await self._row(connection, found)
            if row is None:
                raise _no_document(document_id)
            await self.database.lock(connection, f"collection:{row['collection']}")  # no part may be added meanwhile
            await remove(connection, [document_id])
            row = await self._row(connection, found)
        if row is None:  # its deletion ended while we waited for the lock
            raise _no_document(document_id)
        return str(row["job_id"])

    async def parts_below(self, document_id: str) -> list[str]:
        """Ids of all documents that came out of this one, at any depth."""
        ids: list[str] = await self.database.scalars(sa.select(below([document_id]).c.id))
        return ids

    async def room_for_parts(self, document_id: str) -> Room:
        """How many documents and bytes may come out of this one; it counts again when they are settled."""
        async with self.database.reading() as connection:
            return await room_below(connection, document_id)

    async def live_source(self, document_id: str) -> dict[str, Any] | None:
        """The version of a document that readers see: id, collection, name, version, sha256, media_type, metadata; or None."""
        joined = documents.join(collections, collections.c.name == documents.c.collection).join(
            entries, sa.and_(entries.c.document_id == documents.c.id, entries.c.generation_id == collections.c.live_generation)
        )
        held = (entries.c.version, entries.c.sha256, entries.c.media_type)
        own = (documents.c.id, documents.c.collection, documents.c.name, documents.c.metadata)
        query = sa.select(*own, *held).select_from(joined)
        row = await self.database.first(query.where(documents.c.id == document_id, documents.c.status != "deleting"))
        return dict(row) if row else None

    async def blobs_of(self, document_id: str) -> set[str]:
        """Hashes of the originals and texts that the indexes refer to for a document."""
        query = sa.select(entries.c.sha256, entries.c.text_key).where(entries.c.document_id == document_id)
        return {key for row in await self.database.rows(query) for key in row.values()}

    async def remove_blobs(self, hashes: Sequence[str], remove: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """Call `remove` with those of these bytes that nothing refers to, while nobody can begin to."""
        rest = sorted(set(hashes))
        while some := rest[:BLOBS_AT_ONCE]:
            rest = rest[BLOBS_AT_ONCE:]
            async with self.database.writing() as connection:
                await lock_blobs(self.database, connection, some)
                columns = (documents.c.sha256, entries.c.sha256, entries.c.text_key)
                used = sa.union(*(sa.select(column).where(column.in_(some)) for column in columns))
                found = set((await connection.execute(used)).scalars())
                if unused := [sha256 for sha256 in some if sha256 not in found]:
                    await remove(unused)

    async def metadata_types(self, collection: str) -> dict[str, set[str]]:
        """Which types each metadata key has had in a collection: `string`, `number`, `bool`, `list`."""
        query = sa.select(metadata_keys.c.key, metadata_keys.c.type).where(metadata_keys.c.collection == collection)
        known: dict[str, set[str]] = {}
        for row in await self.database.rows(query):
            known.setdefault(row["key"], set()).add(row["type"])
        return known

    # --- inside a transaction ---------------------------------------------------------------------------------------------

    async def _ensure_collection(self, connection: AsyncConnection, name: str, chunking: Chunking, quota: Quota) -> Collection:
        row = await self._row(connection, sa.select(collections).where(collections.c.name == name))
        if row is None:
            row = {
                "name": name,
                "live_generation": None,
                "embedder": None,
                "chunk_size": chunking.size,
                "chunk_overlap": chunking.overlap,
                "chunk_context": chunking.context,
                "max_documents": quota.documents,
                "max_bytes": quota.bytes,
                "created_at": time(),
            }
            await connection.execute(sa.insert(collections).values(**row))
        return Collection(**row)

    async def _missing(self, connection: AsyncConnection, generation: Generation, *, limit: int) -> list[str]:
        live, new = entries.alias("live"), entries.alias("new")
        joined = (
            documents.join(collections, collections.c.name == documents.c.collection)
            .join(live, sa.and_(live.c.document_id == documents.c.id, live.c.generation_id == collections.c.live_generation))
            .outerjoin(new, sa.and_(new.c.document_id == documents.c.id, new.c.generation_id == generation.id))
        )
        lacks = sa.or_(new.c.version.is_(None), new.c.version < live.c.version)
        query = (
            sa.select(documents.c.id)
            .select_from(joined)
            .where(documents.c.collection == generation.collection, documents.c.status != "deleting", lacks)
        )
        return list((await connection.execute(query.order_by(documents.c.id).limit(limit))).scalars())

    async def _collections(self, where: sa.ColumnElement[bool], *, limit: int) -> list[Collection]:
        found = sa.select(collections, *_held()).where(where).order_by(collections.c.name).limit(limit)
        return [Collection(**row) for row in await self.database.rows(found)]

    async def _documents(self, where: sa.ColumnElement[bool], *, limit: int) -> list[Document]:
        joined = documents.outerjoin(collections, collections.c.name == documents.c.collection).outerjoin(
            entries, sa.and_(entries.c.document_id == documents.c.id, entries.c.generation_id == collections.c.live_generation)
        )
        held = (
            entries.c.version.label("live_version"),
            sa.func.coalesce(entries.c.chunks, 0).label("chunks"),
            entries.c.text_key,
        )
        query = sa.select(documents, *held).select_from(joined).where(where).order_by(documents.c.id.desc()).limit(limit)
        rows = await self.database.rows(query)
        holders = [row["id"] for row in rows if (row["receipt"] or {}).get("parts")]
        failed = dict[str, int]()
        if holders:
            async with self.database.reading() as connection:
                failed = await failed_below(connection, holders)
        return [document_of({**row, "failed_parts": failed.get(row["id"], 0)}) for row in rows]

    @staticmethod
    async def _row(connection: AsyncConnection, query: Any) -> dict[str, Any] | None:
        row = (await connection.execute(query)).mappings().first()
        return dict(row) if row is not None else None

    async def _one(self, connection: AsyncConnection, query: Any) -> dict[str, Any]:
        row = await self._row(connection, query)
        if row is None:
            raise LookupError("the catalog lacks a row that another row names")
        return row


def _held() -> tuple[sa.Label[int], sa.Label[int]]:
    """What the live index of a collection holds: counted for the collections that are asked for, and for no others."""
    live = entries.c.generation_id == collections.c.live_generation
    chunks = sa.select(sa.func.coalesce(sa.func.sum(entries.c.chunks), 0)).where(live)
    documents = sa.select(sa.func.count()).select_from(entries).where(live)
    return documents.scalar_subquery().label("documents"), chunks.scalar_subquery().label("chunks")


def _no_collection(name: str) -> CollectionNotFound:
    return CollectionNotFound(
        f"there is no collection {name!r}; `footnote collections` or GET /collections lists them, and the first ingest into "
        "one creates it"
    )


def _no_document(document_id: str) -> DocumentNotFound:
    return DocumentNotFound(f"there is no document {document_id!r}; `footnote documents` or GET /documents lists them")
