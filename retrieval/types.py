"""The values that cross every seam: frozen, typed, evolved by `dataclasses.replace`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""Shape (dimension,), unit length."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""Shape (n, dimension), each row of unit length."""

Scalar: TypeAlias = str | int | float | bool
MetadataValue: TypeAlias = Scalar | tuple[str, ...]
Metadata: TypeAlias = Mapping[str, MetadataValue]
"""What a caller attached to a document; every chunk carries its document's, so that a search can filter on it."""

Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]


@dataclass(frozen=True, slots=True)
class Index:
    """Where one generation of one collection lives in a store.

    `schema` names what all its rows share (embedding model, analysis): indexes of the same schema may live in one
    Weaviate class, as tenants. `generation` is unique to this collection and build.
    """

    collection: str
    generation: str
    schema: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document: exactly `canonical_text[start:end]`."""

    id: str
    document_id: str
    document_name: str
    position: int
    """0-based order within the document."""
    text: str
    start: int
    end: int
    page: int | None = None
    """1-based page on which the chunk starts; None where the format has no pages."""
    headings: tuple[str, ...] = ()
    """The path of headings above the chunk, outermost first."""
    language: str | None = None
    """ISO 639-1 code, None where unsure."""
    metadata: Metadata = field(default_factory=dict)


def chunk_id(document_id: str, version: int, start: int, end: int, text: str) -> str:
    """A UUID-shaped hash of a chunk's content and place: the same chunk of the same version always has the same id."""
    seed = f"{document_id}\x00{version}\x00{start}\x00{end}\x00{text}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(seed, digest_size=16).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """A chunk with what the store searches: its vector, and its analysed terms joined by single spaces."""

    chunk: Chunk
    vector: Vector
    terms: str


@dataclass(frozen=True, slots=True)
class Holding:
    """What a store holds of one document."""

    chunks: int = 0
    """How many are visible, by the store's own account."""
    sound: int = 0
    """How many of them were read, with all their columns saying the same."""
    digest: str = "0" * 32
    """`retrieval.digest` of the sound ones."""
    left_over: int = 0
    """Chunks that nobody sees, written so long ago that no writer at work can still make them visible."""


class Candidate(NamedTuple):
    """A chunk that one of the two primitive searches found, with its stored vector.

    `score` is the cosine similarity for `nearest` and the BM25 score (k1 1.2, b 0.75, with the factor k1 + 1)
    for `keyword`. `read` gives the chunk: ten of some two hundred candidates are shown, and only those are worth decoding.
    A tuple, since it is made in half the time.
    """

    id: str
    vector: Vector
    score: float
    read: Callable[[], Chunk]

    @property
    def chunk(self) -> Chunk:
        return self.read()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk in a ranked result."""

    chunk: Chunk
    score: float
    """What the ranking sorts by; comparable within one result only."""
    vector_score: float
    """Cosine similarity of question and chunk."""
    keyword_score: float
    """BM25 score; 0 where no word of the question occurs."""


Operator: TypeAlias = Literal["eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "exists", "contains"]


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison on a metadata key, or on a built-in field (`BUILT_IN_FIELDS`).

    `ne`, `nin` and `Not` also match chunks that lack the key. `exists` takes a bool. `contains` asks whether a list of
    strings holds the string `value`; `in`/`nin` take a tuple. Strings order by code point.
    """

    key: str
    op: Operator
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class And:
    all: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    any: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    not_: Filter


Filter: TypeAlias = Compare | And | Or | Not

BUILT_IN_FIELDS: Mapping[str, type] = {"document_id": str, "document_name": str, "page": int, "language": str}


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for in one index."""

    text: str
    top_k: int = 5
    mode: Mode = "hybrid"
    filter: Filter | None = None
