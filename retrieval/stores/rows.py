"""What both stores do with rows: safe names, metadata as text, checked vectors, exact scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from retrieval.errors import DimensionMismatch
from retrieval.types import EmbeddedChunk, Index, Matrix, Metadata, Places, Scores, Vector


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


def cosines(vectors: Matrix, question: Vector) -> Scores:
    """Exact, so that an approximate or rounded score of a store never shows. All vectors are of unit length."""
    exact: Scores = vectors.astype(np.float64) @ question.astype(np.float64)
    return exact


def ranked(ids: Sequence[str], scores: Scores, limit: int) -> Places:
    """Places of the `limit` highest scores, best first; equal ones by id, so that the order never depends on the store."""
    least = np.partition(scores, -limit)[-limit] if len(scores) > limit else -np.inf
    places = np.flatnonzero(scores >= least)
    order: Places = places[np.argsort(-scores[places], kind="stable")]
    ordered = scores[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.array(sorted(order.tolist(), key=lambda place: (-scores[place], ids[place])), np.intp)
    return order[:limit]
