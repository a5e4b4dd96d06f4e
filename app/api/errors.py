"""Errors at the HTTP border: every one leaves as a problem document of RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.errors import problem, status_of
from retrieval.errors import FootnoteError

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
SOURCES = {("body",), ("query",), ("path",), ("header",)}
"""Where FastAPI says that a value came from, before its place there."""
CODES_BY_STATUS = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_document",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for the OpenAPI document: these statuses, and those that any route may give."""
    schema = {"$ref": "#/components/schemas/Problem"}
    everywhere = {400, 401, 422, 500, 503}
    return {
        status: {"description": "see `code` and `detail`", "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(everywhere | set(statuses))
    }


def install(app: FastAPI) -> None:
    """Map our errors, FastAPI's and Starlette's."""
    app.add_exception_handler(FootnoteError, _ours)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]


class ProblemResponse(JSONResponse):
    """Half a surrogate pair, which a caller's JSON can say and UTF-8 cannot, is answered as `?`."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def response(
    code: str, detail: str, *, retry_after: float | None = None, headers: Mapping[str, str] | None = None, **extra: Any
) -> ProblemResponse:
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    body = problem(code, detail, request_id=request_id, **extra)
    sent = dict(headers or {})
    if body["status"] in {429, 503} or retry_after is not None:
        sent["Retry-After"] = str(max(1, round(retry_after or 1)))
    if body["status"] == 401:
        sent["WWW-Authenticate"] = "Bearer"
    return ProblemResponse(body, body["status"], sent)


async def _ours(_request: Request, exc: FootnoteError) -> JSONResponse:
    if status_of(exc.code) >= 500:
        log.warning("request_failed", code=exc.code, detail=exc.message)
    return response(exc.code, exc.message, retry_after=exc.retry_after)


async def _invalid(_request: Request, exc: RequestValidationError) -> JSONResponse:
    errors = field_errors(exc.errors())
    if any(error["type"] == "json_invalid" for error in exc.errors()):
        return response("malformed_request", f"the body is not JSON: {errors[0]['detail']}", errors=errors)
    shown = "; ".join(f"{error['pointer']}: {error['detail']}" for error in errors[:3])
    return response("invalid_input", shown, errors=errors)


def field_errors(errors: Sequence[Any]) -> list[dict[str, str]]:
    """Pydantic's errors as JSON pointers; what was sent is not sent back."""
    found = []
    for error in errors:
        within = error["loc"][1:] if error["loc"][:1] in SOURCES else error["loc"]
        where = [str(part).replace("~", "~0").replace("/", "~1") for part in within]
        found.append({"pointer": "/" + "/".join(where), "detail": str(error["msg"]).encode("utf-8", "replace").decode()})
    return found


async def _http(request: Request, exc: HTTPException) -> JSONResponse:
    if isinstance(exc.__cause__, FootnoteError):  # FastAPI wraps whatever comes up while it reads a body
        return await _ours(request, exc.__cause__)
    if isinstance(exc.__cause__, RecursionError):
        return response("malformed_request", "the body is not JSON that can be read: it is nested too deeply")
    code = CODES_BY_STATUS.get(exc.status_code, "invalid_input" if exc.status_code < 500 else "internal_error")
    detail = "there is no such route; GET /docs lists them" if exc.status_code == 404 else str(exc.detail)
    return response(code, detail, headers=exc.headers)
