"""Thousands of answers that stream at once from a slow language model: errors, memory of each, and `/healthz` meanwhile.

python benchmarks/streams.py --llm-port 9100 --url http://127.0.0.1:8000 --collection NAME

The service is one that was started with FOOTNOTE_LLM=openai:slow FOOTNOTE_LLM_BASE_URL=http://127.0.0.1:9100/v1; the model is
a server of this program, which writes a word now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

from machine import listener

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


async def write_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: int, pause: float) -> None:
    """One chat completion as OpenAI streams it: a footnoted sentence of `words` words, one each `pause` seconds."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        for number in range(words):
            text = "Slow " if number == 0 else "[1]." if number == words - 1 else "word "
            piece = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "slow"}
            piece["choices"] = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
            writer.write(f"data: {json.dumps(piece)}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def be_slow(port: int, words: int, pause: float) -> None:
    server = await asyncio.start_server(lambda r, w: write_slowly(r, w, words, pause), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def request(method: str, host: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def stream(url: str, body: dict, seen: Counter, firsts: list[float]) -> None:
    """One question, its events read to the end; counts how it ended."""
    place = urlsplit(url)
    began, last = time.perf_counter(), "nothing"
    try:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(request("POST", place.netloc, "/query", json.dumps(body).encode()))
        async for line in reader:
            if line.startswith(b"event: "):
                last = line[7:].strip().decode()
                if last == "hits":
                    firsts.append(time.perf_counter() - began)
        writer.close()
    except OSError as exc:
        last = type(exc).__name__
    seen["ended " + last] += 1


async def watch(url: str, took: list[float]) -> None:
    """`/healthz`, ten times a second, each over a connection of its own."""
    place = urlsplit(url)
    while True:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(request("GET", place.netloc, "/healthz"))
        await reader.read()
        writer.close()
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.1)


async def measure(args: argparse.Namespace) -> dict:
    service = listener(urlsplit(args.url).port)
    question = {"collection": args.collection, "llm": args.model, "stream": True, "mode": args.mode}
    seen: Counter = Counter()
    took: list[float] = []
    firsts: list[float] = []
    await asyncio.gather(*(stream(args.url, {**question, "question": args.question}, Counter(), []) for _ in range(5)))
    before, cpu = service.memory_info().rss, sum(service.cpu_times()[:2])
    watching = asyncio.create_task(watch(args.url, took))
    streams, peak = [], before
    for _ in range(args.streams):
        streams.append(asyncio.create_task(stream(args.url, {**question, "question": args.question}, seen, firsts)))
        await asyncio.sleep(args.ramp / args.streams)
    most = 0
    while not all(task.done() for task in streams):
        most = max(most, sum(not task.done() for task in streams))
        peak = max(peak, service.memory_info().rss)
        await asyncio.sleep(0.5)
    watching.cancel()
    return {
        "streams": args.streams,
        "open_at_once": most,
        "ended": {name.removeprefix("ended "): count for name, count in seen.items() if str(name).startswith("ended ")},
        "first_event_p50_ms": round(statistics.median(firsts) * 1000),
        "kb_per_stream": round((peak - before) / 1024 / most, 1),
        "rss_before_mb": before // 2**20,
        "rss_peak_mb": peak // 2**20,
        "cpu_ms_per_stream": round((sum(service.cpu_times()[:2]) - cpu) * 1000 / args.streams, 1),
        "healthz_p50_ms": round(statistics.median(took), 1),
        "healthz_p95_ms": round(statistics.quantiles(took, n=20)[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--llm-port", type=int, default=9100)
    parser.add_argument("--model", default="openai:slow")
    parser.add_argument("--collection", default="default")
    parser.add_argument("--question", default="What is slow?")
    parser.add_argument("--mode", default="hybrid")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--ramp", type=float, default=20, help="seconds in which the clients come")
    parser.add_argument("--words", type=int, default=20, help="of one answer")
    parser.add_argument("--pause", type=float, default=2, help="seconds between two words")
    parser.add_argument("--be-slow", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if args.be_slow:
        asyncio.run(be_slow(args.llm_port, args.words, args.pause))
        return
    model = subprocess.Popen([sys.executable, __file__, "--be-slow", *sys.argv[1:]])
    try:
        time.sleep(1)
        print(json.dumps(asyncio.run(measure(args))))
    finally:
        model.kill()
        model.wait()


if __name__ == "__main__":
    main()
