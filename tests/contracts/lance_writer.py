"""A writer in a process of its own: `python -m tests.contracts.lance_writer URL GENERATION NAME COUNT`.

Writes COUNT documents of five chunks that only it writes, and between them one that every writer writes.
"""

from __future__ import annotations

import asyncio
import sys

from retrieval.stores import open_store
from retrieval.types import Index
from tests.contracts.rows_for_tests import DIMENSION, document


async def write(url: str, generation: str, name: str, count: int) -> None:
    index = Index("library", generation, f"contract_{DIMENSION}", DIMENSION)
    store = await open_store(url)
    for number in range(count):
        rows = document(f"{name}{number}", 5, seed=number, metadata={name: number, f"k{number % 4}": "v"})
        await store.replace(index, {f"{name}{number}": rows})
        await store.replace(index, {"shared": document("shared", 6, version=1000 * number + ord(name))})
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
    await store.close()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
