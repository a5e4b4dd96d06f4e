"""The store contract on a real Weaviate, and what is special about a server."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
import weaviate
from weaviate.proto.v1 import search_get_pb2

from retrieval.errors import StoreRejected
from retrieval.stores import open_store
from retrieval.stores.rows import place_name
from retrieval.stores.weaviate import ABANDONED, WeaviateStore, version_at
from retrieval.stores.weaviate_address import parse_address
from retrieval.stores.weaviate_connection import Connection
from retrieval.stores.weaviate_rows import rows
from retrieval.stores.weaviate_schema import chunk_class, live_class, to_object
from retrieval.types import Holding
from tests.contracts.behind import BehindWeaviate
from tests.contracts.filter_contract import everything
from tests.contracts.rows_for_tests import document, holding
from tests.contracts.store_contract import StoreContract, new_index


class Counted(WeaviateStore):
    """Counts how often the server is searched."""

    searches = 0

    async def _visible(self, index, search, limit):
        async def counted(most):
            self.searches += 1
            return await search(most)

        return await super()._visible(index, counted, limit)


def test_an_id_whose_first_zeros_an_older_server_left_out_is_whole_again():
    reply = search_get_pb2.SearchReply()
    reply.results.add().metadata.id_as_bytes = b"\x01" * 14
    [row] = rows(reply, None)
    assert row.uuid == b"\0\0" + b"\x01" * 14
    assert (row.text("missing"), row.number("missing"), len(row.vector)) == ("", 0, 0)


class TestWeaviateStore(StoreContract):
    @pytest.fixture
    def open_one(self, weaviate_url):
        return lambda: open_store(weaviate_url)

    @pytest.fixture
    def behind(self, weaviate_url):
        return BehindWeaviate(weaviate_url)

    @pytest.fixture
    async def client(self, weaviate_url):
        """A client of our own, to look behind the store."""
        [at] = parse_address(weaviate_url).nodes
        client = weaviate.use_async_with_custom(
            http_host=at.host,
            http_port=at.http,
            http_secure=False,
            grpc_host=at.host,
            grpc_port=at.grpc,
            grpc_secure=False,
            skip_init_checks=True,
        )
        async with client:
            yield client

    async def test_a_half_written_document_is_invisible(self, store, index, client):
        await store.replace(index, {"d": document("d", 3)})
        chunks = client.collections.use(chunk_class(index)).with_tenant(place_name(index))
        half = [to_object(row, version_at(time.time())) for row in document("d", 2, version=2) + document("new", 4, seed=2)]
        await chunks.data.insert_many(half)
        for _ in range(2):
            assert len(await everything(store, index)) == 3
            assert len(await store.keyword(index, ["every"], 3)) == 3
            assert len(await store.scan(index)) == 3
        assert await store.count(index) == 3
        assert await store.count(index, "new") == 0

    async def test_what_was_written_long_before_something_else_is_searched_once(self, store, index, weaviate_url):
        await store.replace(index, {"old": document("old", 3)})
        await asyncio.sleep(0.5)
        await store.replace(index, {"new": document("new", 2, seed=2)})
        reader = Counted(Connection(parse_address(weaviate_url), None), long_ago=0.2)
        assert len(await reader.scan(index, document_id="new")) == 2
        assert reader.searches == 2, "nothing tells yet that it was not written during the search"
        assert len(await reader.scan(index, document_id="old")) == 3
        assert reader.searches == 3
        await reader.close()

    async def test_what_a_crashed_writer_left_goes_with_a_later_replace(self, store, index, client):
        chunks = client.collections.use(chunk_class(index)).with_tenant(place_name(index))
        crashed = version_at(time.time() - ABANDONED - 60)
        await chunks.data.insert_many([to_object(row, crashed) for row in document("d", 7)])
        await store.replace(index, {"d": document("d", 2, version=2)})
        assert (await chunks.aggregate.over_all(total_count=True)).total_count == 2

    async def test_what_a_crashed_writer_left_is_told_apart_from_a_writer_at_work_and_cleaned(self, store, index, behind):
        rows = document("d", 3)
        await store.replace(index, {"d": rows})
        await behind.copy(index, "d", "d", version_at(time.time() - ABANDONED - 60))
        await behind.copy(index, "d", "new", version_at(time.time()))
        held = {"d": holding(rows, left_over=3), "new": Holding()}
        assert await store.holdings(index, ["d", "new"]) == held
        assert await store.size(index) == 12
        await store.clean(index, ["d", "new"])
        assert await store.holdings(index, ["d"]) == {"d": holding(rows)}
        assert await store.size(index) == 9

    async def test_a_document_without_its_marker_is_held_no_more(self, store, index, behind):
        await store.replace(index, {"d": document("d", 3)})
        await behind.remove_marker(index, "d")
        assert await store.holdings(index, ["d"]) == {"d": Holding()}

    async def test_a_replace_leaves_no_old_chunks_behind(self, store, index, client):
        chunks = client.collections.use(chunk_class(index)).with_tenant(place_name(index))
        for version in range(3):
            await store.replace(index, {"d": document("d", 5, version=version), "e": document("e", 1, version=version)})
        await store.replace(index, {"e": []})
        assert (await chunks.aggregate.over_all(total_count=True)).total_count == 5

    async def test_an_idle_collection_may_be_deactivated_and_wakes_with_its_next_use(self, store, index, client):
        await store.replace(index, {"d": document("d", 3)})
        for name in (chunk_class(index), live_class(index)):
            await client.collections.use(name).tenants.deactivate(place_name(index))
        assert len(await everything(store, index)) == 3
        for name in (chunk_class(index), live_class(index)):
            await client.collections.use(name).tenants.deactivate(place_name(index))
        await store.create(index)
        await store.replace(index, {"e": document("e", 2)})
        assert await store.count(index) == 5

    async def test_publish_points_the_alias_at_the_class(self, store, index, client):
        await store.publish(index)
        assert (await client.alias.get(alias_name="Footnote")).collection == chunk_class(index)
        other = dataclasses.replace(new_index(), schema="another schema!")
        await store.create(other)
        await store.publish(other)
        assert (await client.alias.get(alias_name="Footnote")).collection == chunk_class(other)
        await store.drop(other)
        assert await client.collections.exists(chunk_class(other))  # the alias points to it
        await store.publish(index)
        await store.drop(other)
        assert not await client.collections.exists(chunk_class(other))
        assert not await client.collections.exists(live_class(other))

    async def test_publishing_what_was_never_created_is_refused(self, store):
        with pytest.raises(StoreRejected, match="create"):
            await store.publish(dataclasses.replace(new_index(), schema="nowhere"))
