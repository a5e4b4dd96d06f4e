"""`POST /ingest`: bytes stream to the file store, then documents and jobs are written in one transaction."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.api.errors import problems
from app.api.errors import response as problem_response
from app.api.inputs import parse_metadata, printable, safe_name
from app.api.open import Open
from app.errors import as_dict
from app.schemas import Error, IngestedDocument, IngestRequest, IngestResponse
from app.settings import MIB
from app.wiring import Service
from ingest.documents import OriginalVanished
from ingest.parsers import detect
from ingest.records import Document, Upload, check_collection_name, request_fingerprint
from retrieval.errors import FootnoteError, InvalidInput, UnsupportedDocument
from retrieval.types import Metadata

router = APIRouter(tags=["ingest"])

MAX_FILES = 1000
COPY_BYTES = 1 * MIB
POLL_SECONDS = 0.05

_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
                    "collection": {"type": "string", "default": "default"},
                    "metadata": {
                        "type": "string",
                        "description": "a JSON object for all of these files",
                        "example": '{"year": 2026}',
                    },
                },
            }
        },
        "application/json": {
            "schema": {"$ref": "#/components/schemas/IngestRequest"},
            "example": {
                "documents": [{"name": "note.md", "text": "# Hours\n\nThe vault opens at nine."}],
                "collection": "default",
            },
        },
    },
}


@dataclass
class Incoming:
    """One document as it came in; `open` gives its bytes, as often as they are needed."""

    name: str
    metadata: Metadata
    declared: str | None
    file: UploadFile | None = None
    data: bytes = b""

    async def pieces(self) -> AsyncIterator[bytes]:
        if self.file is None:
            yield self.data
            return
        await self.file.seek(0)
        while piece := await self.file.read(COPY_BYTES):
            yield piece


@dataclass
class Outcome:
    """What became of one document: an upload, or why it was refused."""

    name: str
    upload: Upload | None = None
    error: FootnoteError | None = None
    incoming: Incoming | None = field(default=None, repr=False)


@router.post(
    "/ingest",
    status_code=202,
    response_model=IngestResponse,
    responses={
        200: {"model": IngestResponse, "description": "all are settled (`wait`)"},
        **problems(404, 409, 413, 415, 502, 507),
    },
    openapi_extra={"requestBody": _BODY},
)
async def ingest(
    request: Request,
    service: Open,
    wait: Annotated[float, Query(ge=0, le=600, description="seconds to wait for all to be settled, parts too")] = 0,
    idempotency_key: Annotated[
        str | None, Header(max_length=200, pattern=r"^[\x21-\x7e]+$", description="makes a retry of this request safe")
    ] = None,
) -> Response:
    """Add documents: files as `multipart/form-data`, or texts as JSON. One bad document does not refuse the others.

    Members of archives and attachments of mails become documents of their own, with `parent_id` and the same metadata.
    """
    collection, incoming = await _read(request)
    check_collection_name(collection)
    await _check_embedder(service, collection)
    async with _stored(service, incoming) as outcomes:
        if all(outcome.error for outcome in outcomes):
            return _all_refused(outcomes)
        accepted = await _accept(service, collection, outcomes, idempotency_key)
    settled = await _settled(service, [a["job_id"] for a in accepted if a["job_id"]], wait)
    if wait:
        accepted = await _refresh(service, accepted)
    return JSONResponse(
        IngestResponse(documents=[IngestedDocument(**a) for a in accepted]).model_dump(mode="json"), 200 if settled else 202
    )


async def _read(request: Request) -> tuple[str, list[Incoming | Outcome]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request)
    if kind in {"application/json", ""}:
        return await _read_json(request)
    raise UnsupportedDocument(
        f"content-type {kind!r}: send multipart/form-data with `files`, or application/json with `documents`"
    )


async def _read_form(request: Request) -> tuple[str, list[Incoming | Outcome]]:
    form = await request.form(max_files=MAX_FILES, max_fields=20)
    unknown = set(form) - {"files", "collection", "metadata"}
    if unknown:
        raise InvalidInput(f"unknown field {min(unknown)[:100]!r}; known: files, collection, metadata")
    files = form.getlist("files")
    if not files or not all(isinstance(file, UploadFile) for file in files):
        raise InvalidInput("files: send one or more files in the field `files`, for example curl -F files=@report.pdf")
    metadata, collection = form.get("metadata", "{}"), form.get("collection", "default")
    if isinstance(metadata, UploadFile) or isinstance(collection, UploadFile):
        raise InvalidInput("collection and metadata are text fields, not files")
    parse_metadata(metadata)  # wrong metadata refuses the request, not each file of it
    return collection, [
        _named(file.filename or "", metadata, file.content_type, file=file) for file in files if isinstance(file, UploadFile)
    ]


async def _read_json(request: Request) -> tuple[str, list[Incoming | Outcome]]:
    raw = await request.body()
    try:
        body = IngestRequest.model_validate(json.loads(raw))
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False, include_input=False)) from exc
    except (ValueError, RecursionError) as exc:
        raise _Malformed(f"the body is not JSON: {exc}") from exc
    documents: list[Incoming | Outcome] = []
    for item in body.documents:
        text = printable_text(item.text)
        documents.append(_named(item.name, item.metadata, item.media_type or _text_type(item.name), data=text))
    return body.collection, documents


class _Malformed(InvalidInput):
    code = "malformed_request"


def printable_text(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can say and UTF-8 cannot, becomes U+FFFD, and the receipt counts it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _text_type(name: str) -> str | None:
    return None if "." in name else "text/plain"


def _named(name: str, metadata: Any, declared: str | None, **source: Any) -> Incoming | Outcome:
    shown = name.encode("utf-8", "replace").decode()[:500]
    try:
        return Incoming(safe_name(name), parse_metadata(metadata), declared, **source)
    except InvalidInput as exc:
        return Outcome(shown, error=exc)


async def _check_embedder(service: Service, collection: str) -> None:
    """An index of another embedding model is refused at the door, before anything is stored."""
    if await service.catalog.has_collection(collection):
        await service.generations.live(collection)


@asynccontextmanager
async def _stored(service: Service, incoming: list[Incoming | Outcome]) -> AsyncIterator[list[Outcome]]:
    """Keep the bytes of all while their documents are written; if that fails, none of them stays."""
    outcomes: list[Outcome] = []
    try:
        for each in incoming:
            outcomes.append(await _store(service, each) if isinstance(each, Incoming) else each)  # noqa: PERF401 - see except
        yield outcomes
    except BaseException:
        stored = [outcome.upload.sha256 for outcome in outcomes if outcome.upload]
        await service.catalog.remove_blobs(stored, service.files.discard)
        raise


async def _store(service: Service, incoming: Incoming) -> Outcome:
    """Keep the bytes and find out what they are; a refusal is this document's own."""
    try:
        printable(incoming.name, what="name")
        stored = await service.files.put("originals", incoming.pieces(), limit=service.settings.max_file_mb * MIB)
        try:
            media_type = detect(incoming.name, stored.head, stored.size, incoming.declared)
        except FootnoteError:
            await service.catalog.remove_blobs([stored.sha256], service.files.discard)
            raise
    except InvalidInput as exc:
        return Outcome(incoming.name, error=exc)
    return Outcome(
        incoming.name, Upload(incoming.name, stored.sha256, stored.size, media_type, incoming.metadata), incoming=incoming
    )


