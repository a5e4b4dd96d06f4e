"""The catalog's rows as frozen values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from ingest.chunk import Chunking
from ingest.database import new_id
from retrieval.errors import InvalidCollectionName
from retrieval.types import Index, Metadata

COLLECTION_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
QUEUES = ("delete", "ingest", "maintenance", "reindex")
"""The job queues, the most urgent first. Maintenance repairs documents that are not whole in the store."""
FINAL = ("succeeded", "failed", "dead", "cancelled")
"""States in which a job has ended."""
QUEUE_OF = {"delete": "delete", "ingest": "ingest", "reindex": "reindex", "rebuild": "reindex"}
"""Of each kind of job, unless it is told another."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One build of one collection's index: by which embedder, cut how."""

    id: str
    collection: str
    state: str
    embedder: str
    fingerprint: str
    schema: str
    dimension: int
    chunk_size: int
    chunk_overlap: int
    chunk_context: bool
    languages: tuple[str, ...]
    pinned: bool = False
    """The collection keeps this generation's embedder whatever the setting says (it was chosen by `reindex --embedder`)."""
    revision: int = 0
    """Of the collection when this was read: it grows after every write into the index that is read."""

    @property
    def index(self) -> Index:
        return Index(self.collection, self.id, self.schema, self.dimension)

    @property
    def chunking(self) -> Chunking:
        return Chunking(size=self.chunk_size, overlap=self.chunk_overlap, context=self.chunk_context)


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a collection may hold, parts of uploads included; 0 is no limit."""

    documents: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    live_generation: str | None
    embedder: str | None
    chunk_size: int
    chunk_overlap: int
    chunk_context: bool
    created_at: float
    max_documents: int = 0
    max_bytes: int = 0
    revision: int = 0
    """Grows after every write into the index that is read."""
    documents: int = 0
    chunks: int = 0

    @property
    def quota(self) -> Quota:
        return Quota(self.max_documents, self.max_bytes)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's newest version, and what the live index holds of it (`live_version`, `chunks`, `text_key`)."""

    id: str
    collection: str
    name: str
    version: int
    sha256: str
    size: int
    media_type: str
    metadata: Metadata
    status: str
    error: Mapping[str, Any] | None
    receipt: Mapping[str, Any] | None
    job_id: str
    created_at: float
    updated_at: float
    parent_id: str | None = None
    """The document that this one came out of, as an attachment comes out of a mail."""
    live_version: int | None = None
    chunks: int = 0
    text_key: str | None = None
    failed_parts: int = 0
    """Of the documents that came out of it, at any depth; they are read after it, so its receipt cannot hold them."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A document at the door: its bytes are already in the file store."""

    name: str
    sha256: str
    size: int
    media_type: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Accepted:
    id: str
    name: str
    status: str
    job_id: str
    duplicate: bool
    parts: int = 0
    """How many documents came out of it when it was last read."""
    error: Mapping[str, Any] | None = None
    """Why it was refused, where others of its request were not."""
    token: str = ""
    """Names the whole request's write: `Catalog.is_pending` tells whether all of it is settled."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one version of a document left in one generation."""

    generation: Generation
    text_key: str
    chunks: int
    languages: frozenset[str]
    tokens: int = 0
    """Of all chunks with their contexts, as the embedding model counts."""
    tokens_cut: int = 0
    """Beyond the model's window, so not in any vector; the chunker is there to keep this 0."""
    digest: str | None = None
    """`retrieval.digest` of the chunks; None leaves it to the next comparison with the store."""
    embedded: int = 0
    """Chunks that the model computed; the vectors of the others were known."""


def check_collection_name(name: str) -> str:
    if not re.fullmatch(COLLECTION_NAME, name):
        raise InvalidCollectionName(
            "a collection's name is 1 to 64 letters, digits, - or _, and begins with a letter or a digit (A-Z a-z 0-9)"
        )
    return name


def part_key(parent_id: str, name: str) -> str:
    """No key of an upload looks like this: names hold no line ends."""
    return f"{parent_id}\n{name}"


def new_job(
    kind: str,
    collection: str,
    *,
    document_id: str | None = None,
    version: int = 0,
    generation_id: str | None = None,
    queue: str | None = None,
) -> dict[str, Any]:
    """The row of a job that waits to be claimed."""
    return {
        "id": new_id("job"),
        "kind": kind,
        "queue": queue or QUEUE_OF[kind],
        "collection": collection,
        "document_id": document_id,
        "version": version,
        "generation_id": generation_id,
        "state": "queued",
        "stage": "queued",
        "done": 0,
        "total": None,
        "attempts": 0,
        "run_after": 0.0,
        "created_at": time(),
    }


def repair_job(generation: Generation, document_id: str) -> dict[str, Any]:
    """The row of a job that builds a document's live version anew where it lies already."""
    return new_job("rebuild", generation.collection, document_id=document_id, generation_id=generation.id, queue="maintenance")


def status_when_whole(receipt: Mapping[str, Any] | None) -> str:
    """Of a document of which the store holds all: is what was read of it good enough?"""
    return "needs_attention" if receipt and receipt.get("needs_attention") else "ready"


def request_fingerprint(collection: str, uploads: Sequence[Upload]) -> str:
    """Equal for two requests that ask for the same."""
    parts = [[u.name, u.sha256, u.media_type, dict(u.metadata)] for u in uploads]
    return hashlib.sha256(json.dumps([collection, parts], sort_keys=True).encode()).hexdigest()


def is_same(row: Mapping[Any, Any], upload: Upload) -> bool:
    new = json.dumps(dict(upload.metadata), sort_keys=True)
    return (
        row["sha256"] == upload.sha256
        and row["media_type"] == upload.media_type
        and json.dumps(row["metadata"], sort_keys=True) == new
    )


def generation_of(row: Mapping[Any, Any]) -> Generation:
    fields = {name: row[name] for name in Generation.__dataclass_fields__ if name not in {"pinned", "revision"}}
    of_collection = {"pinned": bool(row.get("pinned", False)), "revision": row.get("revision", 0)}
    return Generation(**{**fields, "languages": tuple(row["languages"])}, **of_collection)


def document_of(row: Mapping[Any, Any]) -> Document:
    fields = {name: row[name] for name in Document.__dataclass_fields__}
    metadata = {key: tuple(value) if isinstance(value, list) else value for key, value in row["metadata"].items()}
    return Document(**{**fields, "metadata": metadata})
