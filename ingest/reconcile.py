"""The store is compared with the ledger, and what has drifted is repaired: missing, stale or orphaned chunks, and unused files.

A pass goes through the live index of every collection. First it compares counts, which cost next to nothing; only where they
differ, and once a day, it reads every chunk and compares digests. Nothing that a job is about to change is taken for drift:
the ledger is read before the store and once more after it, documents with an unfinished job are left out both times, and a
repair begins only in a transaction that finds the ledger's line unchanged. So a wrong clock, two passes at once, or a pass
that dies cost time and nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TypeVar

import structlog

from ingest.catalog import Catalog
from ingest.files import KINDS, Files
from ingest.ledger import PASS_LEASE_SECONDS, Drift, DriftKind, Ledger, Line, PassName
from ingest.records import Generation
from retrieval.errors import FootnoteError
from retrieval.stores import VectorStore
from retrieval.types import Holding, chunk_id

T = TypeVar("T")

DAY = 24 * 3600.0
"""Between two comparisons of everything, and the age from which a file that nothing names is taken for forgotten."""
DOCUMENTS_AT_ONCE = 100
FILES_AT_ONCE = 500
COLLECTIONS_AT_ONCE = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a few documents of one index came to."""

    checked: int = 0
    drifts: Sequence[Drift] = ()
    healed: Sequence[str] = ()
    """Degraded documents that are whole."""
    unread: dict[Line, str] = field(default_factory=dict)
    """Whole documents whose digest the ledger does not know yet."""
    left_over: Sequence[str] = ()
    """Documents of which chunks lie about that nobody sees."""


