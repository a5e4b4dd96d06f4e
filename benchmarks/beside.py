"""Questions beside a bulk load: latencies of `/search` on an idle service, and while documents are uploaded and ingested.

python benchmarks/beside.py --corpus ../corpora/scifact --documents 2000 --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path

import httpx
from load import question, search_load
from quality import ingest, read_lines

SEED = 250
"""Documents that are there before."""
SLICE = 10.0
"""Seconds of questions at a time, until the load is over."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    corpus, questions = read_lines(args.corpus / "corpus.jsonl"), read_lines(args.corpus / "queries.jsonl")
    collection = f"beside-{int(time.time())}"
    texts = [row["text"] for row in questions]
    bodies = (question(texts, number, collection) for number in itertools.count())
    async with httpx.AsyncClient(base_url=args.url, timeout=600, trust_env=False) as http:
        await ingest(http, collection, corpus[:SEED])
        await search_load(args.url, bodies, args.clients, 5, "warm")
        idle = await search_load(args.url, bodies, args.clients, 2 * SLICE, "idle")
        print(json.dumps(idle), flush=True)
        loading = asyncio.create_task(ingest(http, collection, corpus[SEED : SEED + args.documents]))
        rows = []
        while not loading.done():
            rows.append(await search_load(args.url, bodies, args.clients, SLICE, "beside a load"))
            print(json.dumps(rows[-1]), flush=True)
    rows = rows[:-1] or rows  # the load ended during the last slice
    worst = max(row["p95_ms"] for row in rows)
    usual = sorted(row["p95_ms"] for row in rows)[len(rows) // 2]
    found = {"documents": args.documents, "documents_per_second": round(args.documents / loading.result(), 1)}
    found |= {"p95_idle_ms": idle["p95_ms"], "p95_beside_ms": usual, "worst_slice_ms": worst}
    found |= {"times_idle": round(usual / idle["p95_ms"], 2), "failed": sum(row["failed"] for row in rows)}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
