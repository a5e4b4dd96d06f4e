"""What goes wrong with a Weaviate in production, provoked on real servers: each has its code, its cure, and an end."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from retrieval.errors import (
    ConfigurationError,
    FootnoteError,
    StoreForbidden,
    StoreFull,
    StoreGrpcUnavailable,
    StoreKeyRejected,
    StoreLimitReached,
    StoreReadOnly,
    StoreRejected,
    StoreTooOld,
    StoreUnavailable,
)
from retrieval.stores import open_store
from retrieval.stores.weaviate_address import parse_address
from retrieval.stores.weaviate_errors import kind_of
from tests.contracts.rows_for_tests import document, embedded, ids, unit_vectors
from tests.contracts.store_contract import new_index
from tests.services import WeaviateServer, free_ports, weaviate_binary, weaviate_server

T = TypeVar("T")

pytestmark = pytest.mark.timeout(400)

PATIENCE_SECONDS = 150.0


@pytest.fixture(scope="module")
def binary() -> str:
    return weaviate_binary() or pytest.skip("no Weaviate: put its binary on PATH as `weaviate`")


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """What a job or a client that retries gets in the end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except FootnoteError as exc:
                if not exc.retryable:
                    raise
                await asyncio.sleep(0.1)


async def raised(kind: type[FootnoteError], call: Callable[[], Awaitable[object]]) -> FootnoteError:
    """The error of this kind that a call comes to raise, once what was provoked has come about."""
    said: set[str] = set()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    await call()
                except kind as exc:
                    return exc
                except StoreUnavailable as exc:
                    said.add(exc.message)
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"no {kind.__name__}, but {said or 'no error'}")


# The address


def test_each_host_has_an_http_and_a_grpc_address():
    address = parse_address("weaviate://a,b:81,[::1]:82?grpc=1,2,3&replicas=3&consistency=all")
    assert [str(node) for node in address.nodes] == [
        "weaviate://a:8080?grpc=1",
        "weaviate://b:81?grpc=2",
        "weaviate://[::1]:82?grpc=3",
    ]
    assert (address.replicas, address.consistency.value) == (3, "ALL")
    [hosted] = parse_address("weaviates://hosted.example?grpc=grpc-hosted.example:443").nodes
    assert (hosted.http, hosted.grpc_host, hosted.grpc, hosted.secure) == (443, "grpc-hosted.example", 443, True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("weaviate:", "names no host"),
        ("weaviate://host:port", "'port'"),
        ("weaviate://host?grpc=x", "'x'"),
        ("weaviate://host:99999", "0-65535"),
        ("weaviates://host:443?grpc=443", "443 cannot be both"),
        ("weaviate://a,,c", "names no host"),
        ("weaviate://a,b?grpc=1,2,3", "as many gRPC ports as hosts"),
        ("weaviate://a?replica=3", "unknown option 'replica'; known: grpc, replicas, consistency"),
        ("weaviate://a?replicas=0", "a number from 1 up"),
        ("weaviate://a?consistency=most", "one, quorum or all"),
    ],
)
async def test_a_malformed_url_is_refused(url, said):
    with pytest.raises(ConfigurationError, match=said):
        await open_store(url)


# Not there, or not as it should be


async def test_a_store_that_is_not_there_yet_is_opened_and_its_absence_named_with_the_cure():
    http, grpc = free_ports(2)
    store = await open_store(f"weaviate://127.0.0.1:{http}?grpc={grpc}")
    for call in (store.ping, lambda: store.count(new_index()), lambda: store.create(new_index())):
        with pytest.raises(
            StoreUnavailable, match=rf"127.0.0.1:{http}\?grpc={grpc}.*docker compose up.*gRPC port {grpc}"
        ) as caught:
            await call()
        assert caught.value.retryable
    await store.close()


