"""Questions about long documents: is the page that holds the answer among the pages of the first hits?

python benchmarks/pages.py --corpora ../corpora financebench_open tatqa_dev --url http://127.0.0.1:8000

A set holds `docs/` (its files), `queries.jsonl`, and `qrels/*.tsv`, whose ids are a file's stem, with `#` and the page counted
from 0 where the page is asked for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import httpx
from documents import SETTLED, WAIT
from quality import ndcg, read_lines, read_qrels

BATCH = 20


def ingest(http: httpx.Client, collection: str, paths: list[Path]) -> dict[str, int]:
    """How many documents ended in which status."""
    for first in range(0, len(paths), BATCH):
        files = [("files", (path.name, path.read_bytes())) for path in paths[first : first + BATCH]]
        http.post("/ingest", files=files, data={"collection": collection}).raise_for_status()
    while True:
        states = http.get("/documents", params={"collection": collection, "limit": 1000}).json()["documents"]
        counts = {state: sum(d["status"] == state for d in states) for state in {d["status"] for d in states}}
        if set(counts) <= SETTLED:
            return counts
        time.sleep(1)


def place(hit: dict, *, paged: bool) -> str:
    stem = Path(hit["document_name"]).stem
    return f"{stem}#{(hit['page'] or 1) - 1}" if paged else stem


def measure(http: httpx.Client, folder: Path, name: str, mode: str, collection: str) -> dict:
    qrels = read_qrels(folder, "test")
    paged = any("#" in document for relevant in qrels.values() for document in relevant)
    top, gains = 0, 0.0
    asked = [question for question in read_lines(folder / "queries.jsonl") if question["_id"] in qrels]
    for question in asked:
        body = {"question": question["text"], "collection": collection, "top_k": 30, "mode": mode}
        hits = http.post("/search", json=body).raise_for_status().json()["hits"]
        places = [place(hit, paged=paged) for hit in hits]
        top += bool(set(places[:5]) & set(qrels[question["_id"]]))
        gains += ndcg(list(dict.fromkeys(places)), qrels[question["_id"]])
    count = len(asked)
    return {
        "set": name,
        "mode": mode,
        "questions": count,
        "in_top_5_hits": round(top / count, 4),
        "ndcg@10": round(gains / count, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--modes", nargs="+", default=["hybrid", "vector", "keyword"])
    args = parser.parse_args()
    with httpx.Client(base_url=args.url, timeout=WAIT, trust_env=False) as http:
        for name in args.sets:
            collection = f"pages-{name}"
            began = time.perf_counter()
            counts = ingest(http, collection, sorted((args.corpora / name / "docs").iterdir()))
            print(json.dumps({"set": name, "documents": counts, "ingest_s": round(time.perf_counter() - began, 1)}), flush=True)
            for mode in args.modes:
                print(json.dumps(measure(http, args.corpora / name, name, mode, collection)), flush=True)


if __name__ == "__main__":
    main()
