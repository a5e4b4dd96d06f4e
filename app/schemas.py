"""What goes over the wire, as `docs` and clients see it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ingest.records import COLLECTION_NAME

CollectionName = Annotated[str, StringConstraints(pattern=COLLECTION_NAME)]
DocumentStatus = Literal["queued", "processing", "ready", "needs_attention", "degraded", "failed", "deleting"]
JobState = Literal["queued", "running", "succeeded", "failed", "dead", "cancelled"]
Text = Annotated[str, StringConstraints(min_length=1)]
MAX_COUNT, MAX_SIZE = 2**31 - 1, 2**53 - 1
FilterValue = str | int | float | bool


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Error(Model):
    """Why a document or job is not well; `detail` says what to do."""

    code: str = Field(examples=["unsupported_document"])
    detail: str
    retryable: bool = False


class FieldError(Model):
    pointer: str = Field(description="JSON pointer to the value that is wrong", examples=["/top_k"])
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:footnote:error:collection_not_found"])
    title: str
    status: int
    detail: str = Field(description="what happened and what to do")
    code: str = Field(examples=["collection_not_found"])
    request_id: str
    errors: list[FieldError] | None = None


class Turn(Model):
    role: Literal["user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=20_000)]


class SearchRequest(Model):
    question: Text = Field(
        description="what to look for, in any language", examples=["When is the seed vault open to visitors?"]
    )
    collection: CollectionName = "default"
    top_k: int = Field(5, strict=True, ge=1, le=100, description="how many hits")
    filter: dict[str, Any] | None = Field(
        None,
        description='on metadata and on document_id, document_name, page, language: {"year": {"$gte": 2024}, "$or": [...]}; '
        "operators $eq $ne $in $nin $gt $gte $lt $lte $exists $contains $and $or $not",
        examples=[{"department": "visitors", "year": {"$gte": 2024}}],
    )
    mode: Literal["hybrid", "vector", "keyword"] = "hybrid"

    consistent_with: str | None = Field(
        None,
        pattern=r"^w_[0-9a-f]{24}$",
        description="the `consistency_token` of an ingest: wait until all that it accepted is settled",
        examples=["w_0199c0ffee00a1b2c3d4e5f6"],
    )
    wait_seconds: float = Field(10, strict=True, ge=0, le=300, description="longest such wait; then 409 `not_yet_visible`")
    timeout_seconds: float | None = Field(
        None, strict=True, gt=0, le=3600, description="time for all of it, waits included; then 504 `deadline_exceeded`"
    )


class QueryRequest(SearchRequest):
    stream: bool = Field(False, strict=True, description="answer as server-sent events")
    history: list[Turn] = Field([], max_length=50, description="the turns before this question, oldest first")
    llm: str | None = Field(None, description="`extractive`, or one of the configured models", examples=["extractive"])


class HitOut(Model):
    chunk_id: str
    document_id: str
    document_name: str
    text: str
    page: int | None
    start: int = Field(description="character offset into the document's text")
    end: int
    headings: list[str]
    metadata: dict[str, Any]
    score: float
    vector_score: float = Field(description="cosine similarity")
    keyword_score: float = Field(description="BM25")


class Citation(Model):
    marker: int = Field(description="the number in square brackets in the answer")
    document_id: str
    document_name: str
    chunk_id: str
    quote: str
    verified: bool = Field(description="the quote stands in the document's text at start..end, word for word")
    page: int | None
    start: int
    end: int
    headings: list[str]


class Usage(Model):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class SearchResponse(Model):
    hits: list[HitOut]
    collection: str
    generation: str | None
    timings_ms: dict[str, float]


class Answer(Model):
    id: str
    status: Literal["answered", "partial", "abstained"]
    reason: str | None = Field(description="why it abstained, or what is missing")
    answer: str
    citations: list[Citation]
    hits: list[HitOut]
    model: str
    collection: str
    generation: str | None
    timings_ms: dict[str, float]
    usage: Usage


class IngestText(Model):
    name: Annotated[str, StringConstraints(min_length=1, max_length=500)] = Field(examples=["note.md"])
    text: str
    media_type: str | None = Field(None, examples=["text/markdown"])
    metadata: dict[str, Any] = {}


class IngestRequest(Model):
    documents: list[IngestText] = Field(min_length=1, max_length=1000)
    collection: CollectionName = "default"


class IngestedDocument(Model):
    id: str | None = Field(description="null if the document was refused")
    name: str
    status: DocumentStatus
    job_id: str | None
    duplicate: bool = Field(description="the same bytes under the same name were here already")
    parts: int = Field(
        0, description="documents that came out of it, as far as it was read; `GET /documents?parent=` lists them"
    )
    failed_parts: int = Field(0, description="how many of these failed, those within them counted too")
    error: Error | None = None


class IngestResponse(Model):
    documents: list[IngestedDocument]
    consistency_token: str = Field(
        description="`consistent_with` for /query and /search: they wait for these documents and all that came out of them",
        examples=["w_0199c0ffee00a1b2c3d4e5f6"],
    )


class Receipt(BaseModel):
    """What was read of a document and what was not, by what, and how long it took."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # one of another version may hold more, or less

    parser: str = Field(description="the program that read the file", examples=["pypdfium2 5.1.0"])
    media_type: str = ""
    encoding: str | None = Field(None, description="of a text; null for a binary format")
    replaced_characters: int = Field(0, description="bytes that were no valid text, now U+FFFD")
    removed_characters: int = Field(0, description="control characters and the like")
    characters: int = Field(0, description="of the canonical text")
    pages: int | None = Field(None, description="pages, slides or sheets; null where the format has none")
    pages_without_text: int = Field(0, description="pages on which nothing was read, neither as text nor by OCR")
    page_characters: list[int] = Field([], description="characters on each page")
    ocr_pages: int = Field(0, description="pages that were read as images")
    ocr_words: int = Field(0, description="words that were recognised on them")
    ocr_confidence: float | None = Field(None, description="mean over the recognised words, 0 to 100")
    tables_seen: int = Field(0, description="tables that the file holds, as far as its format says")
    tables: int = Field(0, description="tables kept as rows")
    images_skipped: int = Field(0, description="images whose text, if any, was not read")
    parts: int = Field(0, description="files within it that became documents: `GET /documents?parent=` lists them")
    failed_parts: int = Field(
        0, description="how many documents that came out of it, at any depth, failed so far; each says why in its own `error`"
    )
    chunks: int = 0
    tokens: int = Field(0, description="of all chunks with their contexts, as the embedding model counts")
    tokens_cut: int = Field(
        0, description="tokens beyond the embedding model's window, so in no vector; the chunker keeps it 0"
    )
    embedded: int = Field(0, description="chunks whose vectors the embedding model computed")
    cached: int = Field(0, description="chunks whose vectors were known: the same text was embedded before")
    seconds: float = Field(0.0, description="to read the file")
    stages: dict[str, float] = Field({}, description="seconds by stage, waiting included: reading, embedding, storing")
    notes: list[str] = Field([], description="what else is worth knowing, in plain words")
    needs_attention: str | None = Field(None, description="why this document cannot be relied on, and what to do")


