"""Three real Weaviate nodes on this machine: one is killed while documents are loaded, and another while they are asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from retrieval.errors import StoreUnavailable
from retrieval.stores import open_store
from tests.contracts.filter_contract import everything
from tests.contracts.rows_for_tests import document, ids, unit_vectors
from tests.contracts.store_contract import new_index
from tests.contracts.test_weaviate_faults import persistently
from tests.services import WeaviateServer, weaviate_binary, weaviate_cluster

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[WeaviateServer]]:
    binary = weaviate_binary() or pytest.skip("no Weaviate: put its binary on PATH as `weaviate`")
    with weaviate_cluster(binary, 3, {"ASYNC_REPLICATION_FREQUENCY": "1s"}) as nodes:
        yield nodes


def url(nodes: list[WeaviateServer], options: str = "replicas=3&consistency=quorum") -> str:
    hosts = ",".join(f"127.0.0.1:{node.http}" for node in nodes)
    return f"weaviate://{hosts}?grpc={','.join(str(node.grpc) for node in nodes)}&{options}"


@pytest.mark.skipif(
    not os.environ.get("FOOTNOTE_TEST_CHAOS_ROUNDS"), reason="takes two minutes, in which the nodes catch up: make chaos"
)
async def test_a_cluster_that_loses_a_node_while_loading_and_one_while_asking_loses_nothing(nodes):
    """The store talks to the first node that answers; that is the one which dies, both times."""
    store, reader, index = await open_store(url(nodes)), await open_store(url(nodes)), new_index()
    await persistently(lambda: store.create(index))
    wanted: dict[str, list[str]] = {}

    async def load(first: int, last: int) -> None:
        for number in range(first, last):
            rows = document(f"d{number}", 6, seed=number)
            await persistently(lambda number=number, rows=rows: store.replace(index, {f"d{number}": rows}))
            wanted[f"d{number}"] = ids(rows)

    loading = asyncio.create_task(load(0, 12))
    while len(wanted) < 4:
        await asyncio.sleep(0.05)
    nodes[0].kill()
    await loading
    every_id = sorted(each for chunks in wanted.values() for each in chunks)
    assert await persistently(lambda: everything(reader, index)) == every_id

    # It missed documents, and a new version of one that it holds; it has them soon after it is back, from the others.
    rows = document("d0", 4, version=2, seed=0)
    await persistently(lambda: store.replace(index, {"d0": rows, "d1": []}))
    wanted["d0"] = ids(rows)
    del wanted["d1"]
    every_id = sorted(each for chunks in wanted.values() for each in chunks)
    await asyncio.to_thread(nodes[0].start)
    alone = await open_store(url(nodes[:1]))
    async with asyncio.timeout(120):
        while await persistently(lambda: everything(alone, index)) != every_id:
            await asyncio.sleep(0.5)
    await alone.close()

    # Now the node dies that all talk to, between and within questions.
    failed = 0
    for turn in range(30):
        if turn == 10:
            nodes[1].kill()
        try:
            found = await reader.nearest(index, unit_vectors(1, seed=turn)[0], 500)
        except StoreUnavailable:
            failed += 1
            found = await persistently(lambda turn=turn: reader.nearest(index, unit_vectors(1, seed=turn)[0], 500))
        assert sorted(ids(found)) == every_id
        assert sorted(ids(await persistently(lambda: reader.keyword(index, ["every"], 500)))) == every_id
    assert failed <= 2
    assert await persistently(lambda: store.count(index)) == len(every_id)
    await load(20, 22)
    assert await persistently(lambda: reader.count(index, "d21")) == 6
    await store.close()
    await reader.close()


async def test_another_number_of_copies_and_silent_nodes_are_named(nodes):
    for node in nodes:
        if node.process is None:
            await asyncio.to_thread(node.start)
    store = await open_store(url(nodes))
    await persistently(lambda: store.create(new_index()))
    assert await persistently(store.problems) == []
    await store.close()
    other = await open_store(url(nodes, "replicas=2"))
    [problem] = await persistently(other.problems)
    assert "do not keep replicas=2 copies" in problem
    assert "keeps 3" in problem
    nodes[2].kill()
    assert [f"127.0.0.1:{nodes[2].http}" in each for each in await persistently(other.problems)] == [False, True]
    await other.close()
