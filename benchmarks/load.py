"""Upload to answerable, then `/search` under load, and what each process of the service takes.

python benchmarks/load.py --corpus ../corpora/scifact --documents 250 --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx
from machine import family, listener, peak_mb
from quality import ingest, read_lines


async def fill(url: str, collection: str, corpus: list[dict]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:
        await ingest(http, f"{collection}-warm", corpus[:8])  # the model is loaded, as it is on any day but the first
        seconds = await ingest(http, collection, corpus)
    rate = round(len(corpus) / seconds, 1)
    print(json.dumps({"documents": len(corpus), "seconds": round(seconds, 1), "documents_per_second": rate}))


def question(texts: list[str], number: int, collection: str = "default") -> bytes:
    """A request; every number is another one: a corpus has fewer than are asked here, and the service remembers answers."""
    text = f"{texts[number % len(texts)]} {number // len(texts) or ''}".strip()
    return json.dumps({"question": text, "collection": collection, "top_k": 10}).encode()


async def client_loop(place: SplitResult, bodies: Iterator[bytes], until: float, took: list[float], failed: list[int]) -> None:
    """One client over one connection. Plain sockets: a client library takes more CPU for a question than the service."""
    head = f"POST /search HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\ncontent-length: "
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    while time.perf_counter() < until:
        body = next(bodies)
        began = time.perf_counter()
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r")[0]))
        if b" 200 " in answer.partition(b"\r")[0]:
            took.append((time.perf_counter() - began) * 1000)
        else:
            failed.append(int(answer.split(b" ", 2)[1]))
    writer.close()


async def search_load(url: str, bodies: Iterator[bytes], clients: int, seconds: float, what: str) -> dict:
    """Closed loop: each client asks again as soon as it has its answer."""
    place, process = urlsplit(url), listener(urlsplit(url).port or 80)
    took: list[float] = []
    failed: list[int] = []
    began, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
    await asyncio.gather(*(client_loop(place, bodies, began + seconds, took, failed) for _ in range(clients)))
    spent, cpu = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
    cuts = statistics.quantiles(took, n=100)
    return {
        "questions": what,
        "clients": clients,
        "per_second": round(len(took) / spent, 1),
        "p50_ms": round(cuts[49], 1),
        "p95_ms": round(cuts[94], 1),
        "cpu_ms_per_question": round(1000 * cpu / len(took), 2),
        "failed": len(failed),
    }


def memory(port: int) -> list[dict]:
    """Resident and peak memory of the process that listens on the port, and of those below it."""
    return [
        {"process": " ".join(each.cmdline())[-60:], "rss_mb": each.memory_info().rss // 2**20, "peak_mb": peak_mb(each)}
        for each in family(listener(port))
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--collection", help="one that holds the documents already, instead of a new one")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    corpus = read_lines(args.corpus / "corpus.jsonl")[: args.documents]
    questions = read_lines(args.corpus / "queries.jsonl")
    collection = args.collection or f"load-{int(time.time())}"
    if args.collection is None:
        await fill(args.url, collection, corpus)
    texts = [q["text"] for q in questions]
    fresh = (question(texts, number, collection) for number in itertools.count())
    repeated = itertools.cycle([question(texts, number, collection) for number in range(50)])
    await search_load(args.url, fresh, 1, 3, "different")
    for clients in (1, 16, 64):
        print(json.dumps(await search_load(args.url, fresh, clients, args.seconds, "different")))
    await search_load(args.url, repeated, 1, 1, "repeated")
    print(json.dumps(await search_load(args.url, repeated, 16, args.seconds, "repeated")))
    for row in memory(httpx.URL(args.url).port or 80):
        print(json.dumps(row))


if __name__ == "__main__":
    asyncio.run(main())
