"""A digest of embedded chunks in any order, by which what a store holds is compared with what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from retrieval.types import EmbeddedChunk

_BITS = 128


class Digest:
    """The sum of a hash of each chunk: order does not change it, and a chunk that is there twice does."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, row: EmbeddedChunk) -> None:
        self.count += 1
        self._sum = (self._sum + int.from_bytes(_hash(row))) % 2**_BITS

    def hexdigest(self) -> str:
        """32 characters."""
        return f"{self._sum:032x}"


def digest_of(rows: Iterable[EmbeddedChunk]) -> str:
    digest = Digest()
    for row in rows:
        digest.add(row)
    return digest.hexdigest()


def _hash(row: EmbeddedChunk) -> bytes:
    """Of all that the chunk is and all that is searched: its fields, its document's metadata, terms and vector."""
    chunk = row.chunk
    fields = {name: getattr(chunk, name) for name in chunk.__slots__}
    text = json.dumps([{**fields, "metadata": dict(chunk.metadata)}, row.terms], sort_keys=True)
    vector = np.ascontiguousarray(row.vector, dtype="<f4").tobytes()
    return hashlib.blake2b(text.encode() + vector, digest_size=_BITS // 8).digest()
