"""The embedded store and the server rank alike: the same random corpora and questions, asked of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from retrieval.stores import open_store
from retrieval.types import Candidate, Compare, Not, Or
from tests.contracts.rows_for_tests import WORDS, document, ids, unit_vectors
from tests.contracts.store_contract import new_index

QUESTIONS = 8
LIMIT = 20
FILTERS = [
    None,
    Compare("group", "eq", 1),
    Or((Compare("group", "gt", 2), Compare("group", "exists", value=False))),
    Not(Compare("group", "in", (0, 1))),
]


def assert_alike(one: Sequence[Candidate], other: Sequence[Candidate]) -> None:
    """The same scores place by place, and the same chunks but for ties at the end of the list."""
    np.testing.assert_allclose([each.score for each in one], [each.score for each in other], rtol=1e-3, atol=1e-4)
    if one:
        last = max(one[-1].score, other[-1].score) + 1e-3 * abs(one[-1].score) + 1e-6
        assert set(ids(each for each in one if each.score > last)) <= set(ids(other))
        assert set(ids(each for each in other if each.score > last)) <= set(ids(one))


@pytest.fixture(params=[1, 2])
async def seeded(request, tmp_path, weaviate_url):
    """Both stores with one random corpus, and the random generator to go on with."""
    stores = [await open_store(f"lance:{tmp_path}"), await open_store(weaviate_url)]
    index, seed = new_index(), request.param
    documents = {
        f"d{n}": document(f"d{n}", 12, seed=100 * seed + n, metadata={"group": n % 4} if n % 5 else {}) for n in range(25)
    }
    for store in stores:
        await store.create(index)
        await store.replace(index, documents)
    await stores[0].tidy(index)
    yield stores, index, np.random.default_rng(seed)
    for store in stores:
        await store.drop(index)
        await store.close()


async def test_both_stores_find_the_same_nearest(seeded):
    stores, index, random = seeded
    for question in unit_vectors(QUESTIONS, seed=int(random.integers(10**6))):
        for filter_ in FILTERS:
            assert_alike(*[await store.nearest(index, question, LIMIT, filter_) for store in stores])


async def test_both_stores_score_words_alike(seeded):
    stores, index, random = seeded
    for _ in range(QUESTIONS):
        terms = [str(word) for word in random.choice([*WORDS, "every", "absent"], size=random.integers(1, 6))]
        for filter_ in FILTERS:
            assert_alike(*[await store.keyword(index, terms, LIMIT, filter_) for store in stores])


async def test_both_stores_list_the_same_chunks(seeded):
    stores, index, _ = seeded
    one, other = [await store.scan(index) for store in stores]
    assert one == other
    assert [await store.count(index) for store in stores] == [300, 300]
