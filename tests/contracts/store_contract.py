"""What every vector store must do. A suite of a store inherits this and provides `open_one`, which opens it again and again."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from retrieval.digest import digest_of
from retrieval.errors import DimensionMismatch, StoreRejected
from retrieval.stores import VectorStore
from retrieval.types import Compare, EmbeddedChunk, Index
from tests.contracts.filter_contract import FilterContract, everything
from tests.contracts.inventory_contract import InventoryContract
from tests.contracts.rows_for_tests import DIMENSION, bm25, document, embedded, holding, ids, unit_vectors

OpenOne = Callable[[], Awaitable[VectorStore]]

ODD = [
    "plain",
    "",
    " ",
    " leading and trailing ",
    "it's \"quoted\" `back` \\ slash \\' \\n",
    "'; DROP TABLE chunks; --",
    "100% _under* ?like",
    "Straße ÄÖÜ żółć",
    "日本語のテキスト",
    "عربي עברית",
    "e\u0301 é",
    "👩‍👩‍👧‍👦 🇩🇪 emoji",
    "line\nbreak\ttab\r\n",
    "\u200bzero\u00a0width\u2028",
    "{}[]()<>&|!$#@",
    "\x01\x07 control",
    "-1",
    "null",
    "true",
    "𝒳 beyond the first plane",
]


def new_index(collection: str = "library", dimension: int = DIMENSION) -> Index:
    return Index(collection, uuid.uuid4().hex[:12], f"contract_{dimension}", dimension)


class StoreContract(FilterContract, InventoryContract):
    """The behaviours; each test has an empty index of its own."""

    @pytest.fixture
    async def store(self, open_one: OpenOne) -> AsyncIterator[VectorStore]:
        store = await open_one()
        yield store
        await store.close()

    @pytest.fixture
    async def index(self, store: VectorStore) -> AsyncIterator[Index]:
        index = new_index()
        await store.create(index)
        yield index
        await store.drop(index)

    @asynccontextmanager
    async def another(self, store: VectorStore, collection: str) -> AsyncIterator[Index]:
        index = new_index(collection)
        await store.create(index)
        yield index
        await store.drop(index)

    async def settle(self, store: VectorStore, index: Index) -> None:
        """Wait until the store's background work on the index is done."""

    # Reading what is not there

    async def test_an_index_that_was_never_created_reads_as_empty(self, store):
        index = new_index()
        assert not await store.nearest(index, unit_vectors(1)[0], 5)
        assert not await store.nearest(index, unit_vectors(1)[0], 5, Compare("k", "eq", "v"))
        assert not await store.keyword(index, ["every"], 5)
        assert await store.scan(index) == []
        assert await store.count(index) == 0
        assert await store.count(index, "d") == 0

    async def test_an_index_of_a_schema_that_was_never_used_reads_as_empty(self, store):
        index = dataclasses.replace(new_index(), schema="never-used")
        assert not await store.nearest(index, unit_vectors(1)[0], 5, Compare("k", "eq", "v"))
        assert await store.count(index) == 0
        await store.drop(index)

    async def test_an_empty_index_reads_as_empty(self, store, index):
        assert not await store.nearest(index, unit_vectors(1)[0], 5)
        assert not await store.keyword(index, ["every"], 5)
        assert await store.scan(index) == []
        assert await store.count(index) == 0

    async def test_dropping_or_emptying_what_is_unknown_does_nothing(self, store, index):
        await store.drop(new_index())
        await store.replace(index, {"unknown": []})
        await store.replace(new_index(), {"unknown": []})
        await store.replace(index, {})
        assert await store.count(index) == 0

    async def test_writing_to_an_index_that_was_never_created_is_refused(self, store):
        with pytest.raises(StoreRejected, match="create"):
            await store.replace(new_index(), {"d": document("d", 1)})

    # Writing

    async def test_what_was_replaced_is_found_at_once(self, store, index):
        rows = document("d", 5)
        await store.replace(index, {"d": rows})
        assert await everything(store, index) == sorted(row.chunk.id for row in rows)
        assert sorted(ids(await store.keyword(index, ["every"], 10))) == sorted(row.chunk.id for row in rows)
        assert await store.count(index) == 5

    async def test_several_documents_are_replaced_in_one_call(self, store, index):
        await store.replace(
            index, {"a": document("a", 3, seed=1), "b": document("b", 4, seed=2), "c": document("c", 2, seed=3)}
        )
        await store.replace(index, {"a": document("a", 1, version=2, seed=1), "b": [], "d": document("d", 5, seed=4)})
        assert [await store.count(index, each) for each in "abcd"] == [1, 0, 2, 5]
        assert await store.count(index) == 8

    async def test_replacing_leaves_exactly_the_new_chunks(self, store, index):
        old, new = document("d", 9, version=1), document("d", 4, version=2)
        await store.replace(index, {"d": old})
        await store.replace(index, {"d": new})
        assert await everything(store, index) == sorted(row.chunk.id for row in new)
        assert ids(await store.scan(index)) == sorted(row.chunk.id for row in new)

    async def test_replacing_with_the_same_chunks_changes_nothing(self, store, index):
        rows = document("d", 4)
        await store.replace(index, {"d": rows})
        await store.replace(index, {"d": rows})
        assert await everything(store, index) == sorted(row.chunk.id for row in rows)
        assert await store.count(index) == 4

    async def test_replacing_keeps_the_chunks_that_both_versions_have(self, store, index):
        rows = document("d", 6)
        await store.replace(index, {"d": rows[:4]})
        await store.replace(index, {"d": rows[2:]})
        assert await everything(store, index) == sorted(row.chunk.id for row in rows[2:])

    async def test_an_empty_sequence_deletes_the_document_completely(self, store, index):
        await store.replace(index, {"d": document("d", 7), "e": document("e", 2, seed=1)})
        await store.replace(index, {"d": []})
        assert await store.count(index, "d") == 0
        assert await store.scan(index, document_id="d") == []
        assert {each.chunk.document_id for each in await store.nearest(index, unit_vectors(1)[0], 50)} == {"e"}
        assert {each.chunk.document_id for each in await store.keyword(index, ["every"], 50)} == {"e"}

    async def test_a_deleted_document_can_come_back(self, store, index):
        rows = document("d", 3)
        for given in (rows, [], rows):
            await store.replace(index, {"d": given})
        assert await everything(store, index) == sorted(row.chunk.id for row in rows)

    async def test_ten_thousand_chunks_go_in_at_once(self, store, index):
        rows = document("big", 10_000)
        await store.replace(index, {"big": rows})
        assert await store.count(index) == 10_000
        best = await store.nearest(index, rows[1234].vector, 1)
        assert best[0].chunk == rows[1234].chunk

    async def test_texts_of_a_megabyte_survive(self, store, index):
        rows = [
            embedded("d", f"{position} " + "ä" * 1_000_000, position=position, terms="every long") for position in range(12)
        ]
        await store.replace(index, {"d": rows})
        found = await store.scan(index, document_id="d")
        assert sorted(chunk.text for chunk in found) == sorted(row.chunk.text for row in rows)

    # What comes back

    async def test_chunks_come_back_as_they_were_given(self, store, index):
        metadata = {
            "s": "x",
            "i": 3,
            "f": 2.0,
            "t": True,
            "n": False,
            "l": ("a", "b"),
            "none": (),
            "big": 2**53 + 1,
            "é'\"": " ",
        }
        row = embedded("d", "a text", page=7, headings=("Part", "1. 'Title'"), language="de", metadata=metadata)
        bare = embedded("e", "another text")
        await store.replace(index, {"d": [row], "e": [bare]})
        found = await store.nearest(index, row.vector, 2)
        assert {each.chunk.id: each.chunk for each in found} == {row.chunk.id: row.chunk, bare.chunk.id: bare.chunk}
        (scanned,) = await store.scan(index, document_id="d")
        assert scanned == row.chunk
        assert {key: type(value) for key, value in scanned.metadata.items()} == {k: type(v) for k, v in metadata.items()}
        assert await store.holdings(index, ["d", "e"]) == {
            "d": holding([row]),
            "e": holding([bare]),
        }

    async def test_the_stored_vector_is_the_given_vector(self, store, index):
        rows = document("d", 20)
        await store.replace(index, {"d": rows})
        given = {row.chunk.id: row.vector for row in rows}
        for found in (await store.nearest(index, rows[0].vector, 20), await store.keyword(index, ["every"], 20)):
            assert len(found) == 20
            for each in found:
                assert each.vector.dtype == np.float32
                np.testing.assert_allclose(each.vector, given[each.chunk.id], atol=1e-6)

    async def test_odd_strings_survive_in_every_field(self, store, index):
        documents: dict[str, list[EmbeddedChunk]] = {}
        for number, odd in enumerate(ODD):
            name = f"{odd}{number}"
            row = embedded(name, odd + " text", name=odd, headings=(odd, odd), language=odd, metadata={name: odd, "l": (odd,)})
            documents[name] = [row]
        await store.replace(index, documents)
        for document_id, (row,) in documents.items():
            assert await store.scan(index, document_id=document_id) == [row.chunk]
            assert await store.count(index, document_id) == 1
        digests = {each: digest_of(rows) for each, rows in documents.items()}
        assert {each: held.digest for each, held in (await store.holdings(index, [*documents])).items()} == digests
        assert {each async for page in store.documents(index) for each in page} == set(documents)

    async def test_odd_strings_are_told_apart_by_filters(self, store, index):
        rows = [embedded(f"d{n}", name=odd, metadata={"k": odd, "l": (odd, "all")}) for n, odd in enumerate(ODD)]
        await store.replace(index, {row.chunk.document_id: [row] for row in rows})
        for odd, row in zip(ODD, rows, strict=True):
            for question in (Compare("k", "eq", odd), Compare("l", "contains", odd), Compare("document_name", "in", (odd,))):
                assert await everything(store, index, question) == [row.chunk.id], question

    async def test_odd_keys_are_told_apart(self, store, index):
        rows = [embedded(f"d{n}", metadata={odd: "v"}) for n, odd in enumerate([*ODD, "K", "k", "long" * 60, "long" * 61])]
        await store.replace(index, {row.chunk.document_id: [row] for row in rows})
        for row in rows:
            (key,) = row.chunk.metadata
            assert await everything(store, index, Compare(key, "eq", "v")) == [row.chunk.id]
            assert await everything(store, index, Compare(key, "exists", value=True)) == [row.chunk.id]
            held = await store.holdings(index, [row.chunk.document_id])
            assert held == {row.chunk.document_id: holding([row])}

    # Nearest

    async def test_nearest_ranks_by_exact_cosine(self, store, index):
        rows = document("d", 60)
        await store.replace(index, {"d": rows})
        question = unit_vectors(1, seed=99)[0]
        cosines = sorted((float(row.vector @ question) for row in rows), reverse=True)
        found = await store.nearest(index, question, 10)
        np.testing.assert_allclose([each.score for each in found], cosines[:10], atol=1e-6)

    async def test_nearest_respects_the_limit_and_sorts(self, store, index):
        await store.replace(index, {"d": document("d", 30)})
        for limit in (0, 1, 7, 30, 100):
            found = await store.nearest(index, unit_vectors(1)[0], limit)
            assert len(found) == min(limit, 30)
            assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)

    async def test_nearest_filters_before_it_ranks(self, store, index):
        rows = [*document("d", 150), *document("rare", 3, seed=5, metadata={"kind": "rare"})]
        await store.replace(index, {"d": rows[:150], "rare": rows[150:]})
        found = await store.nearest(index, rows[0].vector, 3, Compare("kind", "eq", "rare"))
        assert sorted(ids(found)) == sorted(row.chunk.id for row in rows[150:])

    # Keyword

    async def test_keyword_finds_chunks_with_any_of_the_terms(self, store, index):
        rows = [embedded("d", text, position=n) for n, text in enumerate(["red fox", "blue bird", "red bird", "grey cat"])]
        await store.replace(index, {"d": rows})
        found = await store.keyword(index, ["red", "bird"], 10)
        assert found[0].chunk.text == "red bird"
        assert {each.chunk.text for each in found} == {"red fox", "blue bird", "red bird"}

    async def test_keyword_without_terms_or_matches_finds_nothing(self, store, index):
        await store.replace(index, {"d": document("d", 3)})
        assert not await store.keyword(index, [], 5)
        assert not await store.keyword(index, ["absent"], 5)
        assert not await store.keyword(index, ["every"], 0)

    async def test_keyword_takes_terms_as_they_are(self, store, index):
        terms = [
            "the",
            "is",
            "Running",
            "running",
            "naïve",
            "naive",
            "c++",
            "日本",
            "本語",
            "x" * 200,
            "it's",
            "-minus",
            '"q"',
            "*",
        ]
        rows = [embedded("d", f"t{n}", position=n, terms=term) for n, term in enumerate(terms)]
        await store.replace(index, {"d": rows})
        await self.settle(store, index)
        for term, row in zip(terms, rows, strict=True):
            assert ids(await store.keyword(index, [term], 5)) == [row.chunk.id], term

    async def test_keyword_finds_rows_written_before_and_after_the_store_settled(self, store, index):
        await store.replace(index, {"a": document("a", 40, seed=1)})
        await self.settle(store, index)
        await store.replace(index, {"b": document("b", 40, seed=2), "c": document("c", 1, seed=3)})
        assert len(await store.keyword(index, ["every"], 200)) == 81

    async def test_keyword_scores_are_bm25(self, store, index):
        rows = document("d", 200)
        await store.replace(index, {"d": rows})
        await self.settle(store, index)
        question = ["w3", "w17", "every", "absent"]
        expected = dict(zip((row.chunk.id for row in rows), bm25([row.terms for row in rows], question), strict=True))
        found = await store.keyword(index, question, 50)
        np.testing.assert_allclose([each.score for each in found], [expected[each.chunk.id] for each in found], rtol=1e-4)
        np.testing.assert_allclose([each.score for each in found], sorted(expected.values(), reverse=True)[:50], rtol=1e-4)

    async def test_a_term_asked_twice_counts_twice(self, store, index):
        await store.replace(index, {"d": document("d", 30)})
        await self.settle(store, index)
        once = {each.chunk.id: each.score for each in await store.keyword(index, ["w3"], 50)}
        twice = {each.chunk.id: each.score for each in await store.keyword(index, ["w3", "w3"], 50)}
        assert once
        assert twice == pytest.approx({key: 2 * score for key, score in once.items()}, rel=1e-5)

    async def test_keyword_respects_limit_and_filter(self, store, index):
        await store.replace(index, {"a": document("a", 20, seed=1), "b": document("b", 5, seed=2)})
        assert len(await store.keyword(index, ["every"], 7)) == 7
        found = await store.keyword(index, ["every"], 50, Compare("document_id", "eq", "b"))
        assert len(found) == 5
        assert {each.chunk.document_id for each in found} == {"b"}

    # Scanning and counting

    async def test_scan_pages_through_everything_in_order_of_id(self, store, index):
        await store.replace(index, {f"d{n}": document(f"d{n}", 10, seed=n) for n in range(7)})
        seen: list[str] = []
        while page := await store.scan(index, after=seen[-1] if seen else None, limit=16):
            assert len(page) <= 16
            seen += ids(page)
        assert seen == sorted(set(seen))
        assert len(seen) == 70

    async def test_scan_pages_through_one_document(self, store, index):
        rows = document("d", 25)
        await store.replace(index, {"d": rows, "e": document("e", 5, seed=1)})
        first = await store.scan(index, document_id="d", limit=20)
        rest = await store.scan(index, document_id="d", after=first[-1].id, limit=20)
        assert ids([*first, *rest]) == sorted(row.chunk.id for row in rows)

    async def test_count_knows_each_document(self, store, index):
        await store.replace(index, {"a": document("a", 3), "b": document("b", 5, seed=1)})
        assert [await store.count(index, each) for each in ("a", "b", "c")] == [3, 5, 0]

    # Dimensions

    async def test_a_vector_of_another_length_is_refused_and_nothing_is_written(self, store, index):
        wrong = [embedded("w", vector=unit_vectors(1, dimension=9)[0])]
        with pytest.raises(DimensionMismatch):
            await store.replace(index, {"d": document("d", 3), "w": wrong})
        assert await store.count(index) == 0

    async def test_creating_again_with_another_dimension_is_refused(self, store, index):
        await store.create(index)
        with pytest.raises(DimensionMismatch, match="re-index"):
            await store.create(dataclasses.replace(index, dimension=9))

    async def test_a_question_of_another_length_is_refused(self, store, index):
        with pytest.raises(DimensionMismatch):
            await store.nearest(index, unit_vectors(1, dimension=9)[0], 5)

    # Indexes

    async def test_two_collections_never_mix(self, store, index):
        async with self.another(store, "other") as other:
            await store.replace(index, {"d": document("d", 4, seed=1)})
            await store.replace(other, {"d": document("d", 6, seed=2)})
            await store.replace(index, {"d": []})
            assert await store.count(index) == 0
            assert await everything(store, index) == []
            assert len(await everything(store, other)) == 6
            assert len(await store.keyword(other, ["every"], 50)) == 6

    async def test_names_that_look_alike_are_different_places(self, store):
        names = [("a-b", "c"), ("a", "b-c"), ("A", "b-c"), ("ä/..", "x"), ("a" * 200, "1"), ("a" * 200, "2")]
        indexes = [Index(name, generation, "contract_8", DIMENSION) for name, generation in names]
        for number, index in enumerate(indexes):
            await store.create(index)
            await store.replace(index, {"d": document("d", number + 1)})
        assert [await store.count(index) for index in indexes] == [1, 2, 3, 4, 5, 6]
        for index in indexes:
            await store.drop(index)

    async def test_a_dropped_index_comes_back_empty(self, store, index):
        await store.replace(index, {"d": document("d", 4)})
        await store.drop(index)
        assert await store.count(index) == 0
        assert await everything(store, index) == []
        await store.create(index)
        assert await store.count(index) == 0
        await store.replace(index, {"d": document("d", 2)})
        assert len(await everything(store, index)) == 2

    async def test_creating_twice_keeps_what_is_there(self, store, index):
        await store.replace(index, {"d": document("d", 4)})
        await store.create(index)
        assert await store.count(index) == 4

    async def test_creating_at_the_same_time_makes_one(self, store, open_one):
        index, other = new_index(), await open_one()
        await asyncio.gather(*(each.create(index) for each in (store, other, store, other)))
        await store.replace(index, {"d": document("d", 2)})
        assert await other.count(index) == 2
        await store.drop(index)
        await other.close()

    async def test_publishing_repeats_and_moves(self, store, index):
        await store.publish(index)
        await store.publish(index)
        async with self.another(store, "library") as newer:
            await store.publish(newer)
            assert await store.count(newer) == 0
        await store.publish(index)

    # Readers and writers at the same time

    async def test_a_flipping_document_is_seen_whole_and_in_one_version(self, store, index, open_one):
        versions = [document("d", 12, version=1), document("d", 12, version=2)]
        whole = [sorted(row.chunk.id for row in rows) for rows in versions]
        await store.replace(index, {"d": versions[0], "other": document("other", 3, seed=9)})
        reader, done = await open_one(), asyncio.Event()

        async def flip() -> None:
            for turn in range(8):
                await store.replace(index, {"d": versions[(turn + 1) % 2]})
            done.set()

        async def read() -> int:
            rounds, mine = 0, Compare("document_id", "eq", "d")
            while not done.is_set():
                assert await everything(reader, index, mine) in whole
                assert sorted(ids(await reader.keyword(index, ["every"], 50, mine))) in whole
                assert ids(await reader.scan(index, document_id="d")) in whole
                assert await reader.count(index) == 15
                rounds += 1
            return rounds

        _, rounds = await asyncio.gather(flip(), read())
        assert rounds > 1
        await reader.close()

    async def test_a_fresh_document_appears_with_all_its_chunks(self, store, index, open_one):
        reader, done = await open_one(), asyncio.Event()

        async def write() -> None:
            for number in range(6):
                await store.replace(index, {f"d{number}": document(f"d{number}", 10, seed=number)})
            done.set()

        async def read() -> None:
            while not done.is_set():
                assert len(await reader.keyword(index, ["every"], 200)) % 10 == 0
                assert len(await everything(reader, index)) % 10 == 0

        await asyncio.gather(write(), read())
        assert len(await everything(reader, index)) == 60
        await reader.close()

    async def test_several_writers_at_once_lose_nothing(self, store, index, open_one):
        stores = [store, await open_one()]

        async def write(number: int) -> None:
            rows = document(f"d{number}", 5, seed=number, metadata={f"k{number % 3}": number})
            await stores[number % 2].replace(index, {f"d{number}": rows})

        await asyncio.gather(*(write(number) for number in range(12)))
        assert await store.count(index) == 60
        assert [await store.count(index, f"d{number}") for number in range(12)] == [5] * 12
        await stores[1].close()

    async def test_two_writers_of_one_document_leave_one_version(self, store, index, open_one):
        other = await open_one()
        for turn in range(3):
            versions = [document("d", 6, version=2 * turn + each, seed=turn) for each in range(2)]
            whole = [sorted(row.chunk.id for row in rows) for rows in versions]
            await asyncio.gather(store.replace(index, {"d": versions[0]}), other.replace(index, {"d": versions[1]}))
            assert await everything(store, index) in whole
            assert await store.count(index) == 6
        await other.close()

    # Lifetime

    async def test_another_store_on_the_same_place_sees_the_data(self, store, index, open_one):
        await store.replace(index, {"d": document("d", 3, metadata={"k": "v"})})
        other = await open_one()
        assert len(await everything(other, index, Compare("k", "eq", "v"))) == 3
        assert await other.count(index) == 3
        await other.close()

    async def test_ping_names_the_store_and_its_version(self, store):
        name, number = (await store.ping()).split(" ")
        assert name
        assert number[0].isdigit()

    async def test_close_may_be_called_twice(self, open_one):
        store = await open_one()
        await store.close()
        await store.close()
