"""Documents, their bytes, text and chunks; collections; re-indexing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from app.api.errors import problems
from app.api.errors import response as problem_response
from app.api.inputs import byte_range
from app.api.open import Cursor, Limit, Open, collection_out, document_out, next_cursor
from app.errors import RangeNotSatisfiable
from app.schemas import (
    ChunkOut,
    Chunks,
    CollectionChange,
    CollectionIn,
    CollectionName,
    CollectionOut,
    Collections,
    DocumentOut,
    Documents,
    DocumentStatus,
    JobOut,
    ReindexRequest,
    ReindexResponse,
)
from app.watch import shown
from app.wiring import Service
from ingest.chunk import Chunking
from ingest.generations import Plan
from ingest.records import Collection, Quota
from retrieval.errors import ConfigurationError, DocumentNotFound, FootnoteError, InvalidInput

router = APIRouter()

BATCH = 500
"""Documents that are taken out of the store in one step."""
SAMPLE_TEXTS = ["The estimate needs a sentence of about the usual length, and this one will do for that purpose." * 8] * 16


@router.get("/documents", tags=["documents"], response_model=Documents, responses=problems(404))
async def list_documents(
    service: Open,
    collection: Annotated[CollectionName | None, Query()] = None,
    status: DocumentStatus | None = None,
    name: Annotated[str | None, Query(max_length=2000)] = None,
    parent: Annotated[str | None, Query(max_length=200, description="only what came out of the document of this id")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Documents:
    """Documents, newest first; attachments of mails and members of archives are documents too, named `parent/part`."""
    found = await service.catalog.list_documents(
        collection=collection, status=status, name=name, parent=parent, limit=limit, cursor=cursor
    )
    return Documents(documents=[document_out(each) for each in found], next_cursor=next_cursor(found, limit))


@router.get("/documents/{document_id}", tags=["documents"], response_model=DocumentOut, responses=problems(404))
async def get_document(service: Open, document_id: str) -> DocumentOut:
    """Status, receipt and error of a document's newest version."""
    return document_out(await service.catalog.document(document_id))


@router.get(
    "/documents/{document_id}/original",
    tags=["documents"],
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "the bytes as they came"},
        206: {"content": {"application/octet-stream": {}}, "description": "the range of them that was asked for"},
        **problems(404, 416, 502),
    },
)
async def get_original(
    service: Open,
    document_id: str,
    range: Annotated[str | None, Header(description="one range of bytes, as `bytes=0-499`; others are ignored")] = None,
    if_range: Annotated[str | None, Header(description="the ETag with which the range makes sense")] = None,
) -> Response:
    """The newest version's bytes, as a download: a browser never runs what somebody uploaded."""
    document = await service.catalog.document(document_id)
    etag = f'"{document.sha256}"'
    try:
        wanted = byte_range(range or "", document.size) if if_range in {None, etag} else None
    except RangeNotSatisfiable as exc:
        return problem_response(exc.code, exc.message, headers={"Content-Range": f"bytes */{document.size}"})
    start, end = wanted or (0, document.size)
    pieces = await service.files.stream("originals", document.sha256, start, end)
    name = quote(document.name.rsplit("/", 1)[-1], safe="")
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Length": str(end - start),
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{document.size}"
    return StreamingResponse(pieces, 206 if wanted else 200, headers, "application/octet-stream")


@router.get(
    "/documents/{document_id}/text",
    tags=["documents"],
    response_class=PlainTextResponse,
    responses={
        200: {"content": {"text/plain": {}}, "description": "the canonical text: citations' offsets count its characters"},
        **problems(404),
    },
)
async def get_text(service: Open, document_id: str) -> PlainTextResponse:
    """The text of the version that answers come from."""
    try:
        text = await _text(service, document_id)
    except DocumentNotFound:  # a newer version took its place just now
        text = await _text(service, document_id)
    return PlainTextResponse(text, headers={"X-Content-Type-Options": "nosniff"})


async def _text(service: Service, document_id: str) -> str:
    document = await service.catalog.document(document_id)
    if document.text_key is None:
        raise DocumentNotFound(f"document {document_id!r} has no text yet: its status is {document.status}")
    return await service.files.text(document.text_key)


@router.get("/documents/{document_id}/chunks", tags=["documents"], response_model=Chunks, responses=problems(404, 409, 502))
async def get_chunks(service: Open, document_id: str, limit: Limit = 100, cursor: Cursor = None) -> Chunks:
    """The chunks that the live index holds of a document, ordered by id; `position` is their order in the text."""
    document = await service.catalog.document(document_id)
    generation = await service.catalog.live_generation(document.collection)
    found = (
        []
        if generation is None
        else await service.store.scan(generation.index, document_id=document.id, after=cursor, limit=limit)
    )
    fields = [name for name in ChunkOut.model_fields if name != "headings"]
    chunks = [ChunkOut(**{name: getattr(each, name) for name in fields}, headings=list(each.headings)) for each in found]
    return Chunks(chunks=chunks, next_cursor=next_cursor(found, limit))


@router.delete(
    "/documents/{document_id}", tags=["documents"], status_code=202, response_model=JobOut, responses=problems(404, 502)
)
async def delete_document(service: Open, document_id: str) -> JobOut:
    """Delete a document with all that came out of it: nothing is found of it from now on; its job ends last."""
    document = await service.catalog.document(document_id)
    job_id = await service.catalog.delete_document(document_id)
    generation = await service.catalog.live_generation(document.collection)
    if generation is not None:
        gone = [document_id, *await service.catalog.parts_below(document_id)]
        for first in range(0, len(gone), BATCH):
            await service.store.replace(generation.index, {each: [] for each in gone[first : first + BATCH]})
    return (await shown(service, [await service.jobs.job(job_id)]))[0]


