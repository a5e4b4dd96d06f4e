"""The values that cross every seam: frozen, typed, evolved by `dataclasses.replace`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""Shape (dimension,), unit length."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""Shape (n, dimension), each row of unit length."""

Scores: TypeAlias = npt.NDArray[np.float64]
"""Shape (n,), one score per candidate or row."""

Places: TypeAlias = npt.NDArray[np.intp]
"""Shape (n,), positions in a list."""

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
    """A chunk that one of the two primitive searches found; its fields are those of `Candidates`."""

    id: str
    vector: Vector
    score: float
    chunk: Chunk


@dataclass(frozen=True, slots=True, eq=False)
class Candidates(Sequence[Candidate]):
    """What one of the two primitive searches found, best first.

    A hybrid search looks at some two hundred candidates and shows ten: only those are worth decoding, and an object for each
    would take a third of its time. Taken one by one they are whole.
    """

    ids: Sequence[str]
    scores: Scores
    """Cosine similarities for `nearest`, BM25 scores (k1 1.2, b 0.75, with the factor k1 + 1) for `keyword`."""
    vectors: Callable[[Places], Matrix]
    """The stored vectors of those at some places, of shape (len(places), dimension)."""
    read: Callable[[int], Chunk]
    """The chunk at a place."""

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | list[Candidate]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        return Candidate(self.ids[place], self.vectors(np.array([place]))[0], float(self.scores[place]), self.read(place))


def _of_nothing(_: object) -> Any:
    raise IndexError("nothing was found")


NO_CANDIDATES = Candidates((), np.empty(0), _of_nothing, _of_nothing)


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
