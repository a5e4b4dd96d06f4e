"""The one function that builds the product from its settings; every door and every test opens it the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import cast

from app.answer import EXTRACTIVE, Answerer
from app.llm import LLM
from app.llm.chat import ChatModel, FallbackChain, open_chat
from app.memory import Memory
from app.settings import DAY_SECONDS, MIB, Settings
from ingest.blobs import open_blobs
from ingest.brokers import Broker, open_broker
from ingest.catalog import Catalog
from ingest.chunk import Chunking
from ingest.database import Database, open_database
from ingest.disk import Disk
from ingest.embedding_cache import EmbeddingCache, open_embedding_cache
from ingest.files import Files
from ingest.generations import Generations
from ingest.history import History
from ingest.jobs import Jobs
from ingest.ledger import Ledger
from ingest.notices import Courier
from ingest.pace import Pace
from ingest.parsers import Options
from ingest.parsers.isolation import ParserPool
from ingest.pipeline import Pipeline
from ingest.reconcile import Reconciler
from ingest.records import QUEUES, Quota
from ingest.revisions import RevisedStore
from ingest.worker import Worker
from retrieval.embedders import Embedder, open_embedder
from retrieval.embedders.questions import QuestionMemory
from retrieval.errors import StorageFull
from retrieval.stores import VectorStore, open_store

DEFAULT_COLLECTION = "default"


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that is open, for as long as the service runs."""

    settings: Settings
    broker: Broker
    database: Database
    catalog: Catalog
    jobs: Jobs
    files: Files
    store: VectorStore
    generations: Generations
    cache: EmbeddingCache
    answerer: Answerer
    disk: Disk
    pace: Pace
    reconciler: Reconciler

    @property
    def quota(self) -> Quota:
        """Of new collections."""
        return _quota(self.settings)

    @property
    def chunking(self) -> Chunking:
        """Of new collections."""
        return _chunking(self.settings)

    async def warm(self) -> None:
        """Load the model before a question needs it. One that is yet to be converted waits for the first text, as a
        conversion takes a minute and holds up whoever stops the service."""
        if any(self.settings.resolved_models_dir.glob("openvino/*/manifest.json")):
            await self.generations.warm()


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Open broker, catalog, files, store and embedder; close them in reverse. Raises what an operator can mend."""
    async with AsyncExitStack() as stack:
        files = await _open_files(settings)
        stack.callback(files.close)
        broker = await open_broker(settings.resolved_broker_url)
        stack.push_async_callback(broker.close)
        database = await open_database(settings.resolved_catalog_url, broker.send)
        stack.push_async_callback(database.close)
        cache_bytes = settings.embedding_cache_mb * MIB
        cache = await stack.enter_async_context(open_embedding_cache(database, settings.data_dir.resolve(), cache_bytes))
        key = settings.store_api_key.get_secret_value() if settings.store_api_key else None
        opened = await open_store(settings.resolved_store_url, api_key=key)
        stack.push_async_callback(opened.close)
        catalog = Catalog(database)
        store = cast("VectorStore", RevisedStore(opened, catalog))
        await _ensure_default(catalog, settings)
        generations = Generations(catalog, default_spec=settings.embedder, open_embedder=lambda spec: _embedder(settings, spec))
        stack.push_async_callback(generations.close)
        jobs = Jobs(
            database,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.job_max_attempts,
            notify=settings.webhook_url is not None,
        )
        chats = _chats(settings)
        for chat in chats.values():
            stack.push_async_callback(chat.close)
        models = _models(settings.llm, chats)
        answerer = Answerer(
            catalog=catalog,
            generations=generations,
            store=store,
            models=models,
            default=next(iter(models)),
            memory=Memory(settings.query_cache_mb * MIB),
        )
        disk = Disk(settings.data_dir.resolve(), settings.min_free_disk_mb * MIB)
        every = 60 * settings.reconcile_minutes
        reconciler = Reconciler(catalog=catalog, ledger=Ledger(database), files=files, store=store, every_seconds=every)
        pace = Pace(database)
        yield Service(
            settings, broker, database, catalog, jobs, files, store, generations, cache, answerer, disk, pace, reconciler
        )


@asynccontextmanager
async def open_worker(service: Service, queues: Sequence[str] = QUEUES) -> AsyncIterator[Worker]:
    """A worker over an open service, with its own parser processes."""
    settings = service.settings
    parsers = ParserPool(
        workers=min(settings.ingest_concurrency, 2),
        timeout_seconds=settings.parse_timeout_seconds,
        memory_bytes=settings.parse_memory_mb * MIB,
        options=Options(html=settings.html, ocr_languages=settings.ocr_languages),
    )
    try:
        await parsers.warm()
        pipeline = Pipeline(
            catalog=service.catalog,
            jobs=service.jobs,
            files=service.files,
            store=service.store,
            generations=service.generations,
            parsers=parsers,
            disk=service.disk,
            cache=service.cache,
        )
        history = History(service.database, DAY_SECONDS * settings.history_days)
        async with _sending_notices(service):
            yield Worker(
                service.jobs,
                pipeline,
                service.broker,
                queues=queues,
                concurrency=settings.ingest_concurrency,
                drain_seconds=settings.drain_seconds,
                chores=(service.reconciler.tick, history.tick),
            )
    finally:
        await parsers.close()


@asynccontextmanager
async def _sending_notices(service: Service) -> AsyncIterator[None]:
    """Beside a worker's jobs, so that a slow receiver delays none of them."""
    url, secret = service.settings.webhook_url, service.settings.webhook_secret
    if url is None or secret is None:
        yield
        return
    sending = asyncio.create_task(Courier(service.database, url=url, secret=secret.get_secret_value()).run())
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _ensure_default(catalog: Catalog, settings: Settings) -> None:
    """The collection that is meant where none is named is always there: asking it before the first upload is no error."""
    if not await catalog.has_collection(DEFAULT_COLLECTION):
        await catalog.create_collection(DEFAULT_COLLECTION, chunking=_chunking(settings), quota=_quota(settings))