class Reconciler:
    """Compares and repairs; `every_seconds` lie between two passes, and 0 turns them off."""

    def __init__(
        self, *, catalog: Catalog, ledger: Ledger, files: Files, store: VectorStore, every_seconds: float = 0.0
    ) -> None:
        self.catalog = catalog
        self.ledger = ledger
        self.files = files
        self.store = store
        self.every_seconds = every_seconds
        self.name = secrets.token_hex(6)

    async def tick(self) -> None:
        """Make the passes that are due; every worker asks now and then, and one of them makes them."""
        if not self.every_seconds:
            return
        async with self._pass("indexes", self.every_seconds) as is_mine:
            if is_mine:
                await self.pass_over_indexes()
        async with self._pass("files", DAY) as is_mine:
            if is_mine:
                await self.pass_over_files(older_than=DAY)

    async def pass_over_indexes(self) -> None:
        """Half of the time is spent waiting, so that queries and jobs go on beside it."""
        renewed = monotonic()
        async for generation in self.live_generations():
            began = monotonic()
            try:
                async for comparison in self._due(generation):
                    mended = await self.repair(generation, comparison)
                    if not await self._note(comparison, mended):
                        return
                    await asyncio.sleep(monotonic() - began)
                    began = monotonic()
            except FootnoteError as exc:
                log.warning("not_compared", collection=generation.collection, code=exc.code, detail=exc.message)
            await asyncio.sleep(monotonic() - began)
            if monotonic() - renewed > PASS_LEASE_SECONDS / 4:
                if not await self.ledger.note("indexes", self.name):
                    return
                renewed = monotonic()

    async def pass_over_files(self, *, older_than: float) -> int:
        """Remove files that nothing names and that were not written within `older_than` seconds; gives how many."""
        removed = 0
        for kind in KINDS:
            async for some in in_groups(self.files.blobs(kind), FILES_AT_ONCE):
                old = [sha256 for sha256, modified in some if modified < time() - older_than]
                gone = await self._remove_unused(old)
                removed += gone
                if not await self.ledger.note("files", self.name, checked=len(some), found=gone, mended=gone):
                    return removed
        return removed

    async def live_generations(self) -> AsyncIterator[Generation]:
        cursor: str | None = None
        while page := await self.catalog.list_collections(limit=COLLECTIONS_AT_ONCE, cursor=cursor):
            for collection in page:
                for generation in await self.catalog.generations(collection.name, states=("live",)):
                    yield generation
            cursor = page[-1].name

    async def compare(self, generation: Generation, *, status: str | None = None) -> AsyncIterator[Comparison]:
        """All that the index should hold, or its documents of one status, and then all that it holds; changes nothing."""
        after = ""
        while lines := await self.ledger.lines(generation, after=after, status=status, limit=DOCUMENTS_AT_ONCE):
            yield await self._compared(generation, lines)
            after = lines[-1].document_id
        if status is None:
            async for ids in self.store.documents(generation.index):
                yield await self._orphans(generation, ids)

    async def repair(self, generation: Generation, found: Comparison, *, again: bool = False) -> int:
        """Remove what no document stands for, queue the rebuilding of the rest; gives how many documents are whole now."""
        if found.unread:
            await self.ledger.adopt(generation, found.unread)
        if found.left_over:
            await self.store.clean(generation.index, found.left_over)
        unknown = [drift.document_id for drift in found.drifts if not drift.known]
        if unknown:  # an id is never used again, so nobody can be about to write one of these
            await self.store.replace(generation.index, {document_id: [] for document_id in unknown})
            await self.store.clean(generation.index, unknown)
        known = [drift for drift in found.drifts if drift.known]
        if known and await self.ledger.degrade(generation, known, again=again):  # so the generation is live just now
            await self.store.create(generation.index)  # where all of it is gone
            await self.store.publish(generation.index)
        for drift in found.drifts:
            log.warning("drift", collection=generation.collection, document_id=drift.document_id, kind=drift.kind)
        return len(unknown) + (await self.ledger.whole(found.healed) if found.healed else 0)

    async def _due(self, generation: Generation) -> AsyncIterator[Comparison]:
        """Everything, if the counts differ or a day has passed; else what is degraded."""
        everything = await self._is_suspect(generation)
        async for comparison in self.compare(generation, status=None if everything else "degraded"):
            yield comparison
        if everything:
            await self.ledger.compared(generation)

    async def _remove_unused(self, hashes: Collection[str]) -> int:
        removed: list[str] = []

        async def discard(unused: Sequence[str]) -> None:
            await self.files.discard(unused)
            removed.extend(unused)

        if unused := await self.ledger.unreferenced(hashes):  # asked without a lock first: it is the rare case
            await self.catalog.remove_blobs([*unused], discard)
        return len(removed)

    async def _is_suspect(self, generation: Generation) -> bool:
        if time() - await self.ledger.last_compared(generation) > DAY:
            return True
        totals = await self.ledger.totals(generation)
        if not totals.is_quiet:
            return False
        held = {await self.store.count(generation.index), await self.store.size(generation.index)}
        return held != {totals.chunks}

    async def _compared(self, generation: Generation, lines: Sequence[Line]) -> Comparison:
        held = await self.store.holdings(generation.index, [line.document_id for line in lines])
        fitting = [line for line in lines if fits(line, held[line.document_id])]
        unread = [line for line in fitting if line.digest is None]
        foreign = {line for line in unread if not await self._has_own_chunks(generation, line)}
        suspects = [line for line in lines if line in foreign or not fits(line, held[line.document_id])]
        again = await self.ledger.lines(generation, ids=[line.document_id for line in suspects], limit=len(suspects) or 1)
        whole = [line for line in fitting if line not in foreign]
        return Comparison(
            checked=len(lines),
            drifts=[await self._drift(line, held[line.document_id]) for line in again if line in suspects],
            healed=[line.document_id for line in whole if line.status == "degraded"],
            unread={line: held[line.document_id].digest for line in whole if line.digest is None},
            left_over=[each for each, holding in held.items() if holding.left_over],
        )

    async def _has_own_chunks(self, generation: Generation, line: Line) -> bool:
        """A chunk's id tells of which version and text it is, which stands in for a digest that was never noted."""
        after: str | None = None
        while chunks := await self.store.scan(generation.index, document_id=line.document_id, after=after):
            if any(c.id != chunk_id(c.document_id, line.version, c.start, c.end, c.text) for c in chunks):
                return False
            after = chunks[-1].id
        return True

    async def _drift(self, line: Line, holding: Holding) -> Drift:
        kind: DriftKind
        if holding.sound < line.chunks:
            kind, detail = "missing", f"the store holds {holding.sound:,} of its {line.chunks:,} chunks as they were written"
        else:
            kind, detail = "stale", "the store holds other chunks of it than were written"
        rebuildable = await self.files.has_originals([line.sha256])
        return Drift(line.document_id, kind, detail, line, rebuildable=rebuildable)

    async def _orphans(self, generation: Generation, ids: Collection[str]) -> Comparison:
        strangers = await self.ledger.strangers(generation, ids)
        held = await self.store.holdings(generation.index, list(strangers)) if strangers else {}
        found = {each: holding for each, holding in held.items() if holding != Holding()}  # read after the ledger: still there
        return Comparison(
            drifts=[
                Drift(each, "orphaned", f"the store holds {_count(holding)} that it should not", known=strangers[each])
                for each, holding in found.items()
            ]
        )

    @asynccontextmanager
    async def _pass(self, name: PassName, every: float) -> AsyncIterator[bool]:
        """Whether the pass is due and ours; if the block fails, the next who asks begins it anew."""
        is_mine, ended = await self.ledger.begin(name, self.name, every=every), False
        try:
            yield is_mine
            ended = True
        finally:
            if is_mine and ended:
                await self.ledger.note(name, self.name, ended=True)
            elif is_mine:
                await self.ledger.give_up(name, self.name)

    async def _note(self, comparison: Comparison, mended: int) -> bool:
        found = len(comparison.drifts)
        return await self.ledger.note("indexes", self.name, checked=comparison.checked, found=found, mended=mended)


def fits(line: Line, holding: Holding) -> bool:
    return holding.chunks == line.chunks and line.digest in (None, holding.digest)


def _count(holding: Holding) -> str:
    return f"{max(holding.chunks, holding.sound, holding.left_over):,} chunks"


async def in_groups(items: AsyncIterator[T], size: int) -> AsyncIterator[list[T]]:
    group: list[T] = []
    async for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
