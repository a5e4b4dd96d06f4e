"""Our service in this process and loop, behind a real server on a real port: tests can look inside, and clients can leave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from app.wiring import Service, open_service
from tests.services import MODELS


@dataclass
class Inside:
    """A running service with its parts, and a client of it."""

    service: Service
    app: FastAPI
    http: httpx.AsyncClient


@asynccontextmanager
async def serving(folder: Path, **settings: object) -> AsyncIterator[Inside]:
    """No worker runs: tests claim and settle jobs themselves."""
    chosen = Settings(**{"data_dir": folder, "models_dir": MODELS, **settings})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with open_service(chosen) as service:
            app = create_app(chosen, service=service)
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
            server.capture_signals = nullcontext
            running = asyncio.create_task(server.serve(sockets=[listener]))
            await until(lambda: server.started)
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
                yield Inside(service, app, http)
            server.should_exit = True
            await running


async def until(true: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


class SlowEmbedder:
    """An OpenAI-compatible embedding server that never answers a text with `slow` in it, and knows if its client left."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.partition("content-length:")[2].partition("\r\n")[0])
                texts = json.loads(await reader.readexactly(length))["input"]
                if any("slow" in text for text in texts):
                    self.asked.set()
                    await reader.read(1)
                    self.hung_up.set()
                    return
                vectors = [{"index": n, "embedding": [1.0, float(len(text) % 7), 0.5, 0.2]} for n, text in enumerate(texts)]
                body = json.dumps({"data": vectors}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(f"content-length: {len(body)}\r\n\r\n".encode() + body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def slow_embedder() -> AsyncIterator[SlowEmbedder]:
    embedder = SlowEmbedder()
    async with await asyncio.start_server(embedder.handle, "127.0.0.1", 0) as server:
        embedder.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield embedder
