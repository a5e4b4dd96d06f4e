"""How a job ends well: what it wrote is recorded, and itself as done, in one transaction or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.claims import LOT
from ingest.database import Database
from ingest.documents import (
    SUPERSEDED,
    Exist,
    having_parts,
    lock_blobs,
    note_repaired,
    replace_parts,
    require_originals,
    require_texts,
    room_below,
    taken_for_granted,
    update_documents,
    write_entries,
)
from ingest.job_rows import Job, JobRows, LeaseLost
from ingest.records import Entry, Upload
from ingest.schema import collections, documents, entries
from ingest.together import Together
from retrieval.errors import CatalogUnavailable, FilesRejected, FilesUnavailable, StorageFull

Outcome = Literal["settled", "superseded", "moved", "full"]

OUTAGES = (CatalogUnavailable, StorageFull, FilesUnavailable, FilesRejected)
"""Whose fault a document is not, so that those that are settled together need not find out one by one."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a job wrote of a document, to be settled."""

    job: Job
    entries: Sequence[Entry]
    source: Mapping[str, Any]
    parts: Sequence[Upload]
    exist: Exist
    texts: Exist


class Settling:
    """Ends jobs whose work is done."""

    def __init__(self, rows: JobRows) -> None:
        self.rows = rows
        self._together = Together(self._settle, most=LOT, of_all=OUTAGES)

    async def ingest(
        self,
        job: Job,
        written: Sequence[Entry],
        source: Mapping[str, Any],
        parts: Sequence[Upload] = (),
        *,
        exist: Exist = taken_for_granted,
        texts: Exist = taken_for_granted,
    ) -> Outcome:
        """Record what was written of a document's newest version and what came out of it, and end the job; all at once.

        `source` has the document's new `status`, `receipt`, `version`, `sha256` and `media_type`; `parts` take the place of
        the version's before, named within the document; `exist` and `texts` tell whether their bytes, and the texts of what
        was written, are stored. "superseded": the document has a newer version or is going, so nothing of this may stay.
        "moved": readers follow a generation that `written` lacks, so write there too and settle again. "full": the upload
        has no room for so many parts.
        What is settled at the same time is one transaction. Raises `LeaseLost` and `OriginalVanished`.
        """
        alone = job.id if parts else ""  # how many parts there is room for, depends on those who were settled before
        outcome = await self._together.do((job.collection, alone), Written(job, written, source, parts, exist, texts))
        if outcome is None:
            raise LeaseLost
        return outcome

    async def _settle(self, place: tuple[str, str], lot: Sequence[Written]) -> list[Outcome | None]:
        """None of a job whose lease is lost."""
        async with self.rows.database.writing() as connection:
            await self.rows.database.lock(connection, f"collection:{place[0]}")
            held = await self.rows.held(connection, [each.job for each in lot])
            found = sa.select(documents).where(documents.c.id.in_([each.job.document_id for each in lot]))
            rows = {row["id"]: row for row in (await connection.execute(found)).mappings()}
            live = sa.select(collections.c.live_generation).where(collections.c.name == place[0])
            read = (await connection.execute(live)).scalar()
            outcomes = [_outcome(each, rows.get(each.job.document_id), read) if each.job.id in held else None for each in lot]
            for at, each in enumerate(lot):
                if outcomes[at] == "settled" and each.parts:
                    room = await room_below(connection, str(each.job.document_id))
                    outcomes[at] = "settled" if room.fitting(each.parts) == len(each.parts) else "full"
            over = [each.job for each, outcome in zip(lot, outcomes, strict=True) if outcome == "superseded"]
            await self.rows.end(connection, over, "cancelled", SUPERSEDED)
            await self._record(
                connection, [each for each, outcome in zip(lot, outcomes, strict=True) if outcome == "settled"], rows
            )
        return outcomes

    async def _record(self, connection: AsyncConnection, lot: Sequence[Written], rows: Mapping[str, Mapping[Any, Any]]) -> None:
        """What became of these documents, whose newest versions are `rows`."""
        if not lot:
            return
        now = self.rows.clock()
        written = [entry for each in lot for entry in each.entries]
        await _lock_blobs(self.rows.database, connection, written, [part for each in lot for part in each.parts])
        for texts in {each.texts for each in lot}:  # bound methods of one object are equal, so it mostly is one
            await require_texts([entry for each in lot if each.texts == texts for entry in each.entries], texts)
        await write_entries(
            connection, [(str(each.job.document_id), entry, each.source) for each in lot for entry in each.entries], now
        )
        await update_documents(
            connection,
            [
                {"id": each.job.document_id, "error": None, "updated_at": now}
                | {name: each.source[name] for name in ("status", "receipt", "media_type")}
                for each in lot
            ],
        )
        parents = await having_parts(connection, [str(each.job.document_id) for each in lot])
        for each in lot:
            if each.parts or each.job.document_id in parents:
                await require_originals(self.rows.database, connection, each.parts, each.exist)
                await replace_parts(connection, rows[str(each.job.document_id)], each.parts)
        await self.rows.end(connection, [each.job for each in lot], "succeeded")

    async def rebuild(self, job: Job, entry: Entry, source: Mapping[str, Any], *, texts: Exist = taken_for_granted) -> Outcome:
        """Record what was written of a document's live version into a generation, and end the job.

        A document that was degraded because of the live one is whole again. Raises `LeaseLost` and `OriginalVanished`.
        """
        async with self.rows.database.writing() as connection:
            await self.rows.database.lock(connection, f"collection:{job.collection}")
            await self.rows.require(connection, job)
            live = (
                sa.select(entries.c.version)
                .join(collections, collections.c.live_generation == entries.c.generation_id)
                .where(collections.c.name == job.collection, entries.c.document_id == job.document_id)
            )
            if (await connection.execute(live)).scalar() != source["version"]:
                await self.rows.end(connection, [job], "cancelled", SUPERSEDED)
                return "superseded"
            await _lock_blobs(self.rows.database, connection, [entry], ())
            await require_texts([entry], texts)
            await write_entries(connection, [(str(job.document_id), entry, source)], self.rows.clock())
            if entry.generation.state == "live":
                await note_repaired(connection, str(job.document_id))
            await self.rows.end(connection, [job], "succeeded")
        return "settled"

    async def delete(self, job: Job) -> list[str]:
        """Forget the document and end the job; gives the hashes of bytes that it used. Raises `LeaseLost`."""
        async with self.rows.database.writing() as connection:
            await self.rows.require(connection, job)
            blobs = set(
                (await connection.execute(sa.select(documents.c.sha256).where(documents.c.id == job.document_id))).scalars()
            )
            held = (
                await connection.execute(
                    sa.select(entries.c.sha256, entries.c.text_key).where(entries.c.document_id == job.document_id)
                )
            ).all()
            blobs.update(key for row in held for key in row)
            await self.rows.end(connection, [job], "succeeded")  # while the document's name can still be told
            await connection.execute(sa.delete(entries).where(entries.c.document_id == job.document_id))
            await connection.execute(
                sa.delete(documents).where(documents.c.id == job.document_id, documents.c.status == "deleting")
            )
        return sorted(blobs)


async def _lock_blobs(
    database: Database, connection: AsyncConnection, written: Sequence[Entry], parts: Sequence[Upload]
) -> None:
    """All at once and in one order, so that no two transactions wait for each other."""
    hashes = [*(entry.text_key for entry in written), *(part.sha256 for part in parts)]
    await lock_blobs(database, connection, hashes)


def _outcome(written: Written, document: Mapping[Any, Any] | None, live: str | None) -> Outcome:
    """Whether it is the newest version that was written, and to where readers look; not yet whether its parts have room."""
    if document is None or document["version"] != written.job.version or document["status"] == "deleting":
        return "superseded"
    return "settled" if live in {entry.generation.id for entry in written.entries} else "moved"
