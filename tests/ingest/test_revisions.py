"""Writes into a store that tells the catalog of them: which are one, and which move the revision."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from ingest.catalog import Catalog
from ingest.chunk import Chunking
from ingest.database import open_database
from ingest.revisions import LARGE, RevisedStore
from retrieval.stores.lance import LanceStore, open_lance
from retrieval.types import Chunk, EmbeddedChunk, Index


class Writes:
    """LanceDB, and which documents each write had."""

    def __init__(self, store: LanceStore) -> None:
        self.store = store
        self.seen: list[set[str]] = []

    async def create(self, index: Index) -> None:
        await self.store.create(index)

    async def replace(self, index: Index, documents: Mapping[str, list[EmbeddedChunk]]) -> None:
        self.seen.append(set(documents))
        await self.store.replace(index, documents)


def document(name: str, chunks: int = 1) -> dict[str, list[EmbeddedChunk]]:
    made = [Chunk(f"{name}-{at}", name, f"{name}.txt", at, "text", 0, 4) for at in range(chunks)]
    return {name: [EmbeddedChunk(chunk, np.eye(3, dtype=np.float32)[0], "text") for chunk in made]}


@pytest.fixture
async def opened(tmp_path):
    database = await open_database(f"sqlite+aiosqlite:///{tmp_path}/catalog.sqlite")
    catalog, store = Catalog(database), await open_lance(f"lance:{tmp_path}/store")
    await catalog.create_collection("notes", chunking=Chunking())
    values = {"embedder": "e", "fingerprint": "f", "schema": "s", "dimension": 3, "chunking": Chunking()}
    live = await catalog.create_generation("notes", live=True, **values)
    await store.create(live.index)
    yield catalog, store, live.index
    await store.close()
    await database.close()


async def test_small_documents_at_once_are_one_write_and_large_ones_go_alone(opened):
    catalog, store, index = opened
    writes = Writes(store)
    revised = RevisedStore(writes, catalog)
    before = (await catalog.collection("notes")).revision
    await asyncio.gather(
        *(revised.replace(index, document(name)) for name in "abc"), revised.replace(index, document("d", LARGE + 1))
    )
    assert sorted(map(sorted, writes.seen)) == [["a", "b", "c"], ["d"]]
    assert (await catalog.collection("notes")).revision == before + 2
    assert await store.count(index) == 3 + LARGE + 1


async def test_a_write_into_an_index_that_nobody_reads_moves_no_revision(opened):
    catalog, store, _ = opened
    before = (await catalog.collection("notes")).revision
    building = Index("notes", "gen_other", "s", 3)
    await store.create(building)
    await RevisedStore(store, catalog).replace(building, document("a"))
    assert (await catalog.collection("notes")).revision == before
    assert await store.count(building) == 1
