"""Tables in memory: the same answers as LanceDB's, and never those of an older version."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from retrieval.stores import lance_resident, open_store
from retrieval.stores.lance import LanceStore, open_lance
from retrieval.stores.lance_resident import ASKED, Part, Resident
from retrieval.stores.lance_table import table_schema
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
        if found := await store._resident(index, 1, None):
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
        assert [each.chunk for each in best] == [each.chunk for each in await store.nearest(index, question, 5, everywhere)]


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


async def loaded_once(store, index) -> list[str]:
    """Names of the loads that run from here on; there should be none."""
    seen: list[str] = []
    whole = store._residents._whole

    async def noted(name, place):
        seen.append(name)
        return await whole(name, place)

    store._residents._whole = noted
    return seen


@pytest.mark.parametrize("settled", [SETTLED, 3600.0])
async def test_memory_follows_what_is_written_without_being_loaded_anew(tmp_path, settled, monkeypatch):
    """Documents come, change, lose rows and go; what is found is what LanceDB finds, from the very next search on."""
    monkeypatch.setattr("retrieval.stores.lance.TIDY_DELAY", 600)
    store, index = await open_lance(f"lance:{tmp_path}", settled=settled), new_index()
    await store.create(index)
    await store.replace(index, {f"d{n}": document(f"d{n}", 30, seed=n) for n in range(20)})
    await store.tidy(index)
    await resident(store, index)
    loads = await loaded_once(store, index)
    everywhere = Compare("document_id", "exists", value=True)
    [question] = unit_vectors(1, seed=5)
    for turn in range(20):
        kind, target = turn % 4, f"d{turn % 7}"
        rows = {0: document(f"n{turn}", 5, seed=100 + turn), 1: document(target, 12, version=2 + turn, seed=turn)}
        await store.replace(index, {(f"n{turn}" if kind == 0 else target): rows.get(kind, document(target, 3)[:kind])})
        held = await store._resident(index, 10, None)
        assert held is not None
        found, wanted = held.nearest(question, 1000), await store.nearest(index, question, 1000, everywhere)
        assert_alike(found, wanted)
        assert [each.chunk for each in found[:5]] == [each.chunk for each in wanted[:5]]
        assert set(ids(held.keyword(["every"], 1000))) == set(ids(wanted))
    assert len(held.parts) > 5
    assert loads == []
    await store.close()


async def test_memory_whose_rows_have_all_died_finds_nothing(store, index):
    rows = document("a", 5)
    await store.replace(index, {"a": rows})
    await resident(store, index)
    await store.replace(index, {"b": document("b", 5, seed=2)})
    assert len(await store.nearest(index, rows[0].vector, 20)) == 10
    await store.replace(index, {"a": [], "b": []})
    held = await store._resident(index, 10, None)
    assert held is not None
    assert (len(held.parts), held.rows) == (2, 0)
    assert not held.nearest(rows[0].vector, 5)
    assert not held.keyword(["every"], 5)


async def test_a_table_that_was_dropped_and_made_again_is_another(store, index, tmp_path):
    """It has the versions, the row addresses and, mostly, the folder's inode of the one before."""
    other = await open_store(f"lance:{tmp_path}")
    for turn in range(6):
        rows = document("d", 6, version=turn, seed=turn)
        await other.create(index)
        await other.replace(index, {"d": rows})
        assert set(ids(await store.nearest(index, rows[0].vector, 50))) == {row.chunk.id for row in rows}
        await resident(store, index)
        assert set(ids(await store.keyword(index, ["every"], 50))) == {row.chunk.id for row in rows}
        await other.drop(index)
    assert not await store.nearest(index, rows[0].vector, 50)
    await other.close()


