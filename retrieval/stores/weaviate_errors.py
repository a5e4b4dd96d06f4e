"""Weaviate's refusals made ours: each with a code, and a message that says what to do.

The client's exceptions keep little but text, and the errors of single objects in a batch are text alone, so some are told
apart by what the server is known to say (read in its source, and provoked in tests/contracts/test_weaviate_faults.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from grpc import StatusCode  # type: ignore[import-untyped]  # grpcio ships no types
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from weaviate.exceptions import (
    AuthenticationFailedError,
    InsufficientPermissionsError,
    UnexpectedStatusCodeError,
    WeaviateBaseError,
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateStartUpError,
    WeaviateTimeoutError,
)

from retrieval.errors import (
    FootnoteError,
    StoreForbidden,
    StoreFull,
    StoreKeyRejected,
    StoreLimitReached,
    StoreReadOnly,
    StoreRejected,
    StoreUnavailable,
)
from retrieval.stores.weaviate_address import Node

CAUGHT = (WeaviateBaseError, AioRpcError, httpx.TransportError, TimeoutError)
"""What the client raises; httpx's errors pass through it where a connection breaks within an answer."""

LOST = (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateStartUpError,
    httpx.TransportError,
)
NO_SUCH_INDEX = ("tenant not found", "could not find class", "class not found")

SAID: Mapping[str, type[FootnoteError]] = {
    "no space left on device": StoreFull,
    "read-only": StoreReadOnly,
    "usage_limit_exceeded": StoreLimitReached,
    "count limit of": StoreLimitReached,
    "message larger than max": StoreLimitReached,
    "too many open files": StoreLimitReached,
    "consistency level": StoreUnavailable,  # too few replicas answer, for now
    "enough replicas": StoreUnavailable,
    "leader": StoreUnavailable,  # between two leaders, schema changes are refused
    "connection refused": StoreUnavailable,  # from one node to another
    "connection reset": StoreUnavailable,
    "shutdown in progress": StoreUnavailable,
    "non-existing index": StoreUnavailable,  # a server that starts knows its classes before it has opened them
    "is not ready": StoreUnavailable,
    "deadline exceeded": StoreUnavailable,
    "context canceled": StoreUnavailable,
}
"""What the server says, in lower case, in order of precedence."""

CURES: Mapping[type[FootnoteError], str] = {
    StoreFull: "its disk is full: free some room or enlarge it, and start it again, for until then it goes on refusing",
    StoreReadOnly: (
        "it is read-only, which Weaviate is where its disk or memory use passed a threshold: free some room, or raise "
        "DISK_USE_READONLY_PERCENTAGE; jobs go on by themselves"
    ),
    StoreLimitReached: (
        "a limit set by its operator is reached: raise MAXIMUM_ALLOWED_COLLECTIONS_COUNT, "
        "MAXIMUM_ALLOWED_TENANTS_PER_COLLECTION, MAXIMUM_ALLOWED_OBJECTS_COUNT, GRPC_MAX_MESSAGE_SIZE or the limit of its open "
        "files (13 for each collection in use), as its message says, or delete collections"
    ),
    StoreForbidden: (
        "the API key lacks a permission: give its role all rights on collections, data, tenants and aliases of `Footnote*`"
    ),
    StoreKeyRejected: "it does not accept the API key: set FOOTNOTE_STORE_API_KEY to one that it knows",
    StoreUnavailable: "it cannot do that now; retry",
}


class IndexMissing(Exception):
    """The class or the tenant of an index does not exist: to a reader no error, for such an index reads as empty."""


def translated(exc: BaseException, node: Node) -> FootnoteError | IndexMissing:
    """What the client raised while it talked to `node`, as ours."""
    if is_missing(exc):
        return IndexMissing(str(exc))
    if timed_out(exc):
        return StoreUnavailable(f"Weaviate did not answer in time {cure(node)}")
    if broke_off(exc):
        return StoreUnavailable(f"cannot reach Weaviate {cure(node)} ({exc})")
    kind = kind_of_exception(exc)
    if kind is not None:
        return kind(f"Weaviate at {node} refused: {CURES[kind]} ({exc})")
    return StoreRejected(f"Weaviate at {node} refused the request: {exc}")


def timed_out(exc: BaseException) -> bool:
    """The node was there and let us wait."""
    slow = isinstance(exc, WeaviateTimeoutError | TimeoutError | httpx.TimeoutException)
    return slow or grpc_code(exc) == StatusCode.DEADLINE_EXCEEDED


def broke_off(exc: BaseException) -> bool:
    """The node went away, or was never there."""
    return not timed_out(exc) and (isinstance(exc, LOST) or grpc_code(exc) == StatusCode.UNAVAILABLE)


def kind_of_exception(exc: BaseException) -> type[FootnoteError] | None:
    """What a refusal means, None if it is none that we know."""
    status = exc.status_code if isinstance(exc, UnexpectedStatusCodeError) else 0
    code = grpc_code(exc)
    if isinstance(exc, AuthenticationFailedError) or status == httpx.codes.UNAUTHORIZED or code == StatusCode.UNAUTHENTICATED:
        return StoreKeyRejected
    if isinstance(exc, InsufficientPermissionsError) or code == StatusCode.PERMISSION_DENIED:
        return StoreForbidden
    later = status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return kind_of(str(exc)) or (StoreUnavailable if later else None)


def kind_of(message: str) -> type[FootnoteError] | None:
    """What the text of an error says, None where it says nothing that we know."""
    text = message.lower()
    return next((kind for sign, kind in SAID.items() if sign in text), None)


def cure(node: Node) -> str:
    return (
        f"at {node}: check that it runs (docker compose up weaviate), that the host and port are right, "
        f"and that its gRPC port {node.grpc} is open too"
    )


def is_missing(exc: BaseException) -> bool:
    if isinstance(exc, UnexpectedStatusCodeError) and exc.status_code == httpx.codes.NOT_FOUND:
        return True
    text = str(exc).lower()
    return any(sign in text for sign in NO_SUCH_INDEX)


def grpc_code(exc: BaseException) -> StatusCode | None:
    """The status of the gRPC call behind an exception; the client keeps it only in the chain."""
    current: Any = exc
    while current is not None:
        if isinstance(current, AioRpcError):
            return current.code()
        current = current.__cause__ or current.__context__
    return None