async def test_a_wrong_grpc_port_is_told_from_an_absent_server(weaviate_url):
    http = weaviate_url.partition("?")[0]
    (closed,) = free_ports(1)
    with says_version("1.39.0") as speaks_http:
        for port in (closed, speaks_http):
            store = await open_store(f"{http}?grpc={port}")
            with pytest.raises(StoreGrpcUnavailable, match=f"gRPC port {port}.*grpc=PORT"):
                await store.ping()
            await store.close()


@contextmanager
def says_version(version: str) -> Iterator[int]:
    """The port of a server that knows one thing of Weaviate's: its version."""

    class Meta(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/v1/meta"
            body = json.dumps({"version": version} if known else {}).encode()
            self.send_response(200 if known else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Meta) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_what_a_server_says_while_it_opens_its_classes_is_tried_again_and_so_is_what_nobody_knows():
    assert kind_of("explorer: list class: search: tried to browse non-existing index for FootnoteLive_b0") is StoreUnavailable
    assert kind_of("something new") is None
    assert StoreRejected.retryable


@pytest.mark.parametrize("version", ["1.32.9", "1.19.0"])
async def test_a_version_too_old_is_refused_at_the_start(version):
    with says_version(version) as port, pytest.raises(StoreTooOld, match=r"1\.33 or newer; upgrade") as caught:
        await open_store(f"weaviate://127.0.0.1:{port}")
    assert version in caught.value.message


@pytest.fixture(scope="module")
def strict(binary) -> Iterator[WeaviateServer]:
    """A server with keys, rights and limits."""
    settings = {
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": "writer-key,reader-key",
        "AUTHENTICATION_APIKEY_USERS": "writer,reader",
        "AUTHORIZATION_ADMINLIST_ENABLED": "true",
        "AUTHORIZATION_ADMINLIST_USERS": "writer",
        "AUTHORIZATION_ADMINLIST_READONLY_USERS": "reader",
        "REPLICATION_MAXIMUM_FACTOR": "1",  # without it, the server takes no limits
        "MAXIMUM_ALLOWED_COLLECTIONS_COUNT": "2",
        "MAXIMUM_ALLOWED_TENANTS_PER_COLLECTION": "3",
        "GRPC_MAX_MESSAGE_SIZE": "60000",
    }
    with weaviate_server(binary, settings) as server:
        yield server


@pytest.mark.parametrize("key", ["wrong", None])
async def test_a_wrong_key_is_refused_at_the_start(strict, key):
    with pytest.raises(StoreKeyRejected, match="FOOTNOTE_STORE_API_KEY"):
        await open_store(strict.url, api_key=key)


async def test_a_missing_permission_is_told_from_a_wrong_key(strict):
    store = await open_store(strict.url, api_key="reader-key")
    assert (await persistently(store.ping)).startswith("Weaviate ")
    with pytest.raises(StoreForbidden, match=r"lacks a permission.*`Footnote"):
        await store.create(new_index())
    await store.close()


async def test_limits_of_the_server_are_named(strict):
    store = await open_store(strict.url, api_key="writer-key")
    indexes = [new_index() for _ in range(4)]
    for index in indexes[:3]:
        await persistently(lambda index=index: store.create(index))
    with pytest.raises(StoreLimitReached, match="MAXIMUM_ALLOWED_TENANTS"):
        await store.create(indexes[3])
    with pytest.raises(StoreLimitReached, match="MAXIMUM_ALLOWED_COLLECTIONS_COUNT"):
        await store.create(dataclasses.replace(indexes[3], schema="another"))
    rows = document("d", 200)  # more than one message of this server's
    await store.replace(indexes[0], {"d": rows})
    assert set(ids(await store.keyword(indexes[0], ["every"], 10))) < {row.chunk.id for row in rows}
    with pytest.raises(StoreLimitReached, match="GRPC_MAX_MESSAGE_SIZE"):
        await store.replace(indexes[0], {"big": [embedded("big", "word " * 20_000)]})
    assert await store.count(indexes[0]) == 200
    await store.close()


# No room


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(tmp_path)], check=False).returncode
    ):
        pytest.skip("no small disk: this needs the right to mount one")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_disk_over_the_threshold_and_a_full_one_are_told_apart_and_end(binary, small_disk):
    server = WeaviateServer(binary, small_disk, {"DISK_USE_WARNING_PERCENTAGE": "70", "DISK_USE_READONLY_PERCENTAGE": "70"})
    ballast = small_disk / "ballast"
    versions = iter(range(1, 10_000))
    try:
        server.start()
        store, index = await open_store(server.url), new_index()
        await persistently(lambda: store.create(index))
        await store.replace(index, {"d": document("d", 3)})

        async def write() -> None:
            await store.replace(index, {"e": document("e", 50, version=next(versions))})

        ballast.write_bytes(bytes(36 << 20))
        error = await raised(StoreReadOnly, write)
        assert error.retryable
        assert "DISK_USE_READONLY_PERCENTAGE" in error.message
        assert await persistently(lambda: store.count(index, "d")) == 3
        ballast.unlink()
        await persistently(write)
        server.stop()

        server.settings = {"DISK_USE_READONLY_PERCENTAGE": "0"}
        await asyncio.to_thread(server.start)
        filled = subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], check=False, capture_output=True)
        assert b"No space" in filled.stderr
        error = await raised(StoreFull, write)
        assert error.retryable
        assert "start it again" in error.message
        ballast.unlink()
        server.kill()
        await asyncio.to_thread(server.start)
        await persistently(write)
        assert [await persistently(lambda each=each: store.count(index, each)) for each in "de"] == [3, 50]
        await store.close()
    finally:
        server.stop()


