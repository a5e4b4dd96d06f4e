"""The HTTP service as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from app import __version__
from app.admission import Admission
from app.api import documents, errors, health, ingest, jobs, query
from app.api.inputs import KnownParameters
from app.auth import Caller
from app.middleware import Requests
from app.schemas import IngestRequest, Problem
from app.settings import MIB, Settings
from app.watch import Watch
from app.wiring import Service, open_service
from retrieval.errors import FootnoteError

DESCRIPTION = """\
Documents go in, questions come out answered, and every sentence carries a footnote to the passage that it came from.

Send files to `POST /ingest`, ask at `POST /query`. Errors are problem documents (RFC 9457) with a stable `code`.
"""


def create_app(settings: Settings, *, service: Service | None = None) -> FastAPI:
    """Build the application. It opens the service at start and closes it at the end, unless it is given an open one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if service is not None:
            app.state.service = service
            yield
            return
        async with AsyncExitStack() as stack:
            try:
                app.state.service = opened = await stack.enter_async_context(open_service(settings))
            except FootnoteError as exc:
                app.state.refusal = exc  # for whoever runs us to say it in one line: uvicorn would print a traceback
                raise
            warming = asyncio.create_task(opened.warm())
            yield
            warming.cancel()

    app = FastAPIOffline(  # the API page without a CDN
        title="Footnote",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        license_info={"name": "Apache-2.0"},
    )
    app.state.settings = settings
    app.state.watch = Watch()
    app.state.admission = Admission(limit=settings.max_queries, waiting=settings.max_waiting_queries)
    for module in (query, ingest, documents, jobs):
        app.include_router(module.router, dependencies=[Caller, KnownParameters])
    app.include_router(health.router)
    errors.install(app)
    app.add_middleware(Requests, max_body=settings.max_request_mb * MIB)
    app.openapi = _completed(app, asks_for_keys=settings.asks_for_keys)  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _completed(app: FastAPI, *, asks_for_keys: bool) -> Any:
    """Add the models that routes name only by reference, and say where a key is not needed."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemas = document["components"]["schemas"]
        for model in (Problem, IngestRequest):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for path in document["paths"].values() if not asks_for_keys else ():
            for operation in path.values():
                operation.pop("security", None)
        return document

    return openapi
