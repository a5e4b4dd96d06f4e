"""The CLI's way to the service: over HTTP to a running one, or the same routes in this process."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from app.settings import Settings  # takes pydantic, which a client of a service elsewhere does not need

UNFINISHED = ("queued", "processing")
BATCH_FILES = 50
BATCH_BYTES = 32 * 1024 * 1024


class ProblemError(Exception):
    """The service refused: `problem` is its problem document; `retry_after` the seconds that it asks for."""

    def __init__(self, problem: dict[str, Any], retry_after: float = 1.0) -> None:
        super().__init__(problem.get("detail", "the service gave no reason"))
        self.problem = problem
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Client:
    """Calls routes and gives back their JSON; a problem document is raised as `ProblemError`."""

    http: httpx.AsyncClient
    streams: bool = False
    """Whether events come as they happen; in this process a response comes whole."""

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
            after = response.headers.get("retry-after", "")
            raise ProblemError(response.json(), float(after) if after.isdigit() else 1.0)
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
        """Send named files in one request, when the queue has room; each document comes back with the request's token.

        A batch in which every file is refused comes back as its refusals.
        """
        while True:
            try:
                sent = await self._send(files, {"collection": collection, "metadata": metadata})
                break
            except ProblemError as exc:
                if "documents" in exc.problem:
                    sent = exc.problem
                    break
                refusal = exc if exc.problem.get("code") != "service_unavailable" else await self._refusal() or exc
                if refusal.problem.get("code") != "overloaded":
                    raise refusal from None
                await asyncio.sleep(refusal.retry_after)
        return [{**document, "consistency_token": sent.get("consistency_token")} for document in sent["documents"]]

    async def _refusal(self) -> ProblemError | None:
        """Why an upload broke off, if the service tells it to one without documents: the first answer may have been lost."""
        try:
            await self.call("POST", "/ingest", json={"documents": []})
        except ProblemError as exc:
            return exc if exc.problem.get("code") in {"overloaded", "storage_full", "unauthorized"} else None
        return None

    async def _send(self, files: Sequence[tuple[str, Path]], fields: dict[str, str]) -> Any:
        with ExitStack() as opened:
            parts = [
                ("files", (name, opened.enter_context(path.open("rb")), "application/octet-stream")) for name, path in files
            ]
            return await self.call("POST", "/ingest", files=parts, data=fields)

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
        if len(waiting) == len(state) == 1 and deadline is None:  # of one document, its pages are what one wants to see
            await self.settle_job(state[min(waiting)]["job_id"], lambda job: seen(job["done"], job["total"] or 1))
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
        if self.streams:
            with suppress(httpx.HTTPError):  # what breaks the stream costs no more than looking
                async for job in self._events(job_id):
                    seen(job)
        while True:
            last: dict[str, Any] = await self.call("GET", f"/jobs/{job_id}")
            seen(last)
            if last["state"] not in {"queued", "running"}:
                return last
            await asyncio.sleep(0.3)

    async def _events(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """The job's states as the service tells them; none where it tells nothing."""
        async with self.http.stream("GET", f"/jobs/{job_id}/events", timeout=httpx.Timeout(60, connect=10)) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: ") and "state" in (job := json.loads(line.removeprefix("data: "))):
                    yield job


@asynccontextmanager
async def open_client(
    url: str | None, settings: Callable[[], Settings], *, works: bool = False, begins: bool = False
) -> AsyncIterator[Client]:
    """A client of the service at `url`, or of one that is opened in this process; with a worker if the verb `works`.

    Only a verb that `begins` may do so where there is no data yet.
    """
    key = os.environ.get("FOOTNOTE_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(600, connect=10)
    if url:
        async with _connection(url, headers, timeout) as http:
            yield Client(http, streams=True)
        return
    from app.main import create_app
    from app.wiring import open_service, open_worker

    chosen = settings().model_copy(update={"api_keys_required": False})  # whoever may run this process may read its data
    if not begins:
        chosen.require_data()
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
