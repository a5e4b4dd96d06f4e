"""What a comparison of store and ledger costs: seconds to compare counts, and to read all chunks of one index."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from ingest.blobs.folder import Folder
from ingest.catalog import Catalog
from ingest.chunk import Chunking
from ingest.database import open_database
from ingest.files import Files
from ingest.jobs import Jobs
from ingest.ledger import Ledger
from ingest.reconcile import Reconciler
from ingest.records import Entry, Upload
from retrieval.digest import digest_of
from retrieval.stores import open_store
from retrieval.types import Chunk, EmbeddedChunk, chunk_id

WORDS = [f"word{number}" for number in range(5000)]
DIMENSION = 384


def document(document_id: str, chunks: int, seed: int) -> list[EmbeddedChunk]:
    """Chunks of about 160 tokens with unit vectors of the default model's length."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(chunks, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = []
    for position in range(chunks):
        text = " ".join(random.choice(WORDS, size=110))
        start = position * 1000
        fields = {"document_id": document_id, "document_name": f"{document_id}.txt", "position": position}
        place = {"start": start, "end": start + len(text), "metadata": {"year": 2024, "tags": ("a", "b")}}
        chunk = Chunk(id=chunk_id(document_id, 1, start, start + len(text), text), text=text, **fields, **place)
        rows.append(EmbeddedChunk(chunk, vectors[position], text))
    return rows


async def everything(_hashes: object) -> bool:
    return True


async def measure(url: str, documents: int, chunks: int, folder: Path) -> None:
    database = await open_database(f"sqlite+aiosqlite:///{folder}/catalog.sqlite")
    catalog, jobs, store = Catalog(database), Jobs(database, lease_seconds=60, max_attempts=1), await open_store(url)
    await catalog.create_collection("bench", chunking=Chunking())
    values = {"embedder": "e", "fingerprint": "f", "schema": f"bench{time.time_ns()}", "dimension": DIMENSION}
    generation = await catalog.create_generation("bench", **values, chunking=Chunking(), live=True)
    await store.create(generation.index)
    for number in range(documents):
        upload = Upload(f"{number}", f"{number:064}", 1, "text/plain", {})
        await catalog.accept("bench", [upload], chunking=Chunking(), exist=everything)
        job = await jobs.claim("bench")
        rows = document(job.document_id, chunks, number)
        await store.replace(generation.index, {job.document_id: rows})
        source = {"status": "ready", "receipt": {}, "version": 1, "sha256": upload.sha256, "media_type": "text/plain"}
        entry = Entry(generation, f"{number:064}", chunks, frozenset(), digest=digest_of(rows))
        await jobs.settle.ingest(job, [entry], source)
    reconciler = Reconciler(catalog=catalog, ledger=Ledger(database), files=Files(Folder(folder)), store=store)
    await reconciler.ledger.compared(generation)
    began, cpu = time.perf_counter(), time.process_time()
    assert not await reconciler._is_suspect(generation)  # noqa: SLF001
    counted = time.perf_counter()
    found = [each async for each in reconciler.compare(generation)]
    ended = time.perf_counter()
    assert sum(each.checked for each in found) == documents
    assert not any(each.drifts for each in found)
    total = documents * chunks
    print(
        f"{url.partition(':')[0]}: {total:,} chunks in {documents:,} documents: counts {counted - began:.3f} s, "
        f"everything {ended - counted:.2f} s ({total / (ended - counted):,.0f} chunks/s), CPU {time.process_time() - cpu:.2f} s"
    )
    await store.drop(generation.index)
    await store.close()
    await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="a store's URL; without it, LanceDB in a temporary folder")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--chunks", type=int, default=20, help="per document")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(given.store or f"lance:{folder}/lance", given.documents, given.chunks, Path(folder)))


if __name__ == "__main__":
    main()