class DocumentOut(Model):
    id: str
    parent_id: str | None = Field(description="the document that this one came out of, as an attachment comes out of a mail")
    name: str
    collection: str
    status: DocumentStatus
    version: int
    live_version: int | None = Field(description="the version that answers come from; null while there is none")
    size: int
    media_type: str
    sha256: str
    metadata: dict[str, Any]
    chunks: int
    receipt: Receipt | None = Field(description="of the newest version that was read; null while there is none")
    error: Error | None
    job_id: str
    created_at: str
    updated_at: str


class ChunkOut(Model):
    id: str
    position: int
    text: str
    start: int
    end: int
    page: int | None
    headings: list[str]
    language: str | None


class JobOut(Model):
    id: str
    kind: Literal["ingest", "delete", "reindex", "rebuild"]
    collection: str
    document_id: str | None
    state: JobState
    stage: str
    done: int
    total: int | None
    rate: float | None = Field(description="of `done` per second, lately; null while it does not run")
    eta_seconds: float | None = Field(
        description="until it ends, at the pace of the recent past and after the jobs before it; null where that is unknown"
    )
    attempts: int
    error: Error | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class CollectionIn(Model):
    name: CollectionName = Field(examples=["reports"])
    chunk_size: int | None = Field(
        None, strict=True, ge=0, le=8192, description="tokens per chunk; 0 for 160, or the model's window where that is less"
    )
    chunk_overlap: int | None = Field(None, strict=True, ge=0, le=1024)
    chunk_context: bool | None = Field(None, strict=True, description="embed titles and table headers with the chunks below")
    max_documents: int | None = Field(
        None, strict=True, ge=0, le=MAX_COUNT, description="quota of documents, parts of uploads too; 0 for none"
    )
    max_bytes: int | None = Field(None, strict=True, ge=0, le=MAX_SIZE, description="quota of their bytes; 0 for none")


class CollectionChange(Model):
    """What is left out stays as it is."""

    max_documents: int | None = Field(None, strict=True, ge=0, le=MAX_COUNT, description="0 for none", examples=[10_000])
    max_bytes: int | None = Field(None, strict=True, ge=0, le=MAX_SIZE, description="0 for none", examples=[10 * 2**30])


class CollectionOut(Model):
    name: str
    documents: int
    chunks: int
    generation: str | None
    embedder: str | None
    chunk_size: int
    chunk_overlap: int
    chunk_context: bool
    max_documents: int = Field(description="quota; 0 for none")
    max_bytes: int = Field(description="quota; 0 for none")
    used_documents: int = Field(description="that count towards the quota: all but those being deleted")
    used_bytes: int
    created_at: str


class Documents(Model):
    documents: list[DocumentOut]
    next_cursor: str | None


class Chunks(Model):
    chunks: list[ChunkOut]
    next_cursor: str | None


class JobList(Model):
    jobs: list[JobOut]
    next_cursor: str | None


class Collections(Model):
    collections: list[CollectionOut]
    next_cursor: str | None


class ReindexRequest(Model):
    embedder: Text | None = Field(
        None, description="build with this embedder and keep it for the collection", examples=["openai:bge-m3"]
    )
    force: bool = Field(False, strict=True, description="build anew even if nothing changed")
    plan: bool = Field(False, strict=True, description="only count and estimate")
    chunk_size: int | None = Field(None, strict=True, ge=0, le=8192)
    chunk_overlap: int | None = Field(None, strict=True, ge=0, le=1024)
    chunk_context: bool | None = Field(None, strict=True, description="embed titles and table headers with the chunks below")


class ReindexResponse(Model):
    collection: str
    documents: int
    chunks: int
    embedder: str
    changes: list[str]
    estimated_seconds: float | None
    job_id: str | None


class Ready(Model):
    status: Literal["ready", "degraded", "not_ready"]
    checks: dict[str, str]


class Health(Model):
    status: Literal["alive"]
    version: str
