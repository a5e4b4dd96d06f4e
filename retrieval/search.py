"""The only place that combines words and vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from retrieval.analysis import analyze_query
from retrieval.embedders import Embedder
from retrieval.errors import DimensionMismatch
from retrieval.fusion import distinct, fuse
from retrieval.stores import VectorStore
from retrieval.stores.rows import cosines
from retrieval.types import Candidate, Hit, Index, Query, Vector

T = TypeVar("T")
U = TypeVar("U")

MIN_CANDIDATES = 100
"""How deep each list is read."""
CANDIDATES_PER_HIT = 4
JUDGES = 50
"""How many of each list weigh the two lists, however many hits are asked for. Read deeper, a list seems the surer of itself the
more of its tail is counted, and the order of the first hits would change with how many are asked for (decision 15)."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found, best first."""

    hits: tuple[Hit, ...]
    timings_ms: Mapping[str, float]
    """`embed`: until the question had its vector; `search`: everything else. Their sum is what the caller waited."""


class Searcher:
    """Searches one index at a time with the question's words, its meaning, or both."""

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self.store = store
        self.embedder = embedder

    async def search(self, index: Index, query: Query, languages: Collection[str]) -> Result:
        """The best `query.top_k` chunks of `index`, whose chunks are in `languages` (ISO 639-1 codes).

        Chunks of the same text count once. Mode `keyword` leaves the embedder alone, and its hits have the
        `vector_score` 0; mode `vector` reads no words, and its hits have the `keyword_score` 0. A hybrid question without
        any word (punctuation only) is answered by its vector.

        Raises what the store and the embedder raise, and `DimensionMismatch` if the index holds vectors of another length.
        """
        started = time.perf_counter()
        limit = max(MIN_CANDIDATES, CANDIDATES_PER_HIT * query.top_k)
        terms = [] if query.mode == "vector" else analyze_query(query.text, languages)
        if query.mode == "keyword":
            hits, embed_s = _by_keyword(await self._keyword(index, query, terms, limit)), 0.0
        else:
            (vector, nearest, embed_s), matching = await _together(
                self._nearest(index, query, limit), self._keyword(index, query, terms, limit)
            )
            hits = _by_both(vector, nearest, matching) if terms else _by_vector(nearest)
        best = _best(hits, query.top_k)
        total_s = time.perf_counter() - started
        return Result(best, MappingProxyType({"embed": 1000 * embed_s, "search": 1000 * (total_s - embed_s)}))

    async def _nearest(self, index: Index, query: Query, limit: int) -> tuple[Vector, list[Candidate], float]:
        """The question's vector, the chunks nearest to it, and the seconds that embedding took."""
        started = time.perf_counter()
        vector = await self.embedder.embed_query(query.text)
        embed_s = time.perf_counter() - started
        if vector.shape != (index.dimension,):
            raise DimensionMismatch(
                f"the index of collection {index.collection!r} holds vectors of length {index.dimension}, "
                f"{self.embedder.spec} makes {vector.shape[0]}: use the embedder that it was built with, or re-index it"
            )
        return vector, await self.store.nearest(index, vector, limit, query.filter), embed_s

    async def _keyword(self, index: Index, query: Query, terms: Sequence[str], limit: int) -> list[Candidate]:
        return await self.store.keyword(index, terms, limit, query.filter) if terms else []


async def _together(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Both results; if one fails or the caller goes away, the other is stopped before the error goes on."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Scored(NamedTuple):
    """A candidate with what its hit will say."""

    found: Candidate
    score: float
    vector_score: float
    keyword_score: float


def _by_keyword(matching: Iterable[Candidate]) -> list[_Scored]:
    return [_Scored(found, found.score, 0.0, found.score) for found in matching]


def _by_vector(nearest: Iterable[Candidate]) -> list[_Scored]:
    return [_Scored(found, found.score, found.score, 0.0) for found in nearest]


def _by_both(vector: Vector, nearest: Sequence[Candidate], matching: Sequence[Candidate]) -> list[_Scored]:
    """The union of both lists, scored by `fuse`.

    The cosine of every candidate comes from its stored vector, also where only the words found it: without it fusion loses
    1 to 9 points. What only the vectors found keeps a keyword score of 0, which loses nothing.
    """
    keyword_scores = {found.id: found.score for found in matching}
    alike = {found.id for found in nearest}
    others = [found for found in matching if found.id not in alike]
    candidates = [*nearest, *others]
    if not candidates:
        return []
    vector_scores = [found.score for found in nearest]
    if others:
        vector_scores += cosines(np.stack([found.vector for found in others]), vector).tolist()
    keywords = [keyword_scores.get(found.id, 0.0) for found in candidates]
    judges = {found.id for found in (*nearest[:JUDGES], *matching[:JUDGES])}
    fused = fuse(vector_scores, keywords, [found.id in judges for found in candidates])
    return list(map(_Scored, candidates, fused.tolist(), vector_scores, keywords))


def _best(scored: Iterable[_Scored], top_k: int) -> tuple[Hit, ...]:
    """The best hits of distinct texts; equal scores go by chunk id, so that the order never depends on the store's.

    Chunks are read in that order, and no more of them than it takes.
    """
    ranked = sorted(scored, key=lambda each: (-each.score, each.found.id))
    hits = (Hit(each.found.read(), each.score, each.vector_score, each.keyword_score) for each in ranked)
    return tuple(islice(distinct(hits, lambda hit: hit.chunk.text), top_k))
