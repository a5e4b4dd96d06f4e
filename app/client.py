"""The CLI's way to the service: over HTTP to a running one, or the same routes in this process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings

UNFINISHED = ("queued", "processing")
BATCH_FILES = 50
BATCH_BYTES = 32 * 1024 * 1024


class ProblemError(Exception):
    """The service refused: `problem` is its problem document."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", "the service gave no reason"))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Client:
    """Calls routes and gives back their JSON; a problem document is raised as `ProblemError`."""

    http: httpx.AsyncClient

    async def call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = await self.http.request(method, path, **options)
        except (UnicodeEncodeError, httpx.InvalidURL) as exc:
            raise ProblemError({"code": "invalid_input", "detail": f"cannot be sent: {exc}", "status": 422}) from exc
        except httpx.HTTPError as exc:
            cure = "start it with `footnote serve`, or leave out --url"
            detail = f"nothing answers at {self.http.base_url} ({type(exc).__name__}): {cure}"
            raise ProblemError({"code": "service_unavailable", "detail": detail, "status": 503}) from exc
        kind = response.headers.get("content-type", "")
        if response.is_success and not response.content:
            return None
        if response.is_success and kind.startswith("application/json"):
            return response.json()
        if kind.startswith("application/problem+json"):
            raise ProblemError(response.json())
        detail = f"{response.url} answered HTTP {response.status_code} and not as this service does: look at the URL"
        raise ProblemError({"code": "service_error", "detail": detail, "status": 502})

    async def pages(self, path: str, key: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        """Every item of a listing, page by page."""
        given = {name: value for name, value in params.items() if value is not None}
        while True:
            page = await self.call("GET", path, params=given)
            for item in page[key]:
                yield item
            if page["next_cursor"] is None:
                return
            given["cursor"] = page["next_cursor"]

    async def upload(self, files: Sequence[tuple[str, Path]], *, collection: str, metadata: str) -> list[dict[str, Any]]:
        """Send named files in one request; a batch in which every file is refused comes back as its refusals."""
        opened = [(name, path.open("rb")) for name, path in files]
        try:
            parts = [("files", (name, file, "application/octet-stream")) for name, file in opened]
            sent = await self.call("POST", "/ingest", files=parts, data={"collection": collection, "metadata": metadata})
        except ProblemError as exc:
            if "documents" not in exc.problem:
                raise
            sent = exc.problem
        finally:
            for _, file in opened:
                file.close()
        documents: list[dict[str, Any]] = sent["documents"]
        return documents

    async def settle(
        self, documents: Sequence[dict[str, Any]], seconds: float | None, seen: Callable[[int, int], None]
    ) -> list[dict[str, Any]]:
        """Wait until each document and what came out of it is settled (at most `seconds`); gives the last state of all.

        `seen` is told how many are settled, of how many.
        """
        deadline = time.monotonic() + seconds if seconds is not None else None
        refused = [document for document in documents if not document["id"]]
        state = {document["id"]: document for document in documents if document["id"]}
        for document in [*state.values()]:  # a duplicate's parts may still be on their way from an upload before
            state |= {part["id"]: part async for part in self._parts(document) if part["status"] in UNFINISHED}
        waiting = {i for i, document in state.items() if document["status"] in UNFINISHED}
        while waiting:
            for document_id in list(waiting)[:200]:
                state[document_id] = {**state[document_id], **await self.call("GET", f"/documents/{document_id}")}
                if state[document_id]["status"] not in UNFINISHED:
                    waiting.discard(document_id)
                    parts = {part["id"]: part async for part in self._parts(state[document_id])}
                    state |= parts
                    waiting |= {i for i, part in parts.items() if part["status"] in UNFINISHED}
            seen(len(state) - len(waiting), len(state))
            if waiting and deadline is not None and time.monotonic() > deadline:
                break
            if waiting:
                await asyncio.sleep(0.2)
        seen(len(state) - len(waiting), len(state))
        return [*refused, *state.values()]

    async def _parts(self, document: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """What came out of a document, at any depth; `document` is as an upload or as a listing shows it."""
        receipt = document.get("receipt") or document
        if receipt.get("parts"):
            async for part in self.pages("/documents", "documents", parent=document["id"]):
                yield part
                async for inner in self._parts(part):
                    yield inner

    async def settle_job(self, job_id: str, seen: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait for a job's end, showing each state on the way."""
        while True:
            job: dict[str, Any] = await self.call("GET", f"/jobs/{job_id}")
            seen(job)
            if job["state"] not in {"queued", "running"}:
                return job
            await asyncio.sleep(0.3)


@asynccontextmanager
async def open_client(url: str | None, settings: Callable[[], Settings], *, works: bool = False) -> AsyncIterator[Client]:
    """A client of the service at `url`, or of one that is opened in this process; with a worker if the verb `works`."""
    key = os.environ.get("FOOTNOTE_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(600, connect=10)
    if url:
        async with _connection(url, headers, timeout) as http:
            yield Client(http)
        return
    from app.main import create_app
    from app.wiring import open_service, open_worker

    chosen = settings().model_copy(update={"api_keys_required": False})  # whoever may run this process may read its data
    async with open_service(chosen) as service:
        app = create_app(chosen, service=service)
        app.state.service = service
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://footnote", timeout=timeout) as http:
            if not works:
                yield Client(http)
                return
            async with open_worker(service) as worker:
                stop = asyncio.Event()
                running = asyncio.create_task(worker.run(stop))
                try:
                    yield Client(http)
                finally:
                    stop.set()
                    await running


def _connection(url: str, headers: dict[str, str], timeout: httpx.Timeout) -> httpx.AsyncClient:
    try:
        is_here = httpx.URL(url).host in {"localhost", "127.0.0.1", "::1"}  # no proxy leads there
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=not is_here)
    except (httpx.InvalidURL, UnicodeEncodeError) as exc:
        raise ProblemError({"code": "invalid_input", "detail": f"{url!r} is no URL: {exc}", "status": 422}) from exc


def find_files(paths: Iterable[Path], *, recursive: bool, glob: str) -> Iterator[tuple[str, Path]]:
    """The files to ingest with the names they get: a file's own, or its path within the folder that was named.

    Hidden files and folders are left out. Raises `FileNotFoundError` for a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            found = path.rglob(glob) if recursive else path.glob(glob)
            for each in sorted(found):
                inner = each.relative_to(path)
                if each.is_file() and not any(part.startswith(".") for part in inner.parts):
                    yield _utf8(inner.as_posix()), each
        elif path.is_file():
            yield _utf8(path.name), path
        else:
            raise FileNotFoundError(str(path))


def _utf8(name: str) -> str:
    """A file's name may be any bytes on the disk; what is no UTF-8 of them becomes `?`."""
    return name.encode("utf-8", "replace").decode()


def batches(files: Iterable[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    """Requests of a bearable size."""
    batch: list[tuple[str, Path]] = []
    size = 0
    for name, path in files:
        batch.append((name, path))
        size += path.stat().st_size
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
