"""Small LanceDB tables that are asked again and again, kept in memory: exact searches in a tenth of a millisecond.

LanceDB plans and runs each search in 3 to 7 ms of CPU whatever the size of the table, and in 30 to 50 while others write to it.
What is kept here is one version of a table. Each search first asks the file system whether that is still the newest: every
commit of any process writes into the table's folder `_versions`, so the folder's inode and time of change name the version.
A time of change is only as fine as the file system's clock, so two commits of one moment may look like one: until a version is
`SETTLED` old, the table itself is asked for its number.

A version that came since is reached by what changed. Rows of LanceDB are never written over: each has an address, and one that
is changed or moved gets another. So the rows whose addresses are gone are dead, and only those with new addresses are read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from retrieval.stores.lance_table import CHUNK_COLUMNS, SEARCHED, chunk_at, vectors_of
from retrieval.stores.rows import cosines, ranked
from retrieval.types import Candidates, Chunk, Matrix, Places, Scores, Vector

log = logging.getLogger(__name__)

K1, B = 1.2, 0.75
ASKED = 3
"""Searches of a table before it is loaded: that costs as much as a few of them."""
SETTLED = 1.0
"""Seconds: no file system's clock is coarser."""
MOST_ROWS = 10_000
MOST_BYTES = 64 * 1024 * 1024
"""Of all tables together; those that were not asked for longest go first."""
MOST_PARTS = 32
"""A table that was reached by so many changes is loaded anew."""
MOST_FRESH, FEW_ROWS = 0.25, 500
"""Share of rows that a change may bring, unless they are few: after more, as after a merge of the table's files, a table is
loaded anew. So it is when so large a share of what is in memory is dead."""
RETRY_SECONDS, TOO_LARGE_SECONDS = 5.0, 60.0
"""After so long a table that could not be read, or was too large, is looked at again."""
LOADING_SHARE = 0.2
"""Of the time, at most, goes into loading a table again and again."""
DECODED = 512
"""Chunks of each part that stay decoded: questions find some passages again and again."""
ROUNDING = 1e-5
"""More than float32 sums of one dot product differ."""

Version: TypeAlias = tuple[int, int]
"""Inode and time of change (ns) of a table's `_versions`."""
Manifest: TypeAlias = tuple[int, int]
"""Inode and time of change (ns) of the file that a commit wrote: another table of the same name has others."""
Addresses: TypeAlias = npt.NDArray[np.uint64]


def version_of(table_folder: Path) -> Version | None:
    """Names the newest version of a table; None where there is none. A few microseconds."""
    try:
        status = os.stat(table_folder / "_versions")  # noqa: PTH116 - Path.stat is twice as slow
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


def manifest_of(table_folder: Path, number: int) -> Manifest | None:
    """Names a version for good, as long as LanceDB keeps it; None if it does not, or names its files in another way."""
    for name in (f"{2**64 - 1 - number:020}.manifest", f"{number}.manifest"):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(table_folder / "_versions" / name)  # noqa: PTH116
            return status.st_ino, status.st_mtime_ns
    return None


class Postings:
    """Which rows hold a term and how often, and how many terms each row has (`lengths`)."""

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
        self.lengths = np.bincount(row, minlength=rows)
        pairs, counts = np.unique(code.astype(np.int64) * rows + row, return_counts=True)
        codes, self._row = np.divmod(pairs, max(rows, 1))
        self._count = counts.astype(np.float32)
        self._start = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(vocabulary)))])
        self._code = {word: place for place, word in enumerate(vocabulary)}

    def of(self, term: str) -> tuple[Places, npt.NDArray[np.float32]] | None:
        """The rows that hold a term, and how often; None if there are none."""
        code = self._code.get(term)
        if code is None:
            return None
        part = slice(self._start[code], self._start[code + 1])
        return self._row[part], self._count[part]

    @property
    def nbytes(self) -> int:
        return self._row.nbytes + self._count.nbytes + self.lengths.nbytes + 120 * len(self._code)


class Part:
    """Rows that were read at once, and never change."""

    def __init__(self, rows: Any) -> None:
        """`rows` is an Arrow table with the columns of a chunk, `vector`, `terms` and `_rowid`."""
        chunks = rows.select(list(CHUNK_COLUMNS)).combine_chunks()
        self.addresses: Addresses = rows.column("_rowid").to_numpy()
        self.ids: list[str] = chunks.column("id").to_pylist()
        self.vectors = vectors_of(rows)
        self.words = Postings(rows.column("terms"))
        self.read = lru_cache(DECODED)(partial(chunk_at, chunks))
        decoded = 2 * chunks.nbytes * min(len(self.ids), DECODED) // max(len(self.ids), 1)
        self.nbytes = chunks.nbytes + self.vectors.nbytes + self.words.nbytes + decoded


