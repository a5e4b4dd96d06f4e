"""One index as it grows to a million chunks: load, index build, disk and memory, and searches with and without a filter.

python benchmarks/scale.py --corpus ../corpora/scifact --store lance:scale --folder scale
python benchmarks/scale.py --corpus ../corpora/scifact --store 'weaviate://127.0.0.1:8080?grpc=50051' --folder DATA --pid PID

Chunks are sentences of the corpus in random order, so that their words are as frequent as in real text; vectors lie around
random centres in a space of few dimensions, as those of a model do. Questions are the corpus's own, and each one's vector
lies near a stored one. Searches are the product's, one after the other. `recall_at_10` compares with an exact search over all
vectors, a filtered one with the exact search over what the filter leaves. `rss_mb` is what the store added to this process,
or all that its server holds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from machine import folder_mb
from quality import read_lines

from retrieval.analysis import analyze
from retrieval.embedders import Tokenizer
from retrieval.search import Searcher
from retrieval.stores import VectorStore, open_store
from retrieval.types import Chunk, Compare, EmbeddedChunk, Index, Matrix, Query, Vector, chunk_id

DIMENSION = 384
INNER = 48
"""Dimensions in which the vectors really differ."""
CENTRES = 2000
PER_DOCUMENT = 10
SENTENCES = 5
SHARES = 100
"""A filter for one of them leaves 1 %."""
ONE_PERCENT = Compare("share", "eq", 7)


class World:
    """Vectors and texts by number, the same ones each time."""

    def __init__(self, corpus: Path) -> None:
        random = np.random.default_rng(1)
        self.spread = random.normal(size=(INNER, DIMENSION)).astype(np.float32)
        self.centres = random.normal(size=(CENTRES, INNER)).astype(np.float32)
        texts = [row["text"] for row in read_lines(corpus / "corpus.jsonl")]
        sentences = [s for text in texts for s in re.split(r"(?<=[.?!]) ", text) if s]
        self.sentences = [(sentence, " ".join(analyze(sentence, "en"))) for sentence in sentences]
        self.questions = [row["text"] for row in read_lines(corpus / "queries.jsonl")]

    def vectors(self, first: int, count: int) -> Matrix:
        """Of the chunks `first`.. of which there are `count`; one block always comes out the same."""
        random = np.random.default_rng((2, first))
        inner = self.centres[random.integers(CENTRES, size=count)] + 0.6 * random.normal(size=(count, INNER))
        return unit(inner.astype(np.float32) @ self.spread)

    def documents(self, first: int, vectors: Matrix) -> dict[str, list[EmbeddedChunk]]:
        random = np.random.default_rng((3, first))
        picks = random.integers(len(self.sentences), size=(len(vectors), SENTENCES)).tolist()
        found: dict[str, list[EmbeddedChunk]] = {}
        for number, (vector, pick) in enumerate(zip(vectors, picks, strict=True), first):
            document, position = divmod(number, PER_DOCUMENT)
            name = f"doc{document:08}"
            text, terms = (" ".join(self.sentences[i][part] for i in pick) for part in (0, 1))
            start = position * 1000
            place = chunk_id(name, 1, start, start + len(text), text)
            metadata = {"share": document % SHARES}
            chunk = Chunk(
                place, name, f"{name}.txt", position, text, start, start + len(text), metadata=metadata, language="en"
            )
            found.setdefault(name, []).append(EmbeddedChunk(chunk, vector, terms))
        return found


class Given:
    """An embedder that knows the vectors of the questions already: this measures what comes after it."""

    spec, dimension, fingerprint = "given:", DIMENSION, "given"
    tokenizer: Tokenizer

    def __init__(self, vectors: dict[str, Vector]) -> None:
        self.vectors = vectors

    async def embed_query(self, text: str) -> Vector:
        return self.vectors[text]

    async def embed_documents(self, texts: Sequence[str]) -> Matrix:
        return np.stack([self.vectors[text] for text in texts])

    async def close(self) -> None:
        pass


def unit(rows: Matrix) -> Matrix:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def questions_for(world: World, held: Matrix, count: int) -> dict[str, Vector]:
    """Questions with vectors somewhat off stored ones."""
    random = np.random.default_rng(4)
    near = held[random.integers(len(held), size=count)]
    noise = unit(random.normal(size=(count, INNER)).astype(np.float32) @ world.spread)
    return dict(zip(world.questions[:count], unit(near + 0.4 * noise), strict=False))


def exact(held: Matrix, asked: Matrix, share: int | None) -> list[set[tuple[str, int]]]:
    """The ten nearest of each question as document and position."""
    numbers = np.arange(len(held))
    if share is not None:
        numbers = numbers[numbers // PER_DOCUMENT % SHARES == share]
    best: list[set[tuple[str, int]]] = []
    for vector in asked:
        near = numbers[np.argpartition(-(held[numbers] @ vector if share is not None else held @ vector), 10)[:10]]
        best.append({(f"doc{n // PER_DOCUMENT:08}", n % PER_DOCUMENT) for n in near.tolist()})
    return best


async def load(store: VectorStore, index: Index, world: World, blocks: Iterator[tuple[int, Matrix]], writers: int) -> None:
    async def write() -> None:
        for first, vectors in blocks:
            await store.replace(index, await asyncio.to_thread(world.documents, first, vectors))

    await asyncio.gather(*(write() for _ in range(writers)))


async def searched(searcher: Searcher, index: Index, held: Matrix, asked: dict[str, Vector]) -> dict[str, object]:
    rows: dict[str, object] = {}
    for share, mode in itertools.product((None, ONE_PERCENT.value), ("hybrid", "vector", "keyword")):
        took, found = [], []
        for text in asked:
            query = Query(text, 10, mode, ONE_PERCENT if share is not None else None)
            began = time.perf_counter()
            found.append((await searcher.search(index, query, {"en"})).hits)
            took.append(1000 * (time.perf_counter() - began))
        row = {"p50_ms": round(statistics.median(took), 1), "p95_ms": round(statistics.quantiles(took, n=20)[18], 1)}
        if mode == "vector":
            best = exact(held, np.stack(list(asked.values())), share)
            hits = [{(hit.chunk.document_id, hit.chunk.position) for hit in each} for each in found]
            row["recall_at_10"] = round(sum(len(b & h) for b, h in zip(best, hits, strict=True)) / (10 * len(best)), 4)
        rows[mode if share is None else f"{mode}_1_percent"] = row
    return rows


async def measure(args: argparse.Namespace) -> None:
    world, store = World(args.corpus), await open_store(args.store)
    index = Index("scale", f"{time.time_ns():x}", "scale", DIMENSION)
    await store.create(index)
    held = np.empty((max(args.sizes), DIMENSION), np.float32)
    process = psutil.Process(args.pid)
    empty_mb, bare = folder_mb(args.folder), process.memory_info().rss
    size = 0
    for target in args.sizes:
        began = time.perf_counter()
        for first in range(size, target, args.block):
            held[first : first + args.block] = world.vectors(first, args.block)
        made = time.perf_counter()
        blocks = ((first, held[first : first + args.block]) for first in range(size, target, args.block))
        await load(store, index, world, blocks, args.writers)
        loaded = time.perf_counter()
        if tidy := getattr(store, "tidy", None):
            await tidy(index)
        built = time.perf_counter()
        assert await store.count(index) == target
        asked = questions_for(world, held[:target], args.questions)
        searcher = Searcher(store, Given(asked))
        for text in (*asked, *asked):  # a small index goes to memory once it has been asked and left alone for a while
            await searcher.search(index, Query(text, 10), {"en"})
            await asyncio.sleep(0.01)
        row = {
            "store": (await store.ping()),
            "chunks": target,
            "load_per_second": round((target - size) / (loaded - made)),
            "index_s": round(built - loaded, 1),
            "disk_mb": folder_mb(args.folder) - empty_mb,
            "rss_mb": (process.memory_info().rss - (bare + held[:target].nbytes if args.pid is None else 0)) // 2**20,
        }
        row |= await searched(searcher, index, held[:target], asked)
        print(json.dumps(row | {"generated_s": round(made - began, 1)}), flush=True)
        size = target
    await store.drop(index)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a set in the BEIR layout")
    parser.add_argument("--store", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the store keeps its files")
    parser.add_argument("--pid", type=int, help="of the store's server; without it the store is in this process")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--block", type=int, default=5_000, help="chunks of one write")
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--questions", type=int, default=200)
    args = parser.parse_args()
    if any(size % args.block for size in args.sizes):
        parser.error(f"--sizes: multiples of --block ({args.block:,})")
    asyncio.run(measure(args))


if __name__ == "__main__":
    main()
