"""Small LanceDB tables that are asked again and again, kept in memory: exact searches in a tenth of a millisecond.

LanceDB plans and runs each search in 3 to 7 ms of CPU, whatever the size of the table. What is kept here is one version of a
table, and each search first asks the file system whether that is still the newest: every commit of any process writes into
the table's folder `_versions`, so the folder's inode and time of change name the version. A time of change is only as fine as
the kernel's clock, so two commits of one moment may look like one: a version counts as known once it is `SETTLED` old.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from retrieval.stores.lance_table import CHUNK_COLUMNS, chunk_at, vectors_of
from retrieval.stores.rows import Scores, cosines, ranked
from retrieval.types import Candidate, Vector

log = logging.getLogger(__name__)

K1, B = 1.2, 0.75
ASKED = 3
"""Searches of one version before it is loaded: that costs as much as a few of them."""
SETTLED = 1.0
"""Seconds; while documents come in, LanceDB answers, and nothing is loaded for each commit."""
MOST_ROWS = 10_000
MOST_BYTES = 64 * 1024 * 1024
"""Of all tables together; those that were not asked for longest go first."""
DECODED = 512
"""Chunks of each table that stay decoded: questions find some passages again and again."""
ROUNDING = 1e-5
"""More than float32 sums of one dot product differ."""

Version: TypeAlias = tuple[int, int]
"""Inode and time of change (ns) of a table's `_versions`."""


def version_of(table_folder: Path) -> Version | None:
    """Names the newest version of a table; None where there is none. A few microseconds."""
    try:
        status = os.stat(table_folder / "_versions")  # noqa: PTH116 - Path.stat is twice as slow
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


class Resident:
    """One version of one table."""

    def __init__(self, rows: Any) -> None:
        """`rows` is the table's Arrow table with the columns of a chunk, `vector` and `terms`."""
        self._rows = rows.select(list(CHUNK_COLUMNS)).combine_chunks()
        self._ids = self._rows.column("id").to_pylist()
        self._vectors = vectors_of(rows)
        self._read = lru_cache(DECODED)(partial(chunk_at, self._rows))
        self._words = Postings(rows.column("terms"))
        decoded = 2 * self._rows.nbytes * min(len(self._ids), DECODED) // max(len(self._ids), 1)
        self.nbytes = self._rows.nbytes + self._vectors.nbytes + self._words.nbytes + decoded

    def nearest(self, vector: Vector, limit: int) -> list[Candidate]:
        """As `VectorStore.nearest`: a fast look at all rows, then the exact cosines of those that may be among the best."""
        rough = self._vectors @ vector
        least = np.partition(rough, -limit)[-limit] - ROUNDING if len(rough) > limit else -np.inf
        near = np.flatnonzero(rough >= least)
        return self._best(near, cosines(self._vectors[near], vector), limit)

    def keyword(self, terms: Sequence[str], limit: int) -> list[Candidate]:
        """As `VectorStore.keyword`."""
        scores = self._words.scores(terms)
        found = np.flatnonzero(scores)
        return self._best(found, scores[found], limit)

    def _best(self, places: npt.NDArray[np.intp], scores: Scores, limit: int) -> list[Candidate]:
        where, points = places.tolist(), scores.tolist()
        ids = [self._ids[place] for place in where]
        best = [(where[at], points[at]) for at in ranked(ids, scores, limit)]
        return [Candidate(self._ids[at], self._vectors[at], score, partial(self._read, at)) for at, score in best]


class Postings:
    """Which rows hold a term, and the BM25 score that it gives each."""

    def __init__(self, terms: Any) -> None:
        """`terms` is an Arrow column of analysed terms, joined by spaces."""
        words = pc.utf8_split_whitespace(terms).combine_chunks()
        rows = len(words)
        row = np.repeat(np.arange(rows), pc.list_value_length(words).to_numpy())
        coded = pc.list_flatten(words).dictionary_encode()
        code = coded.indices.to_numpy()
        vocabulary = coded.dictionary.to_pylist()
        blank = vocabulary.index("") if "" in vocabulary else -1  # a row without terms splits into one empty word
        row, code = row[code != blank], code[code != blank]
        lengths = np.bincount(row, minlength=rows)
        pairs, counts = np.unique(code.astype(np.int64) * rows + row, return_counts=True)
        codes, self._row = np.divmod(pairs, max(rows, 1))
        holding = np.bincount(codes, minlength=len(vocabulary))
        norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9)) if rows else lengths
        idf = np.log1p((rows - holding + 0.5) / (holding + 0.5))
        self._weight = (K1 + 1) * idf[codes] * counts / (counts + norm[self._row])
        self._start = np.concatenate([[0], np.cumsum(holding)])
        self._code = {word: place for place, word in enumerate(vocabulary)}
        self._rows = rows

    def scores(self, terms: Sequence[str]) -> Scores:
        """Shape (rows,): the BM25 score of each row, 0 where no term occurs."""
        scores = np.zeros(self._rows)
        for code in (self._code[term] for term in terms if term in self._code):
            part = slice(self._start[code], self._start[code + 1])
            scores[self._row[part]] += self._weight[part]
        return scores

    @property
    def nbytes(self) -> int:
        return self._row.nbytes + self._weight.nbytes + 120 * len(self._code)


@dataclass
class _Place:
    """What is known of one table at one version."""

    version: Version
    asked: int = 0
    loading: asyncio.Task[None] | None = None
    resident: Resident | None = None


class Residents:
    """Decides what is kept, and never gives out what is not the newest."""

    def __init__(self, folder: Path, read: Callable[[str, int], Awaitable[Any | None]], *, settled: float = SETTLED) -> None:
        """`read(name, rows)` gives a table's newest version as an Arrow table, None if it has more than `rows` rows."""
        self._folder = folder
        self._read = read
        self._settled = settled
        self._places: dict[str, _Place] = {}

    def get(self, name: str) -> Resident | None:
        """The newest version of a table if it is in memory; a table that is asked often will be, soon."""
        version = version_of(self._folder / f"{name}.lance")
        place = self._places.pop(name, None)
        if version is None:
            return None
        if place is None or place.version != version:
            place = _Place(version)
        self._places[name] = place  # at the end: asked last
        place.asked += 1
        if place.asked >= ASKED and place.loading is None and time.time() - version[1] / 1e9 > self._settled:
            place.loading = asyncio.create_task(self._load(name, place), name=f"load {name}")
        return place.resident

    async def close(self) -> None:
        """Stop what is being loaded."""
        tasks = [place.loading for place in self._places.values() if place.loading is not None]
        self._places.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, name: str, place: _Place) -> None:
        try:
            rows = await self._read(name, MOST_ROWS)
        except (RuntimeError, ValueError, OSError):
            log.warning("could not read the LanceDB table %s into memory", name, exc_info=True)
            return
        if rows is None:
            return
        resident = await asyncio.to_thread(Resident, rows)
        # The version was settled before the rows were read, so if it is still the newest, they are its rows.
        if version_of(self._folder / f"{name}.lance") == place.version and resident.nbytes <= MOST_BYTES:
            place.resident = resident
            self._make_room()

    def _make_room(self) -> None:
        held = [place for place in self._places.values() if place.resident is not None]
        total = sum(place.resident.nbytes for place in held if place.resident is not None)
        for place in held:
            if total <= MOST_BYTES or place.resident is None:
                return
            total -= place.resident.nbytes
            place.resident, place.loading, place.asked = None, None, 0
