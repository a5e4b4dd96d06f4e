"""`POST /ingest`: bytes stream to the file store, then documents and jobs are written in one transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.admission import admit_upload, settled
from app.api.errors import problems
from app.api.errors import response as problem_response
from app.api.inputs import parse_metadata, printable, safe_name
from app.api.open import Open
from app.api.streams import while_connected
from app.errors import as_dict
from app.schemas import Error, IngestedDocument, IngestRequest, IngestResponse
from app.settings import MIB
from app.wiring import Service
from ingest.documents import OriginalVanished
from ingest.files import Stored
from ingest.parsers import detect
from ingest.records import Accepted, Document, Upload, check_collection_name, request_fingerprint
from retrieval.errors import FootnoteError, InvalidInput, QuotaExceeded, UnsupportedDocument
from retrieval.types import Metadata

router = APIRouter(tags=["ingest"])

MAX_FILES = 1000
COPY_BYTES = 1 * MIB
STORED_AT_ONCE = 8
"""Files of one request."""

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
    """One document as it came in; `put` stores its bytes, as often as that is needed."""

    name: str
    metadata: Metadata
    declared: str | None
    file: UploadFile | None = None
    data: bytes = b""

    async def put(self, service: Service) -> Stored:
        """Store the bytes."""
        limit = service.settings.max_file_mb * MIB
        if self.file is None:
            return await service.files.put_bytes("originals", self.data, limit=limit)
        await self.file.seek(0)
        if (self.file.size or COPY_BYTES) < COPY_BYTES:
            return await service.files.put_bytes("originals", await self.file.read(), limit=limit)
        return await service.files.put("originals", _pieces(self.file), limit=limit)


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(COPY_BYTES):
        yield piece


@dataclass
class Outcome:
    """What became of one document: an upload and its acceptance, or why it was refused."""

    name: str
    upload: Upload | None = None
    error: FootnoteError | None = None
    incoming: Incoming | None = field(default=None, repr=False)
    accepted: Accepted | None = None


@router.post(
    "/ingest",
    status_code=202,
    response_model=IngestResponse,
    responses={
        200: {"model": IngestResponse, "description": "all are settled (`wait`)"},
        **problems(403, 404, 409, 413, 415, 502, 507),
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
    await admit_upload(service, _announced(request))
    outcomes = await _take_in(request, service, idempotency_key)
    if all(outcome.error for outcome in outcomes):
        return _all_refused(outcomes)
    token = next(outcome.accepted.token for outcome in outcomes if outcome.accepted)
    done = await while_connected(request, settled(service, token, wait)) if wait else False
    documents = [_ingested(outcome) for outcome in outcomes]
    if wait:
        documents = await _refresh(service, documents)
    body = IngestResponse(documents=documents, consistency_token=token)
    return JSONResponse(body.model_dump(mode="json"), 200 if done else 202)


async def _take_in(request: Request, service: Service, key: str | None) -> list[Outcome]:
    """Read, store and accept what came; what did not fit into memory lies in temporary files only so long."""
    try:
        collection, incoming = await _read(request)
        check_collection_name(collection)
        await _check_embedder(service, collection)
        async with _stored(service, incoming) as outcomes:
            if not all(outcome.error for outcome in outcomes):
                await _accept(service, collection, outcomes, key)
        return outcomes
    finally:
        await request.close()


def _announced(request: Request) -> int:
    """How many bytes the body has, as far as its sender says."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isdigit() else 0


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
    """Keep the bytes of all while their documents are written; what is not accepted then does not stay."""
    outcomes: list[Outcome] = []
    try:
        for at in range(0, len(incoming), STORED_AT_ONCE):
            storing = [asyncio.create_task(_store(service, each)) for each in incoming[at : at + STORED_AT_ONCE]]
            try:
                await asyncio.wait(storing)
            finally:  # also when the client is gone: what is being written must be known to be removed
                ended = await asyncio.gather(*storing, return_exceptions=True)
                outcomes += [each for each in ended if isinstance(each, Outcome)]
            for each in ended:
                if isinstance(each, BaseException):
                    raise each
        yield outcomes
    finally:
        unnamed = [outcome.upload.sha256 for outcome in outcomes if outcome.upload and not outcome.accepted]
        await service.catalog.remove_blobs(unnamed, service.files.discard)


async def _store(service: Service, incoming: Incoming | Outcome) -> Outcome:
    """Keep the bytes and find out what they are; a refusal is this document's own."""
    if isinstance(incoming, Outcome):  # it was refused already
        return incoming
    try:
        printable(incoming.name, what="name")
        stored = await incoming.put(service)
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


async def _accept(service: Service, collection: str, outcomes: list[Outcome], key: str | None) -> None:
    """Write the documents; each outcome gets its acceptance, or the reason why the quota has no room for it."""
    stored = [outcome for outcome in outcomes if outcome.upload]
    try:
        accepted = await _write(service, collection, stored, key)
    except QuotaExceeded as exc:
        for outcome in stored:
            outcome.error = exc
        return
    for outcome, each in zip(stored, accepted, strict=True):
        if each.error:
            outcome.error = QuotaExceeded(each.error["detail"])
        else:
            outcome.accepted = each


async def _write(service: Service, collection: str, outcomes: list[Outcome], key: str | None) -> list[Accepted]:
    uploads = [outcome.upload for outcome in outcomes if outcome.upload]
    request = (key, request_fingerprint(collection, uploads)) if key else None
    while True:
        try:
            return await service.catalog.accept(
                collection,
                uploads,
                chunking=service.chunking,
                exist=service.files.has_originals,
                request=request,
                quota=service.quota,
            )
        except OriginalVanished:
            for outcome in outcomes:
                if outcome.incoming:
                    await outcome.incoming.put(service)


def _ingested(outcome: Outcome) -> IngestedDocument:
    accepted = outcome.accepted
    if accepted is None:
        error = Error(**as_dict(outcome.error)) if outcome.error else None
        return IngestedDocument(
            id=None, name=outcome.name, status="failed", job_id=None, duplicate=False, parts=0, failed_parts=0, error=error
        )
    fields = ("id", "name", "status", "job_id", "duplicate", "parts")
    return IngestedDocument(**{name: getattr(accepted, name) for name in fields})


def _all_refused(outcomes: list[Outcome]) -> JSONResponse:
    first = next(outcome.error for outcome in outcomes if outcome.error)
    documents = [_ingested(outcome).model_dump(mode="json") for outcome in outcomes]
    return problem_response(first.code, f"{outcomes[0].name}: {first.message}", documents=documents)


async def _refresh(service: Service, documents: list[IngestedDocument]) -> list[IngestedDocument]:
    ids = [each.id for each in documents if each.id]
    now = {document.id: document for document in await service.catalog.list_documents(ids=ids, limit=len(ids))}
    return [each.model_copy(update=_now(now[each.id])) if each.id in now else each for each in documents]


def _now(document: Document) -> dict[str, Any]:
    error = Error(**document.error) if document.error else None
    parts = (document.receipt or {}).get("parts", 0)
    return {"status": document.status, "error": error, "parts": parts, "failed_parts": document.failed_parts}
