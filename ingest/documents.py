"""What a transaction of the catalog or of the job queue does to documents and to the documents that came out of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.database import Database, new_id, note_queued
from ingest.records import Entry, Upload, is_same, new_job, part_key, status_when_whole
from ingest.schema import collections, documents, entries, generations, jobs, passes
from retrieval.errors import FootnoteError

SUPERSEDED = {"code": "superseded", "detail": "a newer version or a deletion took its place", "retryable": False}
MAX_DEPTH = 4
"""An archive holds a mailbox, it a message, this a forwarded message, and that an attachment; nothing deeper is read."""
MAX_PARTS = 10_000
"""How many documents may come out of one upload, at all depths together."""
UNLIMITED = 2**62
MAX_PART_BYTES = 2 * 1024**3
"""How many bytes these may have together."""
_IDS_AT_ONCE = 10_000
"""PostgreSQL takes 32,767 parameters in one statement."""


@dataclass(slots=True)
class Room:
    """What a collection may still take, or what may still come out of a document."""

    documents: int
    bytes: int

    def take(self, documents: int, bytes: int) -> bool:
        """Use up so much, if there is room for it; what needs none has it always."""
        if documents > max(0, self.documents) or bytes > max(0, self.bytes):
            return False
        self.documents -= documents
        self.bytes -= bytes
        return True

    def fitting(self, parts: Sequence[Upload]) -> int:
        """For how many of the first parts there is room."""
        totals = accumulate(part.size for part in parts[: self.documents])
        return sum(1 for total in totals if total <= self.bytes)


Exist = Callable[[Collection[str]], Awaitable[bool]]
"""Tells whether the bytes of all these hashes are stored."""


async def taken_for_granted(_hashes: Collection[str]) -> bool:
    """Where nothing was stored, nothing need be looked for."""
    return True


class OriginalVanished(FootnoteError):
    """A deletion removed the same bytes after they were stored and before a document named them: put them again."""

    code = "original_vanished"
    retryable = True


def below(document_ids: Sequence[str] | sa.Select[tuple[str]]) -> sa.CTE:
    """A query's table with the `id` of every document that came out of these, at any depth."""
    first = sa.select(documents.c.id).where(documents.c.parent_id.in_(document_ids))
    tree = first.cte("below", recursive=True)
    return tree.union_all(sa.select(documents.c.id).join(tree, documents.c.parent_id == tree.c.id))


async def failed_below(connection: AsyncConnection, document_ids: Sequence[str]) -> dict[str, int]:
    """Of those of these documents out of which failed ones came, at any depth: how many."""
    columns = (documents.c.id, documents.c.status)
    first = sa.select(documents.c.parent_id.label("root"), *columns).where(documents.c.parent_id.in_(document_ids))
    tree = first.cte("tree", recursive=True)
    tree = tree.union_all(sa.select(tree.c.root, *columns).join(tree, documents.c.parent_id == tree.c.id))
    counts = sa.select(tree.c.root, sa.func.count()).where(tree.c.status == "failed").group_by(tree.c.root)
    return {row[0]: row[1] for row in await connection.execute(counts)}


async def room_below(connection: AsyncConnection, document_id: str) -> Room:
    """None if the document lies too deep, else what its upload and its collection's quota have not used up.

    What came out of it before is replaced.
    """
    root, depth = document_id, 0
    while parent := (await connection.execute(sa.select(documents.c.parent_id).where(documents.c.id == root))).scalar():
        root, depth = parent, depth + 1
    if depth >= MAX_DEPTH:
        return Room(0, 0)
    used, replaced = await _used_below(connection, root), await _used_below(connection, document_id)
    collection = (await connection.execute(sa.select(documents.c.collection).where(documents.c.id == root))).scalar()
    left = await room_in(connection, str(collection))
    return Room(
        max(0, min(MAX_PARTS - used.documents, left.documents) + replaced.documents),
        max(0, min(MAX_PART_BYTES - used.bytes, left.bytes) + replaced.bytes),
    )


async def room_in(connection: AsyncConnection, collection: str) -> Room:
    """What a collection's quota has left; what is being deleted counts no more. It may be negative, after a cut."""
    found = sa.select(collections.c.max_documents, collections.c.max_bytes).where(collections.c.name == collection)
    limits = (await connection.execute(found)).first() or (0, 0)
    if not any(limits):
        return Room(UNLIMITED, UNLIMITED)
    used = await usage(connection, collection)
    return Room((limits[0] or UNLIMITED) - used.documents, (limits[1] or UNLIMITED) - used.bytes)


