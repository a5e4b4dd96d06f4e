"""nDCG@10 of `/search` on test sets in the BEIR layout, ingested through `POST /ingest` like any user's documents.

python benchmarks/quality.py --corpora ../corpora scifact xquad/zh --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from pathlib import Path

import httpx

BATCH = 100


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Relevance by question and document, of one split (or the only one there is)."""
    path = folder / "qrels" / f"{split}.tsv"
    path = path if path.exists() else next(iter(sorted((folder / "qrels").glob("*.tsv"))))
    found: dict[str, dict[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        question, document, score = line.split("\t")
        if int(score) > 0:
            found.setdefault(question, {})[document] = int(score)
    return found


def ndcg(ranked: list[str], relevant: dict[str, int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002), gains linear as in trec_eval."""
    gain = sum(relevant.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(ranked[:depth]))
    ideal = sum(score / math.log2(rank + 2) for rank, score in enumerate(sorted(relevant.values(), reverse=True)[:depth]))
    return gain / ideal


async def ingest(http: httpx.AsyncClient, collection: str, corpus: list[dict]) -> float:
    """Upload all and wait until the last is answerable; seconds."""
    began = time.perf_counter()
    for first in range(0, len(corpus), BATCH):
        documents = [
            {"name": item["_id"], "text": f"{item.get('title', '')}\n{item['text']}".strip(), "media_type": "text/plain"}
            for item in corpus[first : first + BATCH]
        ]
        (await http.post("/ingest", json={"documents": documents, "collection": collection})).raise_for_status()
    while True:
        left = [
            (await http.get("/jobs", params={"state": s, "collection": collection, "limit": 1})).json()
            for s in ("queued", "running")
        ]
        if not any(page["jobs"] for page in left):
            return time.perf_counter() - began
        await asyncio.sleep(0.2)


async def rank(http: httpx.AsyncClient, collection: str, question: str, mode: str) -> list[str]:
    """Documents in the order of their best chunk."""
    body = {"question": question, "collection": collection, "top_k": 30, "mode": mode}
    hits = (await http.post("/search", json=body)).raise_for_status().json()["hits"]
    return list(dict.fromkeys(hit["document_name"] for hit in hits))


async def measure(http: httpx.AsyncClient, folder: Path, name: str, args: argparse.Namespace) -> dict:
    corpus, qrels = read_lines(folder / "corpus.jsonl"), read_qrels(folder, args.split)
    questions = [q for q in read_lines(folder / "queries.jsonl") if q["_id"] in qrels][: args.questions]
    collection = f"bench-{name.replace('/', '-')}"
    seconds = await ingest(http, collection, corpus)
    held = (await http.get(f"/collections/{collection}")).json()
    scores = {}
    for mode in args.modes:
        ranked = [await rank(http, collection, q["text"], mode) for q in questions]
        scores[mode] = round(sum(ndcg(r, qrels[q["_id"]]) for r, q in zip(ranked, questions, strict=True)) / len(questions), 4)
    return {
        "set": name,
        "documents": held["documents"],
        "of": len(corpus),
        "questions": len(questions),
        "ingest_s": round(seconds, 1),
        **scores,
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--corpora", type=Path, required=True, help="the folder that holds the sets")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--split", default="test")
    parser.add_argument("--questions", type=int, default=1000, help="at most so many per set")
    parser.add_argument("--modes", nargs="+", default=["hybrid", "vector", "keyword"])
    args = parser.parse_args()
    async with httpx.AsyncClient(base_url=args.url, timeout=300, trust_env=False) as http:
        for name in args.sets:
            print(json.dumps(await measure(http, args.corpora / name, name, args)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
