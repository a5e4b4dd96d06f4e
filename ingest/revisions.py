"""A vector store that tells the catalog of every write, so that whoever remembers an answer knows when it is out of date."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ingest.catalog import Catalog
from retrieval.stores import VectorStore
from retrieval.types import EmbeddedChunk, Index


class RevisedStore:
    """A `VectorStore` whose collections get a new revision after each write, before the writer hears that it is done.

    A reader takes the revision first and searches then, so what it finds is at least as new as the revision says.
    """

    def __init__(self, store: VectorStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # everything but writing

    async def replace(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
        """As `VectorStore.replace`."""
        try:
            await self._store.replace(index, documents)
        finally:  # what was refused or stopped half-way may have been written all the same
            await asyncio.shield(self._catalog.revise(index.collection))