# Killed, and started again


async def test_a_store_that_is_opened_first_finds_its_server_later(binary, tmp_path):
    server, index = WeaviateServer(binary, tmp_path), new_index()
    store = await open_store(server.url)
    try:
        with pytest.raises(StoreUnavailable):
            await store.create(index)
        await asyncio.to_thread(server.start)
        await persistently(lambda: store.create(index))
        await store.replace(index, {"d": document("d", 3)})
        assert await store.count(index) == 3
        server.stop()
        with pytest.raises(StoreUnavailable):
            await store.count(index)
    finally:
        server.stop()
        await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.count(index)


async def test_kills_while_documents_change_lose_nothing_and_show_no_mixture(binary, tmp_path):
    """Each acknowledged version stays, and a reader sees the whole of one version or is told that the store is away."""
    server, index = WeaviateServer(binary, tmp_path), new_index()
    server.start()
    store, reader = await open_store(server.url), await open_store(server.url)
    versions = [document("d", 12, version=version) for version in range(4)]
    whole = [sorted(ids(rows)) for rows in versions]
    seen: list[str] = []
    written, done = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            await persistently(
                lambda turn=turn: store.replace(index, {"d": versions[turn % 4], f"n{turn}": document(f"n{turn}", 2)})
            )
            assert await persistently(lambda turn=turn: store.count(index, f"n{turn}")) == 2
            written.set()

    async def read() -> None:
        while not done.is_set():
            try:
                found = [each for each in await reader.nearest(index, unit_vectors(1)[0], 500) if each.chunk.document_id == "d"]
                assert sorted(ids(found)) in whole
                seen.append("whole")
            except StoreUnavailable:
                seen.append("away")
            await asyncio.sleep(0.01)

    async def kill() -> None:
        for _ in range(2):
            written.clear()
            await written.wait()
            await asyncio.sleep(0.05)
            server.kill()
            await asyncio.to_thread(server.start)
        written.clear()
        await written.wait()
        done.set()

    try:
        await persistently(lambda: store.create(index))
        await store.replace(index, {"d": versions[0]})
        await asyncio.gather(write(), read(), read(), kill())
        assert {"whole", "away"} <= set(seen)
        assert await store.count(index) == 12 + 2 * len({each for each in await documents(store, index) if each != "d"})
    finally:
        server.stop()
        await store.close()
        await reader.close()


async def documents(store, index) -> set[str]:
    return {chunk.document_id for chunk in await store.scan(index, limit=5000)}
