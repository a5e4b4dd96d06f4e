"""An embedder that remembers the vectors of the last questions."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.embedders import Embedder
from retrieval.types import Matrix, Vector

REMEMBERED = 1000
"""Questions; of 384 dimensions they take 1.5 MB."""


class QuestionMemory:
    """An `Embedder` that embeds a question once: for the search, for the answer, and when it is asked again."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[str, Vector] = {}
        self.spec = embedder.spec
        self.dimension = embedder.dimension
        self.fingerprint = embedder.fingerprint
        self.tokenizer = embedder.tokenizer

    async def embed_documents(self, texts: Sequence[str]) -> Matrix:
        return await self._embedder.embed_documents(texts)

    async def embed_query(self, text: str) -> Vector:
        vector = self._vectors.pop(text, None)
        if vector is None:
            vector = await self._embedder.embed_query(text)
            vector.setflags(write=False)  # it is given out again
        self._vectors[text] = vector  # at the end: asked last
        if len(self._vectors) > REMEMBERED:
            del self._vectors[next(iter(self._vectors))]
        return vector

    async def close(self) -> None:
        await self._embedder.close()