async def _accept(service: Service, collection: str, outcomes: list[Outcome], key: str | None) -> list[dict[str, Any]]:
    uploads = [outcome.upload for outcome in outcomes if outcome.upload]
    request = (key, request_fingerprint(collection, uploads)) if key else None
    while True:
        try:
            accepted = await service.catalog.accept(
                collection,
                uploads,
                chunking=service.chunking,
                exist=service.files.has_originals,
                request=request,
            )
            break
        except OriginalVanished:
            for outcome in outcomes:
                if outcome.incoming:
                    await service.files.put("originals", outcome.incoming.pieces(), limit=service.settings.max_file_mb * MIB)
    rows = iter(accepted)
    return [_refused(outcome) if outcome.error else {**_fields(next(rows)), "error": None} for outcome in outcomes]


def _fields(accepted: Any) -> dict[str, Any]:
    return {name: getattr(accepted, name) for name in ("id", "name", "status", "job_id", "duplicate", "parts")}


def _refused(outcome: Outcome) -> dict[str, Any]:
    error = Error(**as_dict(outcome.error)) if outcome.error else None
    return {"id": None, "name": outcome.name, "status": "failed", "job_id": None, "duplicate": False, "error": error}


def _all_refused(outcomes: list[Outcome]) -> JSONResponse:
    first = next(outcome.error for outcome in outcomes if outcome.error)
    documents = [IngestedDocument(**_refused(outcome)).model_dump(mode="json") for outcome in outcomes]
    return problem_response(first.code, f"{outcomes[0].name}: {first.message}", documents=documents)


async def _settled(service: Service, job_ids: list[str], wait: float) -> bool:
    """Wait until no job is left to run, at most `wait` seconds; an answer of 200 promises that."""
    deadline = time.monotonic() + wait
    while wait and await service.jobs.unfinished(job_ids):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return bool(wait)


async def _refresh(service: Service, accepted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = [a["id"] for a in accepted if a["id"]]
    now = {document.id: document for document in await service.catalog.list_documents(ids=ids, limit=len(ids))}
    return [{**a, **_now(now[a["id"]])} if a["id"] in now else a for a in accepted]


def _now(document: Document) -> dict[str, Any]:
    error = Error(**document.error) if document.error else None
    return {"status": document.status, "error": error, "parts": (document.receipt or {}).get("parts", 0)}
