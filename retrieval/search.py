"""The only place that combines words and vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from retrieval.analysis import analyze_query
from retrieval.embedders import Embedder
from retrieval.errors import DimensionMismatch
from retrieval.fusion import distinct, fuse
from retrieval.stores import VectorStore
from retrieval.stores.rows import cosines, ranked
from retrieval.types import NO_CANDIDATES, Candidates, Chunk, Hit, Index, Query, Scores, Vector

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

    async def _nearest(self, index: Index, query: Query, limit: int) -> tuple[Vector, Candidates, float]:
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

    async def _keyword(self, index: Index, query: Query, terms: Sequence[str], limit: int) -> Candidates:
        return await self.store.keyword(index, terms, limit, query.filter) if terms else NO_CANDIDATES


async def _together(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Both results; if one fails or the caller goes away, the other is stopped before the error goes on."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Candidates with what their hits will say, in any order."""

    ids: Sequence[str]
    scores: Scores
    vector_scores: Scores
    keyword_scores: Scores
    read: Callable[[int], Chunk]


def _by_keyword(matching: Candidates) -> _Scored:
    return _Scored(matching.ids, matching.scores, np.zeros(len(matching)), matching.scores, matching.read)


def _by_vector(nearest: Candidates) -> _Scored:
    return _Scored(nearest.ids, nearest.scores, nearest.scores, np.zeros(len(nearest)), nearest.read)


def _by_both(vector: Vector, nearest: Candidates, matching: Candidates) -> _Scored:
    """The union of both lists, scored by `fuse`.

    The cosine of every candidate comes from its stored vector, also where only the words found it: without it fusion loses
    1 to 9 points. What only the vectors found keeps a keyword score of 0, which loses nothing.
    """
    ids, others = list(nearest.ids), []  # the places in `matching` of what only the words found; they come after the nearest
    place_of = {id_: place for place, id_ in enumerate(ids)}
    for at, id_ in enumerate(matching.ids):
        if id_ not in place_of:
            place_of[id_] = len(ids)
            ids.append(id_)
            others.append(at)
    places = np.array([place_of[id_] for id_ in matching.ids], np.intp)
    alike = cosines(matching.vectors(np.array(others)), vector) if others else np.empty(0)
    vector_scores = np.concatenate([nearest.scores, alike])
    keyword_scores = np.zeros(len(ids))
    keyword_scores[places] = matching.scores
    judges = np.zeros(len(ids), bool)
    judges[: min(JUDGES, len(nearest))] = True
    judges[places[:JUDGES]] = True

    def read(place: int) -> Chunk:
        return nearest.read(place) if place < len(nearest) else matching.read(others[place - len(nearest)])

    return _Scored(ids, fuse(vector_scores, keyword_scores, judges), vector_scores, keyword_scores, read)


def _best(scored: _Scored, top_k: int) -> tuple[Hit, ...]:
    """The best hits of distinct texts; equal scores go by chunk id, so that the order never depends on the store's.

    Chunks are read in that order, and no more of them than it takes.
    """

    def hit(place: int) -> Hit:
        score, by_vector, by_keyword = scored.scores[place], scored.vector_scores[place], scored.keyword_scores[place]
        return Hit(scored.read(place), float(score), float(by_vector), float(by_keyword))

    hits = map(hit, ranked(scored.ids, scored.scores, len(scored.ids)).tolist())
    return tuple(islice(distinct(hits, lambda hit: hit.chunk.text), top_k))
