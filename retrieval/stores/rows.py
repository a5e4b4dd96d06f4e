"""What both stores do with rows: safe names, metadata as text, checked vectors, exact scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from retrieval.errors import DimensionMismatch
from retrieval.types import Candidate, Chunk, EmbeddedChunk, Index, Matrix, Metadata, Vector


def place_name(index: Index) -> str:
    """A readable name for an index, of at most 64 letters, digits, `_` and `-`, that its hash makes unique."""
    digest = hashlib.blake2b(f"{index.collection}\x00{index.generation}".encode("utf-8", "surrogatepass"), digest_size=8)
    readable = "-".join(re.sub(r"[^A-Za-z0-9_]", "_", part)[:22] for part in (index.collection, index.generation))
    return f"{readable}-{digest.hexdigest()}"


def metadata_to_json(metadata: Metadata) -> str:
    return json.dumps({key: list(value) if isinstance(value, tuple) else value for key, value in metadata.items()})


def metadata_from_json(text: str) -> Metadata:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()}


def check_vector(index: Index, vector: Vector) -> None:
    """Raises `DimensionMismatch` unless the vector is one of this index."""
    if np.shape(vector) != (index.dimension,):
        raise DimensionMismatch(
            f"collection {index.collection!r} holds vectors of {index.dimension} numbers, got shape {np.shape(vector)}; "
            "the embedding model has changed: re-index the collection"
        )


def check_vectors(index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
    for rows in documents.values():
        for row in rows:
            check_vector(index, row.vector)


def check_dimension(index: Index, stored: int) -> None:
    """Raises `DimensionMismatch` unless the index that the store holds has the dimension that is wanted."""
    if stored != index.dimension:
        raise DimensionMismatch(
            f"the index of collection {index.collection!r} holds vectors of {stored} numbers, not {index.dimension}; "
            "re-index the collection into a new generation"
        )


def by_similarity(found: Iterable[tuple[Chunk, Vector]], question: Vector, limit: int) -> list[Candidate]:
    """The nearest `limit` with their exact cosine, so that an approximate or rounded score of a store never shows.

    All vectors are of unit length, so the cosine is the dot product.
    """
    rows = list(found)
    if not rows:
        return []
    vectors: Matrix = np.stack([vector for _, vector in rows])
    scores = vectors.astype(np.float64) @ question.astype(np.float64)
    candidates = [Candidate(chunk, vector, float(score)) for (chunk, vector), score in zip(rows, scores, strict=True)]
    return best(candidates, limit)


def best(candidates: Iterable[Candidate], limit: int) -> list[Candidate]:
    """Best first; equal scores in order of id, so that the order never depends on the store."""
    return sorted(candidates, key=lambda candidate: (-candidate.score, candidate.chunk.id))[:limit]