async def usage(connection: AsyncConnection, collection: str) -> Room:
    """Documents and bytes that a collection holds; its own index answers it."""
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(documents.c.size), 0))
    held = query.where(documents.c.collection == collection, documents.c.status != "deleting")
    row = (await connection.execute(held)).one()
    return Room(int(row[0]), int(row[1]))


async def _used_below(connection: AsyncConnection, document_id: str) -> Room:
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(documents.c.size), 0))
    held = query.where(documents.c.id.in_(sa.select(below([document_id]).c.id)), documents.c.status != "deleting")
    row = (await connection.execute(held)).one()
    return Room(int(row[0]), int(row[1]))


async def require_originals(database: Database, connection: AsyncConnection, uploads: Iterable[Upload], exist: Exist) -> None:
    """Make sure that these bytes are there and stay until the transaction ends. Raises `OriginalVanished`."""
    hashes = {upload.sha256 for upload in uploads}
    await lock_blobs(database, connection, hashes)
    if not await exist(hashes):
        raise OriginalVanished("the bytes were removed with another document at the same moment; they are stored again")


async def require_texts(written: Iterable[Entry], exist: Exist) -> None:
    """Make sure that the texts of what was written are there, under their locks. Raises `OriginalVanished`."""
    if not await exist({entry.text_key for entry in written}):
        raise OriginalVanished("the text was removed with another document at the same moment; it is stored again")


async def lock_blobs(database: Database, connection: AsyncConnection, hashes: Iterable[str]) -> None:
    """Keep others from naming or removing these bytes until the transaction ends.

    There are 256 locks: a server holds only some thousands in all, and an archive may have more members than that.
    """
    for start in sorted({sha256[:2] for sha256 in hashes}):
        await database.lock(connection, f"blob:{start}")


