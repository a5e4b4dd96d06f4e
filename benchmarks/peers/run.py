"""A peer in its own environment, run by `benchmarks/bench.py`: `ingest` documents into a folder, or `serve` it.

The thin service around each is the same: FastAPI, a synchronous handler (so questions are answered in threads), one process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import peak_mb, watched


def ingest(peer, documents: list[dict], warm: list[dict], folder: str) -> None:
    """With the model loaded and used before, as it is on any day but the first; prints what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        peer.ingest(warm, scratch)
    me = psutil.Process()
    with watched(me) as spent:
        peer.ingest(documents, folder)
    print(json.dumps({**vars(spent), "peak_mb": peak_mb(me)}))


def serve(peer, folder: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    search = peer.open(folder)
    app = FastAPI()

    class Question(BaseModel):
        question: str
        top_k: int = 10

    def answer(asked: Question) -> dict:
        return {"hits": [{"document_name": name} for name in search(asked.question, asked.top_k)]}

    answer.__annotations__["asked"] = Question
    app.post("/search")(answer)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--warm", type=Path)
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    peer = importlib.import_module(given.peer).Peer(given.model)
    if given.documents:
        ingest(peer, lines(given.documents), lines(given.warm), given.folder)
    else:
        serve(peer, given.folder, given.port)


if __name__ == "__main__":
    main()
