"""The store contract on a real Weaviate, and what is special about a server."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
import weaviate

from retrieval.digest import digest_of
from retrieval.errors import ConfigurationError, StoreRejected, StoreUnavailable
from retrieval.stores import open_store
from retrieval.stores.rows import place_name
from retrieval.stores.weaviate import ABANDONED, version_at
from retrieval.stores.weaviate_connection import Connection
from retrieval.stores.weaviate_schema import chunk_class, live_class, to_object
from retrieval.types import Holding
from tests.contracts.behind import BehindWeaviate
from tests.contracts.filter_contract import everything
from tests.contracts.rows_for_tests import document, unit_vectors
from tests.contracts.store_contract import StoreContract, new_index
from tests.services import free_ports, running_weaviate, weaviate_binary


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
        at = Connection(weaviate_url, None)
        client = weaviate.use_async_with_custom(
            http_host=at.host,
            http_port=at.port,
            http_secure=False,
            grpc_host=at.host,
            grpc_port=at.grpc_port,
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
        held = {"d": Holding(3, digest_of(rows), left_over=3), "new": Holding()}
        assert await store.holdings(index, ["d", "new"]) == held
        assert await store.size(index) == 12
        await store.clean(index, ["d", "new"])
        assert await store.holdings(index, ["d"]) == {"d": Holding(3, digest_of(rows))}
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


@pytest.mark.parametrize("url", ["weaviate:", "weaviate://host:port", "weaviate://host?grpc=x"])
async def test_a_malformed_url_is_refused(url):
    with pytest.raises(ConfigurationError, match="weaviate://host:8080"):
        await open_store(url)


async def test_an_absent_server_is_named_with_the_cure():
    http, grpc = free_ports(2)
    with pytest.raises(
        StoreUnavailable, match=rf"127.0.0.1:{http}\?grpc={grpc}.*docker compose up.*gRPC port {grpc}"
    ) as caught:
        await open_store(f"weaviate://127.0.0.1:{http}?grpc={grpc}")
    assert caught.value.retryable


async def test_a_wrong_grpc_port_shows_when_the_store_is_opened(weaviate_url):
    (port,) = free_ports(1)
    with pytest.raises(StoreUnavailable, match=f"gRPC port {port}"):
        await open_store(f"{weaviate_url.partition('?')[0]}?grpc={port}")


@pytest.fixture
def binary():
    return weaviate_binary() or pytest.skip("no Weaviate: put its binary on PATH as `weaviate`")


async def test_a_wrong_key_is_told_from_an_absent_server(binary):
    settings = {
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": "right",
        "AUTHENTICATION_APIKEY_USERS": "footnote",
    }
    with running_weaviate(binary, settings) as url:
        for key in ("wrong", None):
            with pytest.raises(StoreRejected, match="API key"):
                await open_store(url, api_key=key)
        store = await open_store(url, api_key="right")
        assert (await store.ping()).startswith("Weaviate ")
        await store.close()


async def test_a_server_that_comes_back_is_found_again(binary, tmp_path):
    http, grpc = free_ports(2)
    settings = {"PERSISTENCE_DATA_PATH": str(tmp_path / "data"), "GRPC_PORT": str(grpc)}
    index = new_index()
    with running_weaviate(binary, settings, http=http) as url:
        store = await open_store(f"{url.partition('?')[0]}?grpc={grpc}")
        await store.create(index)
        await store.replace(index, {"d": document("d", 3)})
    with pytest.raises(StoreUnavailable):
        await store.count(index)
    with running_weaviate(binary, settings, http=http):
        assert await reached(store, index) == 3
        assert len(await store.nearest(index, unit_vectors(1)[0], 5)) == 3
        await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.count(index)


async def reached(store, index) -> int:
    """The count, once the server has opened its shards again."""
    for _ in range(50):
        try:
            return await store.count(index)
        except StoreUnavailable:
            await asyncio.sleep(0.2)
    return await store.count(index)