class Resident:
    """One version of one table: the rows of its parts that are `alive`, counted through all parts."""

    def __init__(
        self,
        number: int,
        parts: Sequence[Part],
        alive: npt.NDArray[np.bool_] | None = None,
        *,
        manifest: Manifest | None = None,
    ) -> None:
        self.number = number
        self.manifest = manifest
        self.parts = parts
        self._firsts: list[int] = np.cumsum([0, *(len(part.ids) for part in parts)]).tolist()
        self.alive = np.ones(self._firsts[-1], bool) if alive is None else alive
        self.rows = int(self.alive.sum())
        lengths = np.concatenate([part.words.lengths for part in parts])
        mean = lengths[self.alive].mean() if self.rows else 0.0
        self._norm = K1 * (1 - B + B * lengths / max(mean, 1e-9))
        self.addresses: Addresses = np.concatenate([part.addresses for part in parts])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def changed(self, addresses: Addresses) -> tuple[npt.NDArray[np.bool_], Addresses]:
        """Which rows are alive in a version with these addresses, and those that it has more."""
        alive = self.alive & np.isin(self.addresses, addresses)
        return alive, np.setdiff1d(addresses, self.addresses[alive])

    def nearest(self, vector: Vector, limit: int) -> Candidates:
        """As `VectorStore.nearest`: a fast look at all rows, then the exact cosines of those that may be among the best."""
        rough = np.concatenate([part.vectors @ vector for part in self.parts])
        rough[~self.alive] = -np.inf
        least = np.partition(rough, -limit)[-limit] - ROUNDING if len(rough) > limit else -np.inf
        near = np.flatnonzero((rough >= least) & self.alive)
        return self._best(near, cosines(self._vectors(near), vector), limit)

    def keyword(self, terms: Sequence[str], limit: int) -> Candidates:
        """As `VectorStore.keyword`."""
        scores = self.scores(terms)
        found = np.flatnonzero(scores)
        return self._best(found, scores[found], limit)

    def scores(self, terms: Sequence[str]) -> Scores:
        """The BM25 score of each row of all parts; 0 where no term occurs, and of the dead."""
        held = [(at, first + found[0], found[1]) for at, term in enumerate(terms) for first, found in self._holding(term)]
        if not held:
            return np.zeros(len(self.alive))
        rows, counts = np.concatenate([each[1] for each in held]), np.concatenate([each[2] for each in held])
        term = np.repeat([each[0] for each in held], [len(each[1]) for each in held])
        if self.rows < len(self.alive):
            living = self.alive[rows]
            rows, counts, term = rows[living], counts[living], term[living]
        frequency = np.bincount(term, minlength=len(terms))
        idf = np.log1p((self.rows - frequency + 0.5) / (frequency + 0.5))
        points = (K1 + 1) * idf[term] * counts / (counts + self._norm[rows])
        return np.bincount(rows, points, len(self.alive)).astype(np.float64, copy=False)

    def _holding(self, term: str) -> list[tuple[int, tuple[Places, npt.NDArray[np.float32]]]]:
        held = ((start, part.words.of(term)) for start, part in zip(self._firsts, self.parts, strict=False))
        return [(start, found) for start, found in held if found is not None]

    def _best(self, places: Places, scores: Scores, limit: int) -> Candidates:
        if len(scores) > limit:  # of the many rows that hold some word, few need names
            good = scores >= np.partition(scores, -limit)[-limit]
            places, scores = places[good], scores[good]
        ids = [part.ids[row] for part, row in map(self._at, places.tolist())]
        best = ranked(ids, scores, limit)
        chosen = places[best]

        def read(place: int) -> Chunk:
            part, row = self._at(int(chosen[place]))
            return part.read(row)

        return Candidates([ids[at] for at in best.tolist()], scores[best], lambda some: self._vectors(chosen[some]), read)

    def _at(self, place: int) -> tuple[Part, int]:
        """The part that holds a row, and the row's place in it."""
        home = bisect_right(self._firsts, place) - 1
        return self.parts[home], place - self._firsts[home]

    def _vectors(self, places: Places) -> Matrix:
        if len(self.parts) == 1:
            return self.parts[0].vectors[places]
        vectors = np.empty((len(places), self.parts[0].vectors.shape[1]), np.float32)
        for at, (part, row) in enumerate(map(self._at, places.tolist())):
            vectors[at] = part.vectors[row]
        return vectors


