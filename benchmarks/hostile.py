"""Hostile files through the service: each must end in time with an honest status, and the service must stay well.

python benchmarks/hostile.py --files FOLDER --url http://127.0.0.1:8000

FOLDER holds the files and a `manifest.tsv` (file, what, expected), as a generator wrote them.
"""

from __future__ import annotations

import argparse
import csv
import json
import threading
import time
from pathlib import Path

import httpx
import psutil
from documents import upload


class Memory(threading.Thread):
    """The largest resident memory of the service's processes together, and of one of them, in MB."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        listening = (c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN")
        self.root = psutil.Process(next(listening).pid)
        self.together = self.one = 0

    def run(self) -> None:
        while True:
            sizes = []
            for process in (self.root, *self.root.children(recursive=True)):
                try:
                    sizes.append(process.memory_info().rss >> 20)
                except psutil.NoSuchProcess:
                    continue
            self.together, self.one = max(self.together, sum(sizes)), max(self.one, *sizes)
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--limit", type=float, default=150, help="seconds that a file may take")
    args = parser.parse_args()
    manifest = args.files / "manifest.tsv"
    rows = list(csv.DictReader(manifest.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    collection = f"hostile-{int(time.time())}"
    memory = Memory(httpx.URL(args.url).port or 80)
    memory.start()
    worst, slow, dead, silent = 0.0, [], 0, []
    with httpx.Client(base_url=args.url, timeout=args.limit + 200, trust_env=False) as http:
        for row in rows:
            path = args.files / row["file"]
            if not path.is_file():
                continue
            began = time.perf_counter()
            document = upload(http, collection, path)
            took = time.perf_counter() - began
            receipt = document.get("receipt") or {}
            reason = (document.get("error") or {}).get("code") or receipt.get("needs_attention") or ""
            said = f"{took:6.1f} s  {document['status']:16}"
            print(f"{said} {row['file']:36} {reason[:60]:60} | {row['expected'][:70]}", flush=True)
            worst = max(worst, took)
            slow += [row["file"]] if took > args.limit else []
            holds = receipt.get("characters") or receipt.get("parts")
            silent += [row["file"]] if document["status"] == "ready" and not holds else []
            dead += not http.get("/healthz").is_success
    print(
        json.dumps(
            {
                "files": len(rows),
                "slowest_s": round(worst, 1),
                "beyond_limit": slow,
                "service_dead": dead,
                "ready_without_text": silent,
                "peak_mb_of_one_process": memory.one,
                "peak_mb_together": memory.together,
            }
        )
    )


if __name__ == "__main__":
    main()
