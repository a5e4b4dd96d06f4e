"""Does a worker's memory stay flat? Thousands of mixed files through the service; what its processes hold every hundred.

python benchmarks/mixed.py --files ../corpora/files --documents 2000 --url http://127.0.0.1:8000

The folder's files that are small enough come round and round, each time as a new document of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import httpx
import psutil
from hostile import Memory

STEP = 100
SETTLING = 4
"""Readings at the start that are no measure of growth: models and parsers are still being loaded."""


def held(root: psutil.Process) -> dict[str, int]:
    """Resident megabytes of the web process, the workers, and their parsers together."""
    sizes = {"web": root.memory_info().rss, "worker": 0, "parsers": 0}
    for process in root.children(recursive=True):
        try:
            sizes["worker" if "worker" in process.cmdline() else "parsers"] += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return {name: size >> 20 for name, size in sizes.items()}


def upload(http: httpx.Client, collection: str, files: Sequence[tuple[str, Path]]) -> None:
    """Send the files in one request and wait until no job is left, those of files within files included."""
    sent = [("files", (name, path.read_bytes())) for name, path in files]
    http.post("/ingest", files=sent, data={"collection": collection}).raise_for_status()
    while any(
        http.get("/jobs", params={"state": state, "collection": collection, "limit": 1}).json()["jobs"]
        for state in ("queued", "running")
    ):
        time.sleep(0.5)


def count(http: httpx.Client, collection: str) -> Counter[str]:
    """Documents by status, parts included."""
    states: Counter[str] = Counter()
    page: dict = {"next_cursor": ""}
    while (cursor := page["next_cursor"]) is not None:
        asked = {"collection": collection, "limit": 1000, **({"cursor": cursor} if cursor else {})}
        page = http.get("/documents", params=asked).json()
        states.update(document["status"] for document in page["documents"])
    return states


def growth(readings: Sequence[int]) -> int:
    """From the first readings after the start to the last, each the middle one of four."""
    return round(median(readings[-4:]) - median(readings[SETTLING : SETTLING + 4]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--largest-kb", type=int, default=60)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    files = [path for path in sorted(args.files.iterdir()) if path.is_file() and path.stat().st_size <= args.largest_kb * 1024]
    root, collection = Memory(httpx.URL(args.url).port or 80).root, f"mixed-{int(time.time())}"
    readings = []
    with httpx.Client(base_url=args.url, timeout=600, trust_env=False) as http:
        for first in range(0, args.documents, STEP):
            last = min(first + STEP, args.documents)
            upload(
                http, collection, [(f"{at}-{files[at % len(files)].name}", files[at % len(files)]) for at in range(first, last)]
            )
            readings.append(held(root))
            print(json.dumps({"uploads": last, **readings[-1]}), flush=True)
        states = count(http, collection)
    grown = {f"{name}_grew_mb": growth([each[name] for each in readings]) for name in readings[0]}
    print(json.dumps({"files": len(files), **states, **grown}))


if __name__ == "__main__":
    main()