@dataclass
class _Place:
    """What is known of one table."""

    inode: int
    asked: int = 0
    loading: asyncio.Task[None] | None = None
    retry_at: float = 0.0
    resident: Resident | None = None
    sure: Version | None = None
    """The version whose rows `resident` has for certain, without asking the table."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Residents:
    """Decides what is kept, and never gives out what is not the newest."""

    def __init__(self, folder: Path, open_table: Callable[[str], Awaitable[Any | None]], *, settled: float = SETTLED) -> None:
        """`open_table` gives the newest version of a table by its name, if there is one."""
        self._folder = folder
        self._open = open_table
        self._settled = settled
        self._places: dict[str, _Place] = {}

    async def get(self, name: str) -> Resident | None:
        """The newest version of a table if it is in memory; a table that is asked often will be, soon."""
        version = version_of(self._folder / f"{name}.lance")
        place = self._places.pop(name, None)
        if version is None:
            return None
        if place is None or place.inode != version[0]:  # it is another table of that name
            place = _Place(version[0])
        self._places[name] = place  # at the end: asked last
        place.asked += 1
        if place.resident is not None and place.sure != version:
            await self._follow(name, place)
        if place.resident is None and place.loading is None and place.asked >= ASKED and time.monotonic() >= place.retry_at:
            place.loading = asyncio.create_task(self._load(name, place), name=f"load {name}")
        return place.resident

    async def close(self) -> None:
        """Stop what is being loaded."""
        tasks = [place.loading for place in self._places.values() if place.loading is not None]
        self._places.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, place: _Place) -> None:
        """Bring what is in memory to the version that is the newest now.

        Whoever asked looks for himself: what another found may have been the newest before he asked, and not any more.
        """
        async with place.turn:
            version, now = version_of(self._folder / f"{name}.lance"), time.time()
            resident = place.resident
            if resident is None or place.sure == version:
                return
            try:
                place.resident = await self._newest(name, place, resident) if version and version[0] == place.inode else None
            except (RuntimeError, ValueError, OSError):
                log.warning("could not follow the LanceDB table %s in memory", name, exc_info=True)
                place.resident = None
            # A commit after this look would have another time: the clock has moved on.
            place.sure = version if version and now - version[1] / 1e9 > self._settled else None
            self._make_room()

    async def _newest(self, name: str, place: _Place, resident: Resident) -> Resident | None:
        table = await self._open(name)
        if table is None:
            return None
        number = await table.version()
        # A table that was dropped and made again counts its versions and rows from the beginning.
        is_same = resident.manifest is not None and self._manifest(name, resident.number) == resident.manifest
        if is_same and number == resident.number:
            return resident
        followed = await self._followed(name, table, number, resident) if is_same else None
        if followed is None and time.monotonic() >= place.retry_at:
            return await self._whole(name, place)
        return followed

    async def _followed(self, name: str, table: Any, number: int, resident: Resident) -> Resident | None:
        """A later version by what changed; None if that is too much, or the table has become too large."""
        manifest = self._manifest(name, number)
        await table.checkout(number)  # all that is read now is of this version
        addresses = (await table.query().select([]).with_row_id().to_arrow()).column("_rowid").to_numpy()
        alive, fresh = resident.changed(addresses)
        too_much = max(FEW_ROWS, MOST_FRESH * len(alive))
        is_much = max(len(fresh), len(alive) - alive.sum()) > too_much or len(resident.parts) >= MOST_PARTS
        if is_much or len(addresses) > MOST_ROWS:
            return None
        if not len(fresh):
            return Resident(number, resident.parts, alive, manifest=manifest)
        rows = await table.take_row_ids(fresh.tolist()).select([*SEARCHED, "terms"]).with_row_id().to_arrow()
        part = await asyncio.to_thread(Part, rows)
        if self._manifest(name, number) != manifest:
            return None
        alive = np.concatenate([alive, np.ones(len(part.ids), bool)])
        return Resident(number, [*resident.parts, part], alive, manifest=manifest)

    async def _load(self, name: str, place: _Place) -> None:
        try:
            resident = await self._whole(name, place)
        except (RuntimeError, ValueError, OSError):
            log.warning("could not read the LanceDB table %s into memory", name, exc_info=True)
            return
        finally:
            place.loading = None
        if resident is not None and self._places.get(name) is place:
            place.resident, place.sure = resident, None
            self._make_room()

    async def _whole(self, name: str, place: _Place) -> Resident | None:
        began = time.monotonic()
        place.retry_at = began + RETRY_SECONDS
        table = await self._open(name)
        if table is None:
            return None
        number = await table.version()
        manifest = self._manifest(name, number)
        await table.checkout(number)
        if await table.count_rows() > MOST_ROWS:
            place.retry_at = began + TOO_LARGE_SECONDS
            return None
        rows = await table.query().select([*SEARCHED, "terms"]).with_row_id().to_arrow()
        resident = Resident(number, [await asyncio.to_thread(Part, rows)], manifest=manifest)
        is_small = resident.nbytes <= MOST_BYTES
        took = time.monotonic() - began
        place.retry_at = time.monotonic() + (took / LOADING_SHARE if is_small else TOO_LARGE_SECONDS)
        return resident if is_small and self._manifest(name, number) == manifest else None

    def _manifest(self, name: str, number: int) -> Manifest | None:
        return manifest_of(self._folder / f"{name}.lance", number)

    def _make_room(self) -> None:
        held = [place for place in self._places.values() if place.resident is not None]
        total = sum(place.resident.nbytes for place in held if place.resident is not None)
        for place in held:
            if total <= MOST_BYTES or place.resident is None:
                return
            total -= place.resident.nbytes
            place.resident, place.asked = None, 0
