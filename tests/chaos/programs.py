"""What chaos kills: programs that start again with the same ports and data, and an embedding server with moods."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 60.0
STOP_SECONDS = 40.0
DIMENSION = 64


class Program:
    """A command that can be killed, frozen and started again."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: dict[str, str], ready: Callable[[], bool]
    ) -> None:
        self.name, self.command, self.folder, self.environment, self.ready = name, command, folder, environment, ready
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{name}.log"
        self._read = 0

    def said(self, event: str) -> bool:
        """Whether it has logged this since it was last started."""
        return event.encode() in self.log.read_bytes()[self._read :]

    def start(self) -> None:
        self._read = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator would."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True) if self.process else []

    def _signal(self, which: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(which)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self._signal(how)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def footnote(name: str, arguments: Sequence[str], folder: Path, settings: dict[str, str], ready: Callable[[], bool]) -> Program:
    """A process of ours; `settings` are names without the prefix."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
    environment = {**ours, **{f"FOOTNOTE_{key.upper()}": value for key, value in settings.items()}}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return Program(name, [sys.executable, "-m", "app", *arguments], folder, environment, ready)


class EmbeddingServer:
    """An OpenAI-compatible `/embeddings` over real HTTP: bags of words as vectors, so that a sentence is nearest to itself.

    `refusing` makes it answer that share of requests with 429 (and Retry-After) or 500.
    """

    def __init__(self, chance: random.Random) -> None:
        self.refusing = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if chance.random() < server.refusing:
                    status = chance.choice([429, 500])
                    self._answer(status, {"error": "as ordered"}, {"Retry-After": "1"} if status == 429 else {})
                    return
                rows = [{"index": i, "embedding": bag_of_words(text)} for i, text in enumerate(body["input"])]
                self._answer(200, {"data": rows}, {})

            def _answer(self, status: int, body: Any, headers: dict[str, str]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def bag_of_words(text: str) -> list[float]:
    """A unit vector with one dimension for each word, by its hash."""
    vector = [0.0] * DIMENSION
    for word in re.findall(r"\w+", text.casefold()) or ["-"]:
        vector[hashlib.blake2b(word.encode(), digest_size=2).digest()[0] % DIMENSION] += 1.0
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]