async def add_jobs(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Queue jobs (rows of `new_job`); their queues are told of them once the transaction is committed."""
    if rows:
        await connection.execute(sa.insert(jobs), rows)
        for row in rows:
            note_queued(connection, row["queue"], [row["id"]])


async def cancel_queued(connection: AsyncConnection, document_ids: Sequence[str]) -> None:
    for ids in _batches(document_ids):
        queued = sa.and_(jobs.c.document_id.in_(ids), jobs.c.state == "queued")
        await connection.execute(sa.update(jobs).where(queued).values(state="cancelled", error=SUPERSEDED, finished_at=time()))


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[at : at + _IDS_AT_ONCE] for at in range(0, len(ids), _IDS_AT_ONCE))


async def remove(connection: AsyncConnection, document_ids: Sequence[str]) -> None:
    """Mark documents as going, with all that came out of them, and queue the removal of each."""
    for ids in _batches(document_ids):
        await _remove(connection, ids)


async def _remove(connection: AsyncConnection, document_ids: Sequence[str]) -> None:
    tree = below(document_ids)
    these = sa.or_(documents.c.id.in_(document_ids), documents.c.id.in_(sa.select(tree.c.id)))
    query = sa.select(documents.c.id, documents.c.collection, documents.c.version).where(
        these, documents.c.status != "deleting"
    )
    rows = (await connection.execute(query)).all()
    if not rows:
        return
    await cancel_queued(connection, [row.id for row in rows])  # jobs before documents, as those who claim lock them
    fresh = [new_job("delete", row.collection, document_id=row.id, version=row.version) for row in rows]
    await add_jobs(connection, fresh)
    marked = (
        sa.update(documents)
        .where(documents.c.id == sa.bindparam("which"))
        .values(status="deleting", key=sa.bindparam("which"), job_id=sa.bindparam("removal"), updated_at=time())
    )
    await connection.execute(marked, [{"which": job["document_id"], "removal": job["id"]} for job in fresh])


async def replace_parts(connection: AsyncConnection, parent: Mapping[Any, Any], parts: Sequence[Upload]) -> None:
    """Make `parts`, named within their parent, all that comes out of it: equal ones stay as they are, others than these go."""
    columns = [documents.c[name] for name in ("id", "key", "version", "sha256", "media_type", "metadata", "status")]
    query = sa.select(*columns).where(documents.c.parent_id == parent["id"], documents.c.status != "deleting")
    held = {row["key"]: row for row in (await connection.execute(query)).mappings()}
    new: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    for part in parts:
        row = held.pop(part_key(parent["id"], part.name), None)
        if row is None:
            new.append(_new_part(parent, part))
        elif row["status"] in {"failed", "degraded"} or not is_same(row, part):
            changed.append(version_of(part, row["id"], row["version"] + 1))
    await remove(connection, [row["id"] for row in held.values()])
    await cancel_queued(connection, [each["id"] for each in changed])
    queued = [
        new_job("ingest", parent["collection"], document_id=each["id"], version=each["version"]) for each in (*new, *changed)
    ]
    for each, job in zip((*new, *changed), queued, strict=True):
        each["job_id"] = job["id"]
    await add_jobs(connection, queued)
    if new:
        await connection.execute(sa.insert(documents), new)
    await update_documents(connection, changed)


def version_of(part: Upload, document_id: str, version: int) -> dict[str, Any]:
    """The row of a version that waits for its job, as far as it changes with a new one."""
    return {
        "id": document_id,
        "version": version,
        "sha256": part.sha256,
        "size": part.size,
        "media_type": part.media_type,
        "metadata": dict(part.metadata),
        "status": "queued",
        "error": None,
        "job_id": "",
        "updated_at": time(),
    }


def _new_part(parent: Mapping[Any, Any], part: Upload) -> dict[str, Any]:
    version = version_of(part, new_id("doc"), 1)
    return {
        **version,
        "collection": parent["collection"],
        "key": part_key(parent["id"], part.name),
        "name": f"{parent['name']}/{part.name}",
        "parent_id": parent["id"],
        "created_at": version["updated_at"],
    }


async def update_documents(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change documents by their `id`; all rows have the same columns."""
    if rows:  # one statement for all; a parameter may not have the name of a column
        fresh = {name: sa.bindparam(f"new_{name}", type_=documents.c[name].type) for name in rows[0] if name != "id"}
        changed = sa.update(documents).where(documents.c.id == sa.bindparam("new_id")).values(fresh)
        await connection.execute(changed, [{f"new_{name}": row[name] for name in row} for row in rows])


async def having_parts(connection: AsyncConnection, document_ids: Sequence[str]) -> set[str]:
    """Those of these documents out of which others came."""
    query = sa.select(documents.c.parent_id).where(documents.c.parent_id.in_(document_ids), documents.c.status != "deleting")
    return set((await connection.execute(query.distinct())).scalars())


async def write_entries(
    connection: AsyncConnection, written: Sequence[tuple[str, Entry, Mapping[str, Any]]], now: float
) -> None:
    """Record of each document id what was written of it into a generation, from a source with `version`, `sha256` and
    `media_type`; it takes the place of what lay there."""
    rows = [
        {"document_id": document_id, "generation_id": entry.generation.id, "indexed_at": now}
        | {name: source[name] for name in ("version", "sha256", "media_type")}
        | {name: getattr(entry, name) for name in ("text_key", "chunks", "digest")}
        for document_id, entry, source in written
    ]
    places = [(row["document_id"], row["generation_id"]) for row in rows]
    those = sa.tuple_(entries.c.document_id, entries.c.generation_id).in_(places)
    await connection.execute(
        sa.delete(entries).where(entries.c.document_id.in_([document_id for document_id, _ in places]), those)
    )
    await connection.execute(sa.insert(entries), rows)
    spoken: dict[str, set[str]] = {}
    for _, entry, _ in written:
        spoken.setdefault(entry.generation.id, set()).update(entry.languages)
    known = sa.select(generations.c.id, generations.c.languages).where(generations.c.id.in_(spoken))
    for row in (await connection.execute(known)).all():
        if new := spoken[row.id] - set(row.languages):
            languages = sorted({*row.languages, *new})
            await connection.execute(sa.update(generations).where(generations.c.id == row.id).values(languages=languages))


async def note_repaired(connection: AsyncConnection, document_id: str) -> None:
    """The live index holds all of a document again: it has the status that its receipt speaks for."""
    degraded = sa.and_(documents.c.id == document_id, documents.c.status == "degraded")
    row = (await connection.execute(sa.select(documents.c.receipt).where(degraded))).first()
    if row is not None:
        values = {"status": status_when_whole(row.receipt), "error": None, "updated_at": time()}
        await connection.execute(sa.update(documents).where(degraded).values(**values))
        mended = sa.update(passes).where(passes.c.name == "indexes").values(mended=passes.c.mended + 1)
        await connection.execute(mended)


async def note_unrepaired(connection: AsyncConnection, document_id: str, error: Mapping[str, Any]) -> None:
    """A degraded document stays so, and shows what stopped its repair."""
    degraded = sa.and_(documents.c.id == document_id, documents.c.status == "degraded")
    detail = f"it could not be rebuilt and is tried again tomorrow, or by `footnote doctor --repair`: {error['detail']}"
    values = {"error": {**error, "detail": detail}, "updated_at": time()}
    await connection.execute(sa.update(documents).where(degraded).values(**values))
