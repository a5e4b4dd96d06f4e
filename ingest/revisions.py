"""A vector store that tells the catalog of every write, so that whoever remembers an answer knows when it is out of date."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ingest.catalog import Catalog
from ingest.together import Together
from retrieval.errors import CatalogUnavailable, StorageFull, StoreUnavailable
from retrieval.stores import VectorStore
from retrieval.types import EmbeddedChunk, Index

Documents = Mapping[str, Sequence[EmbeddedChunk]]

DOCUMENTS_AT_ONCE = 64
REST = 4.0
"""A commit costs about as much for one document as for many: under load, one write in five is enough of them."""
OUTAGES = (StoreUnavailable, StorageFull, CatalogUnavailable)
"""Whose fault a document is not, so that each of a group need not find out by itself."""
LARGE = 256
"""Chunks of a document that is written by itself: it gains nothing from company, and others would wait for it."""


class RevisedStore:
    """A `VectorStore` whose collections get a new revision after each write into the index that is read, before the writer
    hears that it is done.

    A reader takes the revision first and searches then, so what it finds is at least as new as the revision says.
    Small documents that are written into an index at the same time are one write: a commit of LanceDB, a round of requests
    to Weaviate and a transaction of the catalog are paid for once.
    """

    def __init__(self, store: VectorStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._writes = Together(self._replace, most=DOCUMENTS_AT_ONCE, rest=REST, of_all=OUTAGES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # everything but writing

    async def replace(self, index: Index, documents: Documents) -> None:
        """As `VectorStore.replace`, and an index that is not there is made for what is to be in it."""
        if sum(map(len, documents.values())) > LARGE:
            await self._replace(index, [documents])
            return
        await self._writes.do(index, documents)

    async def _replace(self, index: Index, writes: Sequence[Documents]) -> Sequence[None]:
        documents = {document_id: chunks for each in writes for document_id, chunks in each.items()}
        if any(documents.values()):
            await self._store.create(index)
        try:
            await self._store.replace(index, documents)
        finally:  # what was refused or stopped half-way may have been written all the same
            await asyncio.shield(self._catalog.revise(index))
        return [None] * len(writes)
