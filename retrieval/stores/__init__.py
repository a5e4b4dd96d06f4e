"""The port to a vector store, and the table of the stores that we ship."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from retrieval.registry import Registry
from retrieval.types import Candidates, Chunk, EmbeddedChunk, Filter, Holding, Index, Vector


class Inventory(Protocol):
    """What a store tells of all that lies in it, put there by us or behind our back: the part that `ingest.reconcile` needs.

    A reading of documents that are being written meanwhile may mix before and after: whoever acts on it asks again.
    """

    async def size(self, index: Index) -> int:
        """How many chunks lie in the index, visible or not, by the cheapest means."""

    def documents(self, index: Index) -> AsyncIterator[set[str]]:
        """The ids of all documents of which any chunk lies in the index, some at a time; an id may come again."""

    async def holdings(self, index: Index, document_ids: Sequence[str]) -> dict[str, Holding]:
        """What the index holds of each of these documents; reads every field of every chunk of theirs."""

    async def clean(self, index: Index, document_ids: Sequence[str]) -> None:
        """Remove what `holdings` calls left over of these documents; what is visible stays as it is."""


class VectorStore(Inventory, Protocol):
    """Holds embedded chunks, one index per generation of a collection, and offers two primitive searches.

    Every method takes the index first: no call can reach two collections. Ranking, fusion and deduplication live above
    (`retrieval.search`), so that they are the same for every store. All methods raise `StoreUnavailable` when the store
    cannot be reached, and `StoreRejected` when it refuses what it was sent; nothing of the store's own library leaves here.
    An index that was never created reads as empty.
    """

    async def create(self, index: Index) -> None:
        """Make room for an index; a no-op if it exists. `DimensionMismatch` if it exists with another dimension."""

    async def drop(self, index: Index) -> None:
        """Remove an index with all that it holds; unknown is a no-op."""

    async def publish(self, index: Index) -> None:
        """Tell the store that this index is now the live one of its collection (an alias, where the store has such)."""

    async def replace(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
        """Make the chunks of each document (by document id) exactly these; an empty sequence deletes the document.

        Atomic for readers, document by document: a search sees all of the old chunks or all of the new ones, never a
        mixture and never neither. When this returns, every chunk is stored (each object's result was read) and
        searchable. `DimensionMismatch` before anything is written if a vector's length is not the index's.
        """

    async def nearest(self, index: Index, vector: Vector, limit: int, filter: Filter | None = None) -> Candidates:
        """The `limit` chunks of highest cosine similarity, best first."""

    async def keyword(self, index: Index, terms: Sequence[str], limit: int, filter: Filter | None = None) -> Candidates:
        """The `limit` chunks of highest BM25 score over analysed terms (any may match), best first; no terms, no hits."""

    async def scan(
        self, index: Index, *, document_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> list[Chunk]:
        """Chunks in ascending order of id, those after the id `after`; of one document if `document_id` is given."""

    async def count(self, index: Index, document_id: str | None = None) -> int:
        """How many chunks are visible, of the index or of one document."""

    async def ping(self) -> str:
        """Name and version of the store; raises `StoreUnavailable` with the cure if it is not there."""

    async def problems(self) -> list[str]:
        """What its operator should mend in how the store is set up, each with its cure; usually nothing."""

    async def close(self) -> None:
        """Release connections and background work; idempotent."""


STORES: Registry[VectorStore] = Registry(
    "store",
    {
        "lance": "retrieval.stores.lance:open_lance",
        "weaviate": "retrieval.stores.weaviate:open_weaviate",
        "weaviates": "retrieval.stores.weaviate:open_weaviate",
    },
)


async def open_store(url: str, *, api_key: str | None = None) -> VectorStore:
    """Open a store by URL: `lance:/folder`, `weaviate://host:8080?grpc=50051`, `weaviates://host`.

    A server need not be there yet: it is found as soon as it answers, and until then the methods raise `StoreUnavailable`.
    Raises `ConfigurationError` for an unknown scheme or a malformed URL, and `StoreRejected` for what waiting does not mend.
    """
    opener = STORES.load(url.partition(":")[0])
    store: VectorStore = await opener(url, api_key=api_key)
    return store
