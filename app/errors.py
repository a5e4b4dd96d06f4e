"""The one place that turns error codes into HTTP statuses and exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval import errors

STATUS: Mapping[str, int] = {
    "internal_error": 500,
    "invalid_input": 422,
    "invalid_filter": 422,
    "invalid_collection_name": 422,
    "question_too_long": 422,
    "empty_document": 422,
    "unsupported_document": 415,
    "missing_program": 415,
    "document_too_large": 413,
    "request_too_large": 413,
    "unreadable_document": 422,
    "encrypted_document": 422,
    "parse_timeout": 422,
    "parse_memory_exceeded": 422,
    "not_found": 404,
    "collection_not_found": 404,
    "document_not_found": 404,
    "job_not_found": 404,
    "conflict": 409,
    "dimension_mismatch": 409,
    "embedder_mismatch": 409,
    "idempotency_conflict": 409,
    "job_not_cancellable": 409,
    "reindex_incomplete": 409,
    "superseded": 409,
    "original_vanished": 409,
    "cancelled": 409,
    "not_yet_visible": 409,  # a 503 would tell a load balancer that this service is ill, and it is not
    "quota_exceeded": 403,  # no 5xx and no 429, which clients retry: no wait makes room
    "overloaded": 503,
    "deadline_exceeded": 504,
    "unauthorized": 401,
    "configuration_error": 500,
    "missing_dependency": 500,
    "service_error": 502,
    "store_unavailable": 503,
    "store_grpc_unavailable": 503,
    "store_read_only": 503,
    "store_full": 507,
    "store_rejected": 502,
    "store_key_rejected": 502,
    "store_forbidden": 502,
    "store_index_missing": 502,
    "store_too_old": 502,
    "store_limit_reached": 502,
    "embedder_unavailable": 503,
    "embedder_rejected": 502,
    "model_unavailable": 503,
    "model_rejected": 502,
    "catalog_unavailable": 503,
    "parser_killed": 503,
    "files_unavailable": 503,
    "files_rejected": 502,
    "broker_unavailable": 503,
    "storage_full": 507,
    "range_not_satisfiable": 416,
    "worker_lost": 500,
    "index_drift": 500,
    "original_lost": 409,
    "method_not_allowed": 405,
    "malformed_request": 400,
}
"""Every code that a response or a document's `error` can carry, with its HTTP status."""

TITLES: Mapping[int, str] = {
    400: "Malformed request",
    401: "A key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported type",
    416: "Beyond the end",
    422: "Invalid input",
    500: "Internal error",
    502: "Another service refused",
    503: "Not available right now",
    504: "Took too long",
    507: "Storage is full",
}

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL = 0, 1, 2, 3


class QuestionTooLong(errors.InvalidInput):
    code = "question_too_long"


class RequestTooLarge(errors.InvalidInput):
    code = "request_too_large"


class RangeNotSatisfiable(errors.InvalidInput):
    code = "range_not_satisfiable"


def status_of(code: str) -> int:
    return STATUS.get(code, 500)


def exit_code_of(error: errors.FootnoteError) -> int:
    wrong_usage = (errors.InvalidInput, errors.ConfigurationError)
    return EXIT_USAGE if isinstance(error, wrong_usage) else EXIT_FAILED


def problem(code: str, detail: str, *, request_id: str, **extra: Any) -> dict[str, Any]:
    """The members of an RFC 9457 problem document."""
    status = status_of(code)
    return {
        "type": f"urn:footnote:error:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        **extra,
    }


def as_dict(error: errors.FootnoteError) -> dict[str, Any]:
    """How an error is kept in a job and shown in a document."""
    return {"code": error.code, "detail": error.message, "retryable": error.retryable}
