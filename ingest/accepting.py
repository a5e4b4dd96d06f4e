"""How uploads become documents and jobs, within the transaction that somebody else has opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.database import new_id
from ingest.documents import Room, add_jobs, cancel_queued, room_in, update_documents, version_of
from ingest.filter_keys import type_name
from ingest.records import Accepted, Upload, is_same, new_job
from ingest.schema import documents, metadata_keys, writes
from retrieval.errors import QuotaExceeded
from retrieval.types import Metadata


async def accept_all(connection: AsyncConnection, collection: str, uploads: Sequence[Upload]) -> list[Accepted]:
    """Accept what the quota has room for, and note which documents are covered by the token of this write."""
    room, token, accepted = await room_in(connection, collection), new_id("w"), []
    for some in _of_different_names(uploads):
        accepted += await _accept_some(connection, collection, some, room, token)
    if covered := {each.id for each in accepted if not each.error}:
        await connection.execute(sa.insert(writes), [{"token": token, "document_id": each} for each in covered])
    elif accepted:
        raise QuotaExceeded(_no_room(collection))
    return accepted


async def _accept_some(
    connection: AsyncConnection, collection: str, uploads: Sequence[Upload], room: Room, token: str
) -> list[Accepted]:
    """Of different names, by few statements."""
    keys = [upload.name for upload in uploads]
    held = sa.select(documents).where(documents.c.collection == collection, documents.c.key.in_(keys))
    rows = {row["key"]: row for row in (await connection.execute(held)).mappings()}
    accepted: list[Accepted] = []
    new: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    queued: list[dict[str, Any]] = []
    for upload in uploads:
        row = rows.get(upload.name)
        if row is not None and is_same(row, upload) and row["status"] not in {"failed", "degraded"}:
            parts = (row["receipt"] or {}).get("parts", 0)
            known = (row["id"], upload.name, row["status"], row["job_id"])
            accepted.append(Accepted(*known, duplicate=True, parts=parts, token=token))
            continue
        if not room.take(*((0, upload.size - row["size"]) if row else (1, upload.size))):
            error = {"code": QuotaExceeded.code, "detail": _no_room(collection), "retryable": QuotaExceeded.retryable}
            accepted.append(Accepted("", upload.name, "failed", "", duplicate=False, error=error, token=token))
            continue
        values = version_of(upload, row["id"] if row else new_id("doc"), row["version"] + 1 if row else 1)
        job = new_job("ingest", collection, document_id=values["id"], version=values["version"])
        values["job_id"] = job["id"]
        queued.append(job)
        if row:
            changed.append(values)
        else:
            names = {"collection": collection, "key": upload.name, "name": upload.name, "created_at": values["updated_at"]}
            new.append(values | names)
        accepted.append(Accepted(values["id"], upload.name, "queued", job["id"], duplicate=False, token=token))
    await cancel_queued(connection, [each["id"] for each in changed])
    await add_jobs(connection, queued)
    if new:
        await connection.execute(sa.insert(documents), new)
    await update_documents(connection, changed)
    taken = {job["document_id"] for job in queued}
    named = [upload.metadata for upload, each in zip(uploads, accepted, strict=True) if each.id in taken]
    await _note_keys(connection, collection, named)
    return accepted


async def _note_keys(connection: AsyncConnection, collection: str, metadata: Sequence[Metadata]) -> None:
    pairs = {(key, type_name(value)) for each in metadata for key, value in each.items()}
    if not pairs:
        return
    known = sa.select(metadata_keys.c.key, metadata_keys.c.type).where(
        metadata_keys.c.collection == collection, metadata_keys.c.key.in_({key for key, _ in pairs})
    )
    pairs -= {(row.key, row.type) for row in (await connection.execute(known)).all()}
    if pairs:
        rows = [{"collection": collection, "key": key, "type": type_} for key, type_ in sorted(pairs)]
        await connection.execute(sa.insert(metadata_keys), rows)


def _of_different_names(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    """In their order, cut where a name comes again: its second upload is the next version of what the first one made."""
    some: dict[str, Upload] = {}
    for upload in uploads:
        if upload.name in some:
            yield [*some.values()]
            some = {}
        some[upload.name] = upload
    yield [*some.values()]


def _no_room(collection: str) -> str:
    return (
        f"the quota of collection {collection!r} has no room for it: delete documents, or raise the quota with "
        f"PATCH /collections/{collection}"
    )