def _chunking(settings: Settings) -> Chunking:
    return Chunking(size=settings.chunk_size, overlap=settings.chunk_overlap, context=settings.chunk_context)


def _quota(settings: Settings) -> Quota:
    return Quota(settings.collection_max_documents, settings.collection_max_mb * MIB)


async def _open_files(settings: Settings) -> Files:
    data_dir = settings.data_dir.resolve()
    key = settings.files_credentials.get_secret_value() if settings.files_credentials else None
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageFull(
            f"the data dir {settings.data_dir} cannot be written ({exc.strerror}): free some room, or set FOOTNOTE_DATA_DIR"
        ) from exc
    files = Files(open_blobs(settings.resolved_files_url, data_dir=data_dir, credentials=key))
    await files.ping()
    return files


async def _embedder(settings: Settings, spec: str) -> Embedder:
    key = settings.embedder_api_key.get_secret_value() if settings.embedder_api_key else None
    opened = await open_embedder(
        spec,
        base_url=settings.embedder_base_url,
        api_key=key,
        cache_dir=str(settings.resolved_models_dir),
        engine=settings.embedder_engine,
    )
    return QuestionMemory(opened)


def _chats(settings: Settings) -> dict[str, ChatModel]:
    names = [name.strip() for name in settings.llm.split(",")]
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
    return {
        name: open_chat(
            name,
            base_url=settings.llm_base_url,
            api_key=key,
            window=settings.llm_window,
            max_tokens=settings.llm_max_tokens,
            timeout_seconds=settings.llm_timeout_seconds,
        )
        for name in names
        if name != EXTRACTIVE
    }


def _models(llm: str, chats: Mapping[str, ChatModel]) -> dict[str, LLM | None]:
    """The models that a question may choose by name, the default first; `extractive` (None) needs none and is always there."""
    models: dict[str, LLM | None] = {llm: FallbackChain(list(chats.values()))} if len(chats) > 1 else {}
    models |= chats
    if llm.partition(",")[0].strip() == EXTRACTIVE:
        return {EXTRACTIVE: None, **models}
    return {**models, EXTRACTIVE: None}