async def test_a_row_that_is_written_again_under_its_id_is_read_again(store, index):
    """As a repair does: the id says what the text was, not what the row holds."""
    await store.replace(index, {f"d{n}": document(f"d{n}", 5, seed=n) for n in range(3)})
    await resident(store, index)
    rows, other = document("d1", 5, seed=1), unit_vectors(1, seed=77)[0]
    row, rows[2] = rows[2], replace(rows[2], vector=other, terms="every rewritten")
    await store.replace(index, {"d1": rows})
    held = await store._resident(index, 10, None)
    assert held is not None
    assert ids(held.keyword(["rewritten"], 5)) == [row.chunk.id] == ids(held.nearest(other, 1))


async def test_scores_count_the_living_alone(store, index):
    """By all documents that are there, whichever part holds them, as if the table had been loaded now."""
    await store.replace(index, {f"d{n}": document(f"d{n}", 20, seed=n) for n in range(6)})
    await resident(store, index)
    for n in range(3):
        await store.replace(index, {f"d{n}": document(f"d{n}", 9, version=2, seed=50 + n)})
    followed = await store._resident(index, 10, None)
    anew = await store._residents._whole(place_name(index), lance_resident._Place(0))
    for terms in (["w1"], ["w2", "every", "w2"], ["absent"]):
        left, right = followed.keyword(terms, 100), anew.keyword(terms, 100)
        assert ids(left) == ids(right)
        np.testing.assert_allclose([each.score for each in left], [each.score for each in right])
    assert len(followed.parts) > 1 == len(anew.parts)


async def test_after_a_merge_of_all_files_the_table_is_loaded_anew(store, index, monkeypatch):
    monkeypatch.setattr(lance_resident, "FEW_ROWS", 5)
    await store.replace(index, {"d": document("d", 30)})
    await store.replace(index, {"e": document("e", 30, seed=2)})
    await resident(store, index)
    await store.tidy(index)
    assert len(await store.keyword(index, ["every"], 100)) == 60
    held = await resident(store, index)
    assert (len(held.parts), held.rows) == (1, 60)


async def test_what_was_not_asked_for_longest_makes_room(store, monkeypatch):
    indexes = [new_index(f"c{number}") for number in range(3)]
    for each in indexes:
        await store.create(each)
        await store.replace(each, {"d": document("d", 30)})
    first = await resident(store, indexes[0])
    monkeypatch.setattr(lance_resident, "MOST_BYTES", 2 * first.nbytes + first.nbytes // 2)
    await resident(store, indexes[1])
    assert await store._resident(indexes[0], 1, None) is first
    await resident(store, indexes[2])
    assert await store._resident(indexes[1], 1, None) is None
    assert await store._resident(indexes[0], 1, None) is first


async def test_a_large_table_is_left_to_lancedb(store, index, monkeypatch):
    monkeypatch.setattr(lance_resident, "MOST_ROWS", 5)
    await store.replace(index, {"d": document("d", 6)})
    await asyncio.sleep(SETTLED)
    for _ in range(2 * ASKED):
        assert len(await store.keyword(index, ["every"], 50)) == 6
        await asyncio.sleep(0.02)
    assert await store._resident(index, 1, None) is None


def held(*corpus: str) -> Resident:
    rows = len(corpus)
    schema = table_schema(2)
    columns = {field.name: pa.nulls(rows, field.type) for field in schema}
    columns |= {"id": pa.array([str(at) for at in range(rows)]), "terms": pa.array(corpus, pa.string())}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows, np.float32)), 2)
    return Resident(1, [Part(pa.table(columns).append_column("_rowid", pa.array(range(rows), pa.uint64())))])


def test_words_are_scored_as_bm25_defines_it():
    random = np.random.default_rng(0)
    corpus = [" ".join(random.choice(WORDS, size=random.integers(0, 30))) for _ in range(50)]
    question = ["w1", "w7", "absent"]
    np.testing.assert_allclose(held(*corpus).scores(question), bm25(corpus, question))
    assert held("", "").scores(["w1"]).tolist() == [0, 0]
    assert held().scores(["w1"]).tolist() == []
