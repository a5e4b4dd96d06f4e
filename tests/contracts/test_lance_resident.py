"""Tables in memory: the same answers as LanceDB's, and never those of an older version."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from retrieval.stores import lance_resident, open_store
from retrieval.stores.lance import LanceStore, open_lance
from retrieval.stores.lance_resident import ASKED, Postings, Resident
from retrieval.stores.rows import place_name
from retrieval.types import Compare
from tests.contracts.rows_for_tests import WORDS, bm25, document, ids, unit_vectors
from tests.contracts.store_contract import new_index
from tests.contracts.test_stores_agree import assert_alike

SETTLED = 0.05


@pytest.fixture
async def store(tmp_path):
    store = await open_lance(f"lance:{tmp_path}", settled=SETTLED)
    yield store
    await store.close()


@pytest.fixture
async def index(store):
    index = new_index()
    await store.create(index)
    return index


async def resident(store: LanceStore, index) -> Resident:
    """The table in memory, once it was asked for often enough and nobody wrote for a moment."""
    for _ in range(200):
        if found := store._resident(index, 1, None):
            return found
        await asyncio.sleep(0.02)
    pytest.fail("the table was never loaded")


async def test_memory_and_lancedb_give_the_same_candidates_version_after_version(store, index):
    random = np.random.default_rng(1)
    for version in range(1, 3):
        await store.replace(
            index, {f"d{n}": document(f"d{n}", 40, version=version, seed=n) for n in range(version, version + 4)}
        )
        await store.tidy(index)  # LanceDB scores rows that are not indexed yet by other statistics than those that are
        held = await resident(store, index)
        everywhere = Compare("document_id", "exists", value=True)  # a filter that all pass goes to LanceDB
        for question in unit_vectors(4, seed=version):
            terms = [str(word) for word in random.choice([*WORDS, "every", "absent"], size=random.integers(1, 6))]
            for limit in (1, 20, 1000):
                assert_alike(held.nearest(question, limit), await store.nearest(index, question, limit, everywhere))
                assert_alike(held.keyword(terms, limit), await store.keyword(index, terms, limit, everywhere))
        best = held.nearest(question, 5)
        assert [each.read() for each in best] == [each.read() for each in await store.nearest(index, question, 5, everywhere)]


async def test_every_write_of_anybody_is_seen_by_the_next_search(store, index, tmp_path):
    other = await open_store(f"lance:{tmp_path}")
    rows = document("d", 6)

    async def seen() -> set[str]:
        near, words = await store.nearest(index, rows[0].vector, 50), await store.keyword(index, ["every"], 50)
        assert set(ids(near)) == set(ids(words))
        return set(ids(near))

    def written(*given) -> set[str]:
        return {row.chunk.id for rows in given for row in rows}

    await store.replace(index, {"d": rows})
    await resident(store, index)
    for turn in range(20):  # without a pause, so within one tick of a coarse clock
        added = document(f"e{turn}", 2, seed=turn + 1)
        await (store, other)[turn % 2].replace(index, {f"e{turn}": added})
        assert written(added) <= await seen()
        await (other, store)[turn % 2].replace(index, {f"e{turn}": []})
        assert await seen() == written(rows)
    await resident(store, index)
    await other.drop(index)
    assert await seen() == set()
    await other.create(index)
    assert await seen() == set()
    await other.replace(index, {"d": rows[:2]})
    assert await seen() == written(rows[:2])
    await other.close()


async def test_another_process_that_writes_is_seen_too(store, index, tmp_path):
    await store.replace(index, {"d": document("d", 6)})
    await resident(store, index)
    arguments = ["-m", "tests.contracts.lance_writer", f"lance:{tmp_path}", index.generation, "x", "1"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    assert len(await store.keyword(index, ["every"], 50)) == 6 + 5 + 6


async def test_nothing_is_loaded_while_documents_come_in(tmp_path):
    store, index = await open_lance(f"lance:{tmp_path}", settled=3600), new_index()
    await store.create(index)
    await store.replace(index, {"d": document("d", 3)})
    for _ in range(3 * ASKED):
        assert len(await store.keyword(index, ["every"], 5)) == 3
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({f"load {place_name(index)}"})
    await store.close()


async def test_what_was_not_asked_for_longest_makes_room(store, monkeypatch):
    indexes = [new_index(f"c{number}") for number in range(3)]
    for each in indexes:
        await store.create(each)
        await store.replace(each, {"d": document("d", 30)})
    first = await resident(store, indexes[0])
    monkeypatch.setattr(lance_resident, "MOST_BYTES", 2 * first.nbytes + first.nbytes // 2)
    await resident(store, indexes[1])
    assert store._resident(indexes[0], 1, None) is first
    await resident(store, indexes[2])
    assert store._resident(indexes[1], 1, None) is None
    assert store._resident(indexes[0], 1, None) is first


async def test_a_large_table_is_left_to_lancedb(store, index, monkeypatch):
    monkeypatch.setattr(lance_resident, "MOST_ROWS", 5)
    await store.replace(index, {"d": document("d", 6)})
    await asyncio.sleep(SETTLED)
    for _ in range(2 * ASKED):
        assert len(await store.keyword(index, ["every"], 50)) == 6
        await asyncio.sleep(0.02)
    assert store._resident(index, 1, None) is None


def test_words_are_scored_as_bm25_defines_it():
    import pyarrow as pa

    random = np.random.default_rng(0)
    corpus = [" ".join(random.choice(WORDS, size=random.integers(0, 30))) for _ in range(50)]
    question = ["w1", "w7", "absent"]
    np.testing.assert_allclose(Postings(pa.chunked_array([corpus])).scores(question), bm25(corpus, question))
    assert Postings(pa.chunked_array([["", ""]])).scores(["w1"]).tolist() == [0, 0]
    assert Postings(pa.chunked_array([], pa.string())).scores(["w1"]).tolist() == []
