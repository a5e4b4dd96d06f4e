"""Many collections in one store: seconds to create, write and search one of them, and what a server takes, as they grow.

python benchmarks/many_collections.py --store 'weaviate://127.0.0.1:8080?grpc=50051' --pid PID_OF_WEAVIATE --collections 10000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
import psutil

from retrieval.stores import VectorStore, open_store
from retrieval.types import Chunk, EmbeddedChunk, Index, Vector, chunk_id

DIMENSION = 384
CHUNKS = 3
AT_ONCE = 8


def vectors(count: int, seed: int) -> list[Vector]:
    found = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return list(found / np.linalg.norm(found, axis=1, keepdims=True))


def document(number: int) -> list[EmbeddedChunk]:
    rows = []
    for position, vector in enumerate(vectors(CHUNKS, number)):
        text = f"passage {position} of collection {number}"
        place = chunk_id("d", 1, position, position + 1, text)
        chunk = Chunk(place, "d", "d.txt", position, text, position, position + 1)
        rows.append(EmbeddedChunk(chunk, vector, text))
    return rows


async def timed(call: Callable[[], Awaitable[object]], took: list[float]) -> None:
    began = time.perf_counter()
    await call()
    took.append((time.perf_counter() - began) * 1000)


async def grow(store: VectorStore, indexes: list[Index], first: int) -> dict[str, list[float]]:
    """Create and fill the indexes, several at once; the milliseconds of each call."""
    took: dict[str, list[float]] = {"create": [], "replace": [], "create_again": []}
    numbered = iter(enumerate(indexes, first))

    async def worker() -> None:
        for number, index in numbered:
            rows = {"d": document(number)}
            await timed(lambda index=index: store.create(index), took["create"])
            await timed(lambda index=index, rows=rows: store.replace(index, rows), took["replace"])
            await timed(lambda index=index: store.create(index), took["create_again"])

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return took


async def search(store: VectorStore, indexes: list[Index], count: int = 200) -> list[float]:
    """One question after the other, each to another collection."""
    took: list[float] = []
    for number, index in enumerate(random.Random(count).choices(indexes, k=count)):
        await timed(lambda index=index, number=number: store.nearest(index, vectors(1, number)[0], 10), took)
    return took


async def put_to_sleep(http: str, run: str) -> None:
    """Deactivate every tenant of this run, which frees what it takes; the next use of one wakes it."""
    async with httpx.AsyncClient(base_url=http, timeout=300, trust_env=False) as client:
        for name in ("Footnote_many", "FootnoteLive_many"):
            path = f"/v1/schema/{name}/tenants"
            hot = [t["name"] for t in (await client.get(path)).json() if run in t["name"] and t["activityStatus"] != "COLD"]
            for first in range(0, len(hot), 100):
                cold = [{"name": each, "activityStatus": "COLD"} for each in hot[first : first + 100]]
                (await client.put(path, json=cold)).raise_for_status()


def server(pid: int | None) -> dict[str, int]:
    if pid is None:
        return {}
    process = psutil.Process(pid)
    return {"rss_mb": process.memory_info().rss // 2**20, "files": process.num_fds(), "threads": process.num_threads()}


def middle(took: list[float]) -> float:
    return round(statistics.median(took), 1)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--collections", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--asleep", metavar="HTTP_URL", help="deactivate all of them after each step, through this address")
    args = parser.parse_args()
    store = await open_store(args.store)
    run = f"{time.time_ns():x}"
    indexes: list[Index] = []
    for _ in range(args.steps):
        more = [Index(f"c{len(indexes) + i}", run, "many", DIMENSION) for i in range(args.collections // args.steps)]
        began = time.perf_counter()
        took = await grow(store, more, len(indexes))
        spent = time.perf_counter() - began
        indexes += more
        if args.asleep:
            await put_to_sleep(args.asleep, run)
        searched = await search(store, indexes)
        row = {f"{name}_ms": middle(each) for name, each in took.items()}
        row |= {"search_ms": middle(searched), "search_p95_ms": round(statistics.quantiles(searched, n=20)[18], 1)}
        print(
            json.dumps({"collections": len(indexes), "per_second": round(len(more) / spent, 1), **row, **server(args.pid)}),
            flush=True,
        )
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
