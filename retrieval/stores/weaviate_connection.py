"""One long-lived connection to Weaviate, its deadlines, and its exceptions made ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import weaviate
from grpc import StatusCode  # type: ignore[import-untyped]  # grpcio ships no types
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
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

from retrieval.errors import ConfigurationError, FootnoteError, StoreRejected, StoreUnavailable

OLDEST = (1, 33)
"""The first Weaviate with a `Not` filter."""

CONNECT_SECONDS = 5.0
SEARCH_SECONDS = 10.0
WRITE_SECONDS = 120.0

UNREACHABLE = (
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateGRPCUnavailableError,
    WeaviateRetryError,
    WeaviateStartUpError,
)
NO_SUCH_INDEX = ("tenant not found", "could not find class", "class not found")
NO_KEY = (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)


class IndexMissing(Exception):
    """The class or the tenant of an index does not exist: to a reader no error, for such an index reads as empty."""


class Connection:
    """A client that is opened when first needed, and again after it was lost."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.hostname is None:
            raise ConfigurationError(f"{url!r} names no host; write weaviate://host:8080?grpc=50051")
        self.secure = parts.scheme == "weaviates"
        default = 443 if self.secure else 8080
        try:
            self.port = parts.port or default
            self.grpc_port = int(parse_qs(parts.query).get("grpc", [str(443 if self.secure else 50051)])[0])
        except ValueError as exc:
            raise ConfigurationError(f"{url!r} has a port that is not a number; write weaviate://host:8080?grpc=50051") from exc
        self.host = parts.hostname
        self.name = f"{parts.scheme}://{self.host}:{self.port}?grpc={self.grpc_port}"
        self._api_key = api_key
        self._client: weaviate.WeaviateAsyncClient | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @asynccontextmanager
    async def client(self, seconds: float = SEARCH_SECONDS) -> AsyncIterator[weaviate.WeaviateAsyncClient]:
        """The client, for work that may take `seconds`; what it raises becomes ours, or `IndexMissing`.

        The deadline is ours, for the client itself retries an unreachable server for a minute.
        """
        try:
            async with asyncio.timeout(seconds):
                yield await self._open()
        except (WeaviateBaseError, AioRpcError, TimeoutError) as exc:
            ours = self._translated(exc)
            if isinstance(ours, StoreUnavailable) and not isinstance(exc, WeaviateTimeoutError):
                await self._forget()
            raise ours from exc

    async def close(self) -> None:
        self._closed = True
        await self._forget()

    async def _open(self) -> weaviate.WeaviateAsyncClient:
        async with self._opening:
            if self._closed:
                raise StoreUnavailable("this store was closed; open it again")
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> weaviate.WeaviateAsyncClient:
        client = weaviate.use_async_with_custom(
            http_host=self.host,
            http_port=self.port,
            http_secure=self.secure,
            grpc_host=self.host,
            grpc_port=self.grpc_port,
            grpc_secure=self.secure,
            auth_credentials=Auth.api_key(self._api_key) if self._api_key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=CONNECT_SECONDS, query=SEARCH_SECONDS, insert=WRITE_SECONDS)
            ),
            skip_init_checks=True,  # they ask a package registry for the newest client
        )
        opened = False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect()
                await self._check(client)
            opened = True
        finally:
            if not opened:
                await client.close()
        return client

    async def _check(self, client: weaviate.WeaviateAsyncClient) -> None:
        """A server that is too old, or whose gRPC port does not answer, shows itself here and not in the first search."""
        version = str((await client.get_meta())["version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise StoreRejected(f"Weaviate at {self.name} is {version}; Footnote needs {OLDEST[0]}.{OLDEST[1]} or newer")
        try:
            await client.collections.use("FootnoteProbe").query.fetch_objects(limit=1)
        except WeaviateBaseError as exc:
            if not is_missing(exc):
                raise

    async def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _translated(self, exc: Exception) -> FootnoteError | IndexMissing:
        if is_missing(exc):
            return IndexMissing(str(exc))
        status = exc.status_code if isinstance(exc, UnexpectedStatusCodeError) else 0
        code = grpc_code(exc)
        denied = (
            isinstance(exc, AuthenticationFailedError | InsufficientPermissionsError) or status in {401, 403} or code in NO_KEY
        )
        if denied:
            return StoreRejected(
                f"Weaviate at {self.name} does not accept the API key; set the key that the server knows ({exc})"
            )
        if isinstance(exc, WeaviateTimeoutError | TimeoutError) or code == StatusCode.DEADLINE_EXCEEDED:
            return StoreUnavailable(f"Weaviate did not answer in time {self._cure()}")
        if isinstance(exc, UNREACHABLE) or code == StatusCode.UNAVAILABLE or status == 429 or status >= 500:
            return StoreUnavailable(f"cannot reach Weaviate {self._cure()} ({exc})")
        return StoreRejected(f"Weaviate at {self.name} refused the request: {exc}")

    def _cure(self) -> str:
        return (
            f"at {self.name}: check that it runs (docker compose up weaviate), that the host and port are right, "
            f"and that its gRPC port {self.grpc_port} is open too"
        )


def is_missing(exc: Exception) -> bool:
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
