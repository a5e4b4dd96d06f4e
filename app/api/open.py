"""The open service as a dependency of the routes, and the way rows become what goes over the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from app.schemas import CollectionOut, DocumentOut, Error, JobOut, Receipt
from app.wiring import Service
from ingest.documents import Room
from ingest.job_rows import Job
from ingest.records import Collection, Document


async def _service(request: Request) -> Service:  # without `async`, each request would go to a thread for it and back
    service: Service = request.app.state.service
    return service


Open = Annotated[Service, Depends(_service)]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")]


def next_cursor(items: list[Any], limit: int, key: str = "id") -> str | None:
    return getattr(items[-1], key) if len(items) == limit else None


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def document_out(document: Document) -> DocumentOut:
    return DocumentOut(
        id=document.id,
        parent_id=document.parent_id,
        name=document.name,
        collection=document.collection,
        status=document.status,  # type: ignore[arg-type]
        version=document.version,
        live_version=document.live_version,
        size=document.size,
        media_type=document.media_type,
        sha256=document.sha256,
        metadata=dict(document.metadata),
        chunks=document.chunks,
        receipt=Receipt(**{**document.receipt, "failed_parts": document.failed_parts}) if document.receipt else None,
        error=Error(**document.error) if document.error else None,
        job_id=document.job_id,
        created_at=iso(document.created_at),
        updated_at=iso(document.updated_at),
    )


def job_out(job: Job, eta_seconds: float | None = None) -> JobOut:
    return JobOut(
        id=job.id,
        kind=job.kind,  # type: ignore[arg-type]
        collection=job.collection,
        document_id=job.document_id,
        state=job.state,  # type: ignore[arg-type]
        stage=job.stage,
        done=job.done,
        total=job.total,
        rate=None if job.rate is None or job.state != "running" else round(job.rate, 3),
        eta_seconds=eta_seconds,
        attempts=job.attempts,
        error=Error(**job.error) if job.error else None,
        created_at=iso(job.created_at),
        started_at=iso(job.started_at) if job.started_at else None,
        finished_at=iso(job.finished_at) if job.finished_at else None,
    )


def collection_out(collection: Collection, used: Room) -> CollectionOut:
    return CollectionOut(
        name=collection.name,
        documents=collection.documents,
        chunks=collection.chunks,
        generation=collection.live_generation,
        embedder=collection.embedder,
        chunk_size=collection.chunk_size,
        chunk_overlap=collection.chunk_overlap,
        chunk_context=collection.chunk_context,
        max_documents=collection.max_documents,
        max_bytes=collection.max_bytes,
        used_documents=used.documents,
        used_bytes=used.bytes,
        created_at=iso(collection.created_at),
    )
