"""What every store tells of what lies in it, also of what was done to it behind our back. A suite provides `behind`."""

from __future__ import annotations

import pytest

from retrieval.digest import digest_of
from retrieval.types import Holding
from tests.contracts.rows_for_tests import document, holding


class InventoryContract:
    async def test_what_was_written_is_held_and_what_was_not_is_not(self, store, index):
        rows = {f"d{n}": document(f"d{n}", 4 + n, seed=n, metadata={"year": 2020 + n, "tags": ("a", "")}) for n in range(3)}
        await store.replace(index, rows)
        held = await store.holdings(index, [*rows, "unknown"])
        assert held == {**{i: holding(each) for i, each in rows.items()}, "unknown": Holding()}
        assert await store.size(index) == await store.count(index) == 15
        assert {i async for page in store.documents(index) for i in page} == set(rows)

    async def test_an_index_that_is_not_there_holds_nothing(self, store, index):
        await store.drop(index)
        assert await store.size(index) == 0
        assert await store.holdings(index, ["d"]) == {"d": Holding()}
        assert [page async for page in store.documents(index)] == []
        await store.clean(index, ["d"])

    async def test_the_digest_is_of_the_newest_version_and_of_nothing_once_it_is_deleted(self, store, index):
        await store.replace(index, {"d": document("d", 3)})
        newer = document("d", 5, version=2)
        await store.replace(index, {"d": newer})
        assert await store.holdings(index, ["d"]) == {"d": holding(newer)}
        await store.replace(index, {"d": []})
        assert await store.holdings(index, ["d"]) == {"d": Holding()}

    async def test_a_document_of_many_pages_is_held_whole(self, store, index):
        rows = document("big", 2500)
        await store.replace(index, {"big": rows, "small": document("small", 1)})
        assert (await store.holdings(index, ["small", "big"]))["big"] == holding(rows)
        assert {i async for page in store.documents(index) for i in page} == {"big", "small"}

    @pytest.mark.parametrize("field", ["text", "terms", "year", "vector"])
    async def test_a_change_behind_our_back_shows(self, store, index, behind, field):
        rows = document("d", 3, metadata={"year": 2024})
        await store.replace(index, {"d": rows, "e": rows_of_e()})
        await behind.change(index, "d", field)
        held = await store.holdings(index, ["d", "e"])
        assert held["d"].digest != digest_of(rows)
        assert held["e"] == holding(rows_of_e())

    async def test_what_was_removed_or_added_behind_our_back_shows(self, store, index, behind):
        await store.replace(index, {"d": document("d", 3), "e": rows_of_e()})
        await behind.remove_chunks(index, "d", 1)
        await behind.copy(index, "e", "stray")
        held = await store.holdings(index, ["d", "e", "stray"])
        assert held["d"].digest != digest_of(document("d", 3))
        assert held["e"] == holding(rows_of_e())
        assert held["stray"].chunks == 2
        assert await store.size(index) == 6
        assert {i async for page in store.documents(index) for i in page} == {"d", "e", "stray"}
        await store.replace(index, {"stray": []})
        assert await store.size(index) == 4

    async def test_cleaning_leaves_what_is_visible(self, store, index):
        await store.replace(index, {"d": document("d", 3)})
        await store.clean(index, ["d", "unknown"])
        assert await store.holdings(index, ["d"]) == {"d": holding(document("d", 3))}


def rows_of_e():
    return document("e", 2, seed=1, metadata={"year": 2024})
