"""The searcher on a real store (LanceDB), with an embedder whose vectors are chosen by hand."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from retrieval.analysis import analyze
from retrieval.errors import DimensionMismatch, EmbedderUnavailable, StoreUnavailable
from retrieval.search import Searcher
from retrieval.stores import open_store
from retrieval.types import Chunk, Compare, EmbeddedChunk, Index, Query

INDEX = Index("library", "g1", "search_test", 2)
ENGLISH = ["en"]


def at(degrees: float):
    angle = np.deg2rad(degrees)
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


class HandEmbedder:
    """Every question points at 0 degrees; asking a closed one is a failure."""

    spec = "hand:test"
    dimension = 2
    fingerprint = "0" * 16

    def __init__(self, vector=None, error=None):
        self.vector = at(0) if vector is None else vector
        self.error = error
        self.asked = 0

    async def embed_query(self, text):
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        return self.vector


ROWS = [  # id, text, degrees between its vector and the question's
    ("a", "Zebras have stripes.", 80),
    ("b", "Striped animals of the savannah.", 5),
    ("c", "Quarterly revenue grew.", 70),
    ("d", "The zebra, a striped horse, lives in herds.", 20),
    ("e", "ZEBRAS  have stripes.", 81),
    ("f", "Nothing to do with it.", 85),
]


@pytest.fixture
async def store(tmp_path):
    store = await open_store(f"lance:{tmp_path}/lance")
    await store.create(INDEX)
    documents = {}
    for name, text, degrees in ROWS:
        chunk = Chunk(name, f"doc-{name}", f"{name}.txt", 0, text, 0, len(text), language="en", metadata={"row": name})
        documents[f"doc-{name}"] = [EmbeddedChunk(chunk, at(degrees), " ".join(analyze(text, "en")))]
    await store.replace(INDEX, documents)
    yield store
    await store.close()


def ids(result):
    return "".join(hit.chunk.id for hit in result.hits)


async def test_hybrid_takes_the_best_of_both(store):
    result = await Searcher(store, HandEmbedder()).search(INDEX, Query("zebra stripes"), ENGLISH)
    assert ids(result)[0] == "d"
    assert set(ids(result)) == set("abcdf")
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)


async def test_hybrid_knows_the_cosine_of_what_only_words_found_and_no_bm25_of_what_only_vectors_found(store):
    result = await Searcher(store, HandEmbedder()).search(INDEX, Query("zebra"), ENGLISH)
    by_id = {hit.chunk.id: hit for hit in result.hits}
    assert by_id["a"].vector_score == pytest.approx(np.cos(np.deg2rad(80)), abs=1e-5)
    assert by_id["a"].keyword_score > 0
    assert by_id["f"].keyword_score == 0


async def test_the_same_text_counts_once_and_the_best_of_it(store):
    for mode in ("hybrid", "vector", "keyword"):
        found = ids(await Searcher(store, HandEmbedder()).search(INDEX, Query("zebras stripes", mode=mode, top_k=6), ENGLISH))
        assert "a" in found
        assert "e" not in found


async def test_keyword_mode_leaves_the_embedder_alone(store):
    embedder = HandEmbedder(error=EmbedderUnavailable("down"))
    result = await Searcher(store, embedder).search(INDEX, Query("zebra", mode="keyword"), ENGLISH)
    assert set(ids(result)) == {"a", "d"}
    assert {hit.vector_score for hit in result.hits} == {0.0}
    assert all(hit.score == hit.keyword_score > 0 for hit in result.hits)
    assert embedder.asked == 0
    assert result.timings_ms["embed"] == 0


async def test_vector_mode_reads_no_words(store):
    result = await Searcher(store, HandEmbedder()).search(INDEX, Query("zebra", mode="vector", top_k=3), ENGLISH)
    assert ids(result) == "bdc"
    assert all(hit.score == hit.vector_score for hit in result.hits)
    assert {hit.keyword_score for hit in result.hits} == {0.0}


@pytest.mark.parametrize("text", ["?!", "unheardofword"])
async def test_hybrid_without_a_matching_word_is_the_order_of_the_vectors(store, text):
    assert ids(await Searcher(store, HandEmbedder()).search(INDEX, Query(text), ENGLISH)) == "bdcaf"


async def test_keyword_mode_without_a_word_finds_nothing(store):
    assert (await Searcher(store, HandEmbedder()).search(INDEX, Query("?!", mode="keyword"), ENGLISH)).hits == ()


async def test_filters_reach_both_halves(store):
    query = Query("zebra", filter=Compare("row", "in", ("c", "d")))
    assert set(ids(await Searcher(store, HandEmbedder()).search(INDEX, query, ENGLISH))) == {"c", "d"}


async def test_an_empty_index_has_no_hits(store):
    index = Index("library", "nothing", "search_test", 2)
    assert (await Searcher(store, HandEmbedder()).search(index, Query("zebra"), ENGLISH)).hits == ()


async def test_equal_scores_go_by_id(store):
    await store.replace(
        INDEX,
        {
            f"doc-{name}": [EmbeddedChunk(Chunk(name, f"doc-{name}", "t", 0, f"twin {name}", 0, 6), at(0), f"twin {name}")]
            for name in ("z", "y", "x")
        },
    )
    assert ids(await Searcher(store, HandEmbedder()).search(INDEX, Query("twin", top_k=3), ENGLISH)) == "xyz"


async def test_timings_add_up(store):
    timings = (await Searcher(store, HandEmbedder()).search(INDEX, Query("zebra"), ENGLISH)).timings_ms
    assert timings["embed"] >= 10
    assert timings["search"] > 0


async def test_another_dimension_names_the_cure(store):
    with pytest.raises(DimensionMismatch, match="re-index"):
        await Searcher(store, HandEmbedder(np.ones(3, np.float32))).search(INDEX, Query("zebra"), ENGLISH)


async def test_errors_pass_and_leave_nothing_running(store):
    before = asyncio.all_tasks()
    with pytest.raises(EmbedderUnavailable, match="down"):
        await Searcher(store, HandEmbedder(error=EmbedderUnavailable("down"))).search(INDEX, Query("zebra"), ENGLISH)
    assert asyncio.all_tasks() == before


class BrokenStore:
    async def keyword(self, *args):
        raise StoreUnavailable("gone")


async def test_a_failed_half_stops_the_other():
    embedder = HandEmbedder()
    before = asyncio.all_tasks()
    with pytest.raises(StoreUnavailable, match="gone"):
        await Searcher(BrokenStore(), embedder).search(INDEX, Query("zebra"), ENGLISH)
    assert asyncio.all_tasks() == before


async def test_the_first_hits_do_not_depend_on_how_many_are_asked_for_where_both_lists_hold_them(store):
    """Three hundred passages between near and far, of which sixty hold some of the question's words."""
    rows = []
    for number in range(300):
        text = f"passage {number}" + (" zebra" * (number % 4) + " horse" * (number % 3) if number % 5 == 0 else " of nothing")
        chunk = Chunk(f"m{number:03}", "many", "many.txt", number, text, 0, len(text), language="en")
        rows.append(EmbeddedChunk(chunk, at(30 + number * 37 % 150), " ".join(analyze(text, "en"))))
    await store.replace(INDEX, {"many": rows})
    found = []
    for top_k in (5, 20, 100):
        result = await Searcher(store, HandEmbedder()).search(INDEX, Query("zebra horse", top_k), ENGLISH)
        found.append(result.hits[:5])
    assert len({tuple(hit.chunk.id for hit in hits) for hits in found}) == 1
    for hits in found[1:]:  # LanceDB adds up its words' scores in 32 bits, memory in 64
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in found[0]], rel=1e-6)
