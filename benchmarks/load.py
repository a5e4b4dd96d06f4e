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
from pathlib import Path

import httpx
import psutil
from quality import ingest, read_lines


async def client_loop(
    http: httpx.AsyncClient, bodies: itertools.cycle, until: float, took: list[float], failed: list[int]
) -> None:
    while time.perf_counter() < until:
        began = time.perf_counter()
        response = await http.post("/search", content=next(bodies), headers={"content-type": "application/json"})
        if response.status_code == 200:
            took.append((time.perf_counter() - began) * 1000)
        else:
            failed.append(response.status_code)


async def search_load(http: httpx.AsyncClient, bodies: list[bytes], clients: int, seconds: float) -> dict:
    """Closed loop: each client asks again as soon as it has its answer; all questions differ."""
    took: list[float] = []
    failed: list[int] = []
    began = time.perf_counter()
    cycle = itertools.cycle(bodies)
    await asyncio.gather(*(client_loop(http, cycle, began + seconds, took, failed) for _ in range(clients)))
    spent = time.perf_counter() - began
    cuts = statistics.quantiles(took, n=100)
    return {
        "clients": clients,
        "per_second": round(len(took) / spent, 1),
        "p50_ms": round(cuts[49], 1),
        "p95_ms": round(cuts[94], 1),
        "failed": len(failed),
    }


def memory(port: int) -> list[dict]:
    """Resident and peak memory of the process that listens on the port, and of its children."""
    owner = next(
        c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN
    )
    parent = psutil.Process(owner)
    rows = []
    for process in (parent, *parent.children(recursive=True)):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
        command = " ".join(process.cmdline())
        rows.append({"process": command[-60:], "rss_mb": process.memory_info().rss // 2**20, "peak_mb": peak})
    return rows


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    corpus = read_lines(args.corpus / "corpus.jsonl")[: args.documents]
    questions = read_lines(args.corpus / "queries.jsonl")
    collection = f"load-{int(time.time())}"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=args.url, timeout=300, trust_env=False, limits=limits) as http:
        await ingest(http, f"{collection}-warm", corpus[:8])  # the model is loaded, as it is on any day but the first
        seconds = await ingest(http, collection, corpus)
        print(
            json.dumps(
                {
                    "documents": len(corpus),
                    "seconds": round(seconds, 1),
                    "documents_per_second": round(len(corpus) / seconds, 1),
                }
            )
        )
        bodies = [json.dumps({"question": q["text"], "collection": collection, "top_k": 10}).encode() for q in questions]
        await search_load(http, bodies, 1, 2)
        for clients in (1, 16):
            print(json.dumps(await search_load(http, bodies, clients, args.seconds)))
    for row in memory(httpx.URL(args.url).port or 80):
        print(json.dumps(row))


if __name__ == "__main__":
    asyncio.run(main())
