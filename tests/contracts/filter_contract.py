"""What filters mean, the same on every store; part of the store contract."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.errors import InvalidFilter
from retrieval.stores import VectorStore
from retrieval.types import And, Compare, EmbeddedChunk, Filter, Index, Not, Or
from tests.contracts.rows_for_tests import document, embedded, ids, passes, unit_vectors


async def everything(store: VectorStore, index: Index, filter_: Filter | None = None) -> list[str]:
    """Ids of all chunks that pass a filter, in order of id."""
    vector = unit_vectors(1, dimension=index.dimension)[0]
    return sorted(ids(await store.nearest(index, vector, 200, filter_)))


class FilterContract:
    """The behaviours of filters; `store`, `index` and `open_one` come from the store's suite."""

    async def test_every_operator_means_the_same_for_every_type(self, store, index):
        rows = filter_rows()
        await store.replace(index, {row.chunk.document_id: [row] for row in rows})
        for question in filter_questions():
            wanted = sorted(row.chunk.id for row in rows if passes(question, row.chunk))
            assert await everything(store, index, question) == wanted, question

    async def test_random_nested_filters_mean_what_they_say(self, store, index):
        rows, leaves = filter_rows(), filter_questions()
        await store.replace(index, {row.chunk.document_id: [row] for row in rows})
        random = np.random.default_rng(7)

        def nested(depth: int) -> Filter:
            if depth == 0 or random.random() < 0.2:
                return leaves[random.integers(len(leaves))]
            parts = tuple(nested(depth - 1) for _ in range(random.integers(1, 4)))
            return (And(parts), Or(parts), Not(parts[0]))[random.integers(3)]

        for _ in range(60):
            question = nested(3)
            wanted = sorted(row.chunk.id for row in rows if passes(question, row.chunk))
            assert await everything(store, index, question) == wanted, question

    async def test_a_key_that_no_chunk_has_matches_nothing_but_negations(self, store, index):
        await store.replace(index, {"d": document("d", 2)})
        for op, value, count in [("eq", "x", 0), ("ne", "x", 2), ("in", ("x",), 0), ("nin", ("x",), 2), ("gt", 1, 0)]:
            assert len(await everything(store, index, Compare("nobody", op, value))) == count, op
        assert await everything(store, index, Compare("nobody", "exists", value=True)) == []
        assert len(await everything(store, index, Not(Compare("nobody", "contains", "x")))) == 2

    async def test_a_key_that_a_later_document_brings_is_filtered_on_at_once(self, store, index, open_one):
        other = await open_one()
        await store.replace(index, {"d": document("d", 2)})
        assert await everything(other, index, Compare("later", "eq", 5)) == []
        await store.replace(index, {"e": document("e", 3, seed=1, metadata={"later": 5})})
        assert len(await everything(other, index, Compare("later", "eq", 5))) == 3
        assert len(await everything(other, index, Compare("later", "ne", 5))) == 2
        await other.close()

    async def test_empty_connectives_are_all_and_nothing(self, store, index):
        await store.replace(index, {"d": document("d", 3)})
        assert len(await everything(store, index, And(()))) == 3
        assert await everything(store, index, Or(())) == []
        assert await everything(store, index, Compare("k", "in", ())) == []

    async def test_values_that_do_not_fit_an_operator_are_refused(self, store, index):
        await store.replace(index, {"d": document("d", 1)})
        misfits = [("in", "x"), ("nin", 3), ("exists", "yes"), ("contains", 3), ("gt", True), ("eq", ("a",)), ("like", "x")]
        for op, value in misfits:
            with pytest.raises(InvalidFilter):
                await store.nearest(index, unit_vectors(1)[0], 5, Compare("k", op, value))


def filter_rows() -> list[EmbeddedChunk]:
    """One chunk per document, with every kind of value under the same keys."""
    values = ["a", "b", "", "B", "ä", "\uffff", "😀", 1, 1.0, 2, 2.5, -3, 0, True, False, "1", "true", 10**15 + 0.5, -0.0]
    lists = [(), ("x",), ("x", "y"), ("",), ("z", "x z")]
    rows = [embedded(f"v{n}", metadata={"k": value, "other": n}) for n, value in enumerate(values)]
    rows += [embedded(f"l{n}", metadata={"k": each}) for n, each in enumerate(lists)]
    rows += [embedded(f"p{n}", name=f"n{n}", page=n or None, language=("de", "en", None)[n % 3]) for n in range(5)]
    return [*rows, embedded("bare")]


def filter_questions() -> list[Filter]:
    questions: list[Filter] = []
    for value in ("a", "", "B", "😀", "1", "true", "zz", 1, 2.5, 0, True, False, -3, 99):
        questions += [Compare("k", "eq", value), Compare("k", "ne", value)]
    for value in ("a", "", "B", "ä", "\uffff", "😀", 1, 2.5, 0, -10):
        questions += [Compare("k", op, value) for op in ("gt", "gte", "lt", "lte")]  # type: ignore[arg-type]
    for values in (("a", 1), (True, "true"), (2.5, 2, "b", False), ("",), ("none",)):
        questions += [Compare("k", "in", values), Compare("k", "nin", values)]
    questions += [Compare("k", "contains", value) for value in ("x", "y", "", "x z", "q", "a")]
    questions += [
        Compare(key, "exists", value=value) for key in ("k", "other", "page", "language", "none") for value in (True, False)
    ]
    questions += [Compare("page", op, 2) for op in ("eq", "ne", "gt", "gte", "lt", "lte")]  # type: ignore[arg-type]
    questions += [
        Compare("page", "in", (1, 3.0)),
        Compare("page", "eq", "2"),
        Compare("page", "nin", (1,)),
        Compare("page", "gt", "1"),
    ]
    questions += [Compare("language", "eq", "de"), Compare("language", "ne", "de"), Compare("language", "nin", ("de", "en"))]
    questions += [
        Compare("document_id", "eq", "v1"),
        Compare("document_id", "in", ("v1", "p2")),
        Compare("document_id", "gt", "v2"),
    ]
    questions += [
        Compare("document_name", "eq", "n2"),
        Compare("document_name", "ne", "a.txt"),
        Compare("document_name", "lt", "b"),
    ]
    return questions