@router.get("/collections", tags=["collections"], response_model=Collections, responses=problems())
async def list_collections(service: Open, limit: Limit = 100, cursor: Cursor = None) -> Collections:
    """Collections by name."""
    found = await service.catalog.list_collections(limit=limit, cursor=cursor)
    return Collections(collections=await _shown(service, found), next_cursor=next_cursor(found, limit, "name"))


@router.post("/collections", tags=["collections"], status_code=201, response_model=CollectionOut, responses=problems())
async def create_collection(service: Open, body: CollectionIn) -> CollectionOut:
    """Create a collection, or find it as it is. The first ingest creates one too."""
    default = service.chunking
    chunking = Chunking(
        size=default.size if body.chunk_size is None else body.chunk_size,
        overlap=default.overlap if body.chunk_overlap is None else body.chunk_overlap,
        context=default.context if body.chunk_context is None else body.chunk_context,
    )
    quota = Quota(
        documents=service.quota.documents if body.max_documents is None else body.max_documents,
        bytes=service.quota.bytes if body.max_bytes is None else body.max_bytes,
    )
    created = await service.catalog.create_collection(body.name, chunking=chunking, quota=quota)
    return (await _shown(service, [created]))[0]


@router.get("/collections/{name}", tags=["collections"], response_model=CollectionOut, responses=problems(404))
async def get_collection(service: Open, name: str) -> CollectionOut:
    """One collection, with what its live index holds and what counts towards its quota."""
    return (await _shown(service, [await service.catalog.collection(name)]))[0]


@router.patch("/collections/{name}", tags=["collections"], response_model=CollectionOut, responses=problems(404))
async def change_collection(service: Open, name: str, body: CollectionChange) -> CollectionOut:
    """Change the quota. What is over a lower one stays; nothing is added until there is room."""
    changed = await service.catalog.set_quota(name, **body.model_dump(exclude_none=True))
    return (await _shown(service, [changed]))[0]


@router.delete("/collections/{name}", tags=["collections"], status_code=204, responses=problems(404, 502))
async def delete_collection(service: Open, name: str) -> Response:
    """Delete a collection with all its documents, originals and indexes."""
    generations, blobs = await service.catalog.delete_collection(name)
    for generation in generations:
        await service.store.drop(generation.index)
    await service.catalog.remove_blobs(blobs, service.files.discard)
    return Response(status_code=204)


@router.post(
    "/collections/{name}/reindex",
    tags=["collections"],
    status_code=202,
    response_model=ReindexResponse,
    responses=problems(404, 409, 502),
)
async def reindex(service: Open, name: str, body: ReindexRequest) -> ReindexResponse:
    """Build a new index beside the live one from the kept originals, then switch: queries see one or the other, whole.

    Nothing is done where nothing changed, unless `force`; `plan` only counts and estimates.
    """
    collection = await service.catalog.collection(name)
    live = await service.catalog.live_generation(name)
    chunking = _wanted_chunking(body, live.chunking if live else service.chunking)
    plan = await _plan(service, collection, body.embedder, chunking)
    needed = live is not None and bool(plan.changes or body.force)
    job_id = None
    if needed and not body.plan:
        generation = await service.generations.begin(collection, spec=body.embedder, chunking=chunking)
        job_id = await service.jobs.add_reindex(name, generation)
    seconds = await _estimate(service, plan) if needed and body.plan else None
    return ReindexResponse(
        collection=name,
        documents=plan.documents if needed else 0,
        chunks=plan.chunks if needed else 0,
        embedder=plan.embedder,
        changes=[*plan.changes, *(["forced"] if body.force else [])],
        estimated_seconds=seconds,
        job_id=job_id,
    )


async def _shown(service: Service, found: Sequence[Collection]) -> list[CollectionOut]:
    used = await service.catalog.usage([each.name for each in found])
    return [collection_out(each, used[each.name]) for each in found]


def _wanted_chunking(body: ReindexRequest, now: Chunking) -> Chunking:
    return Chunking(
        size=now.size if body.chunk_size is None else body.chunk_size,
        overlap=now.overlap if body.chunk_overlap is None else body.chunk_overlap,
        context=now.context if body.chunk_context is None else body.chunk_context,
    )


async def _plan(service: Service, collection: Collection, embedder: str | None, chunking: Chunking) -> Plan:
    try:
        return await service.generations.plan(collection, spec=embedder, chunking=chunking)
    except ConfigurationError as exc:
        if embedder is None:
            raise
        raise InvalidInput(f"embedder: {exc.message}") from exc


async def _estimate(service: Service, plan: Plan) -> float:
    """Seconds for the chunks at the rate at which this process embeds a few of the usual length right now."""
    embedder = await service.generations.embedder(plan.embedder)
    try:
        await embedder.embed_documents(SAMPLE_TEXTS[:1])  # the first call loads the model
        began = time.perf_counter()
        await embedder.embed_documents(SAMPLE_TEXTS)
    except FootnoteError as exc:
        raise InvalidInput(f"the embedder cannot be tried: {exc.message}") from exc
    await asyncio.sleep(0)
    return round((time.perf_counter() - began) / len(SAMPLE_TEXTS) * plan.chunks, 1)
