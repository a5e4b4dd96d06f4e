"""Our embedder against sentence-transformers' own `encode`, on texts of mixed lengths, in alternating rounds.

python benchmarks/embed.py --corpus ../corpora/scifact --rounds 5 --out embed.json

Each contestant lives in a process of its own with its model loaded, and all are idle but one. A round in which others took
more than `--foreign` cores is run again, a few times. Ratios are of the medians, of wall time and of CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from quality import read_lines

PEER = "sentence-transformers"
AT_ONCE = 4
"""Documents that a worker works on by default."""
PASSAGE_WORDS = (10, 25, 60, 110, 150)
TRIES = 4


def passages(corpus: Path, count: int) -> list[list[str]]:
    """Documents as lists of passages of mixed lengths, the same ones each time, `count` passages in all."""
    mixed = random.Random(1)
    documents: list[list[str]] = []
    rows = read_lines(corpus / "corpus.jsonl")
    mixed.shuffle(rows)
    while count > 0:
        words = f"{rows[-1].get('title', '')}\n{rows.pop()['text']}".split(" ")
        document = []
        while words and len(document) < count:
            size = mixed.choice(PASSAGE_WORDS)
            document.append(" ".join(words[:size]))
            words = words[size:]
        documents.append(document)
        count -= len(document)
    return documents


def peer(model: str, cache: str, documents: list[list[str]], pipe: Connection) -> None:
    """As fast as it goes: all texts in one call, which sorts them by length."""
    from retrieval.embedders.local import load_torch, model_folder

    encoder = load_torch(model_folder(model, cache, None).path)
    texts = [text for document in documents for text in document]
    serve(pipe, lambda: encoder.encode(texts, batch_size=32, show_progress_bar=False, normalize_embeddings=True))


def ours(spec: str, cache: str, documents: list[list[str]], pipe: Connection) -> None:
    """As a worker does it: some documents at once, each by itself."""
    from retrieval.embedders import open_embedder

    async def embed() -> np.ndarray:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(document: list[str]) -> np.ndarray:
            async with slots:
                return await embedder.embed_documents(document)

        return np.concatenate(await asyncio.gather(*map(one, documents)))

    with asyncio.Runner() as runner:
        embedder = runner.run(open_embedder(spec, cache_dir=cache, engine="openvino"))
        serve(pipe, lambda: runner.run(embed()))


def serve(pipe: Connection, embed) -> None:
    """Embed whenever the pipe says so, and tell wall and CPU seconds, memory and, the first time, the vectors."""
    pipe.send(embed())
    while pipe.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        embed()
        pipe.send((time.perf_counter() - wall, time.process_time() - cpu, psutil.Process().memory_info().rss))


def one_round(pipe: Connection, foreign_limit: float) -> dict:
    """The least disturbed of some tries, with the cores that others used meanwhile."""
    tries = []
    for _ in range(TRIES):
        before = psutil.cpu_times()
        pipe.send(True)
        wall, cpu, rss = pipe.recv()
        after = psutil.cpu_times()
        busy = sum(after) - sum(before) - (after.idle - before.idle) - (after.iowait - before.iowait)
        tries.append({"wall_s": wall, "cpu_s": cpu, "rss_mb": rss // 2**20, "foreign_cores": max(0.0, (busy - cpu) / wall)})
        if tries[-1]["foreign_cores"] <= foreign_limit:
            break
    return min(tries, key=lambda found: found["foreign_cores"])


def measure(contestants: dict[str, tuple], documents: list[list[str]], rounds: int, foreign: float) -> dict[str, dict]:
    spawn = multiprocessing.get_context("spawn")
    pipes, vectors = {}, {}
    for name, (target, *given) in contestants.items():
        pipes[name], far = spawn.Pipe()
        spawn.Process(target=target, args=(*given, documents, far), daemon=True).start()
        vectors[name] = pipes[name].recv()
    found: dict[str, list[dict]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            found[name].append(one_round(pipe, foreign))
    for pipe in pipes.values():
        pipe.send(False)
    return {name: summary(found[name], vectors[name], vectors[PEER]) for name in contestants}


def summary(rounds: list[dict], vectors: np.ndarray, reference: np.ndarray) -> dict:
    cosines = (vectors * reference).sum(axis=1)
    return {
        "wall_s": statistics.median(each["wall_s"] for each in rounds),
        "cpu_s": statistics.median(each["cpu_s"] for each in rounds),
        "rss_mb": max(each["rss_mb"] for each in rounds),
        "foreign_cores": statistics.median(each["foreign_cores"] for each in rounds),
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "rounds": rounds,
    }


def table(results: dict[str, dict], texts: int) -> str:
    peer_wall, peer_cpu = results[PEER]["wall_s"], results[PEER]["cpu_s"]
    lines = [
        "| | passages/s | x wall | CPU ms/passage | x CPU | cosine min / mean | memory MB | foreign cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [
            f"{texts / found['wall_s']:.1f}",
            f"{peer_wall / found['wall_s']:.2f}",
            f"{found['cpu_s'] / texts * 1000:.1f}",
            f"{peer_cpu / found['cpu_s']:.2f}",
            f"{found['cosine_min']:.5f} / {found['cosine_mean']:.5f}",
            str(found["rss_mb"]),
            f"{found['foreign_cores']:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder with corpus.jsonl in the BEIR layout")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--cache", default="data/var/models", help="where converted models are kept")
    parser.add_argument("--passages", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--foreign", type=float, default=0.15, help="cores that others may use in a round")
    parser.add_argument("--no-int8", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    documents = passages(args.corpus, args.passages)
    contestants = {PEER: (peer, args.model, args.cache), "ours": (ours, f"local:{args.model}", args.cache)}
    if not args.no_int8:
        contestants["ours, int8"] = (ours, f"local:{args.model}?precision=int8", args.cache)
    results = measure(contestants, documents, args.rounds, args.foreign)
    machine = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "documents": len(documents),
        "passages": args.passages,
        **{name: version(name) for name in ("sentence-transformers", "torch", "openvino")},
    }
    print(json.dumps(machine))
    print(table(results, args.passages))
    if args.out:
        args.out.write_text(json.dumps({**machine, "results": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
