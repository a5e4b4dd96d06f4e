"""The connection to Weaviate: opened when first needed, again after it was lost, and on another node where there are several.

A client that was lost is closed only when nobody uses it any more: closing it under a running search would cancel that search.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import weaviate
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
from weaviate.exceptions import WeaviateBaseError, WeaviateStartUpError

from retrieval.errors import FootnoteError, StoreGrpcUnavailable, StoreRejected, StoreTooOld, StoreUnavailable
from retrieval.stores.weaviate_address import Address, Node
from retrieval.stores.weaviate_errors import CAUGHT, broke_off, is_missing, timed_out, translated

T = TypeVar("T")

OLDEST = (1, 33)
"""The first Weaviate with a `Not` filter."""

CONNECT_SECONDS = 5.0
"""For one node: after one that swallows everything, another can answer within SEARCH_SECONDS."""
SEARCH_SECONDS = 10.0
WRITE_SECONDS = 60.0
WATCH_SECONDS = 0.5
"""How often it is asked whether a node that lets us wait still listens."""
LISTEN_SECONDS = 2.0
REFUSED_SECONDS = 1.0
"""For so long the last failure to connect answers for all, so that callers do not queue for the next one."""
MESSAGE_BYTES = 10_000_000
"""Largest message of a server that does not say how large one may be."""

_UPGRADE = f"Footnote needs {OLDEST[0]}.{OLDEST[1]} or newer; upgrade it, one minor version after the other"


@dataclass(slots=True)
class Session:
    """An open client with those who use it now."""

    node: Node
    client: weaviate.WeaviateAsyncClient
    message_bytes: int
    """Largest message that the server takes."""
    users: int = 0
    lost: bool = False


class Connection:
    """One client at a time, to the first node that answers; it stays with that node as long as it answers."""

    def __init__(self, address: Address, api_key: str | None) -> None:
        self.address = address
        self._api_key = api_key
        self._session: Session | None = None
        self._next = 0
        """The node to try first."""
        self._refused: tuple[float, FootnoteError] | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @asynccontextmanager
    async def session(self, seconds: float = SEARCH_SECONDS) -> AsyncIterator[Session]:
        """An open session for work that may take `seconds`; what the client raises becomes ours, or `IndexMissing`."""
        session: Session | None = None
        try:
            async with asyncio.timeout(seconds) as deadline:
                session = await self._open()
                session.users += 1
                watch = asyncio.create_task(_end_when_gone(session.node, deadline))
                try:
                    yield session
                finally:
                    watch.cancel()
        except CAUGHT as exc:
            if session is not None and await self._has_left(exc, session.node):
                self._lose(session)
            raise translated(exc, session.node if session else self.address.nodes[self._next]) from exc
        finally:
            if session is not None:
                session.users -= 1
                await self._close_unused(session)

    async def asked_again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives, asked once more if its connection was lost meanwhile: a new one may work at once."""
        before = self._session
        try:
            return await ask()
        except StoreUnavailable:
            if before is None or self._session is before:
                raise
        return await ask()

    async def _has_left(self, exc: Exception, node: Node) -> bool:
        """Whether the node broke off, or lets us wait while there is another or nobody listens."""
        if timed_out(exc):
            return len(self.address.nodes) > 1 or not await listens(node.grpc_host, node.grpc)
        return broke_off(exc)

    async def require_ready(self) -> None:
        """Raises `StoreUnavailable` while the server starts: it answers then already, and knows no class."""
        async with self.session() as session:
            if not await session.client.is_ready():
                raise StoreUnavailable(f"Weaviate at {session.node} is starting; retry in a moment")

    async def silent(self) -> list[str]:
        """What is wrong with each of several nodes."""
        found = []
        for node in self.address.nodes if len(self.address.nodes) > 1 else ():
            try:
                await (await self.connect(node)).client.close()
            except FootnoteError as exc:
                found.append(exc.message)
        return found

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            session = self._session
            self._lose(session)
            await self._close_unused(session)

    async def _open(self) -> Session:
        async with self._opening:
            if self._closed:
                raise StoreUnavailable("this store was closed; open it again")
            if self._session is None:
                if self._refused is not None and time.monotonic() - self._refused[0] < REFUSED_SECONDS:
                    raise type(self._refused[1])(self._refused[1].message)
                self._session = await self._connect_to_any()
            return self._session

    async def _connect_to_any(self) -> Session:
        """The first node that answers, beginning after the one that was lost."""
        nodes = self.address.nodes
        errors: list[FootnoteError] = []
        for _ in nodes:
            position = self._next
            self._next = (position + 1) % len(nodes)  # also if the caller gives up first: the next one begins behind it
            try:
                session = await self.connect(nodes[position])
            except FootnoteError as exc:
                errors.append(exc)
            else:
                self._next, self._refused = position, None
                return session
        self._refused = time.monotonic(), _worst(errors)
        raise self._refused[1]

    async def connect(self, node: Node) -> Session:
        """A session with this node, after a look at its version and its gRPC port."""
        client = weaviate.use_async_with_custom(
            http_host=node.host,
            http_port=node.http,
            http_secure=node.secure,
            grpc_host=node.grpc_host,
            grpc_port=node.grpc,
            grpc_secure=node.secure,
            auth_credentials=Auth.api_key(self._api_key) if self._api_key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=CONNECT_SECONDS, query=SEARCH_SECONDS, insert=WRITE_SECONDS)
            ),
            skip_init_checks=True,  # they ask a package registry for the newest client
        )
        opened = False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                session = Session(node, client, await _looked_at(client, node))
            opened = True
        except CAUGHT as exc:
            ours = translated(exc, node)
            raise ours if isinstance(ours, FootnoteError) else StoreRejected(f"what answers at {node} is no Weaviate") from exc
        finally:
            if not opened:
                await client.close()
        return session

    def _lose(self, session: Session) -> None:
        session.lost = True
        if self._session is session:
            self._session = None
            self._next = (self._next + 1) % len(self.address.nodes)

    async def _close_unused(self, session: Session) -> None:
        if session.lost and not session.users:
            with suppress(*CAUGHT):
                await session.client.close()


async def listens(host: str, port: int) -> bool:
    """Whether a connection to the port is accepted."""
    try:
        async with asyncio.timeout(LISTEN_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _end_when_gone(node: Node, deadline: asyncio.Timeout) -> None:
    """The client goes on asking an unreachable server for a minute: end that as soon as nobody listens there."""
    gone = False
    while not gone:
        await asyncio.sleep(WATCH_SECONDS)
        gone = not await listens(node.grpc_host, node.grpc)
    deadline.reschedule(asyncio.get_running_loop().time())


async def _looked_at(client: weaviate.WeaviateAsyncClient, node: Node) -> int:
    """Connect, and find here and not in the first search a server that is too old, or a gRPC port that does not answer.

    Gives the size of the largest message that it takes.
    """
    try:
        await client.connect()
    except WeaviateStartUpError as exc:
        if "not supported" in str(exc):  # by the client, long before us
            raise StoreTooOld(f"Weaviate at {node} is too old: {_UPGRADE} ({exc})") from exc
        raise
    meta = await client.get_meta()
    version = str(meta["version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise StoreTooOld(f"Weaviate at {node} is {version}: {_UPGRADE}")
    if not await client.is_ready():
        raise StoreUnavailable(f"Weaviate at {node} is starting; retry in a moment")
    if not await _speaks_grpc(client, node):
        raise StoreGrpcUnavailable(
            f"Weaviate at {node} answers by HTTP, and its gRPC port {node.grpc} does not: open that port to us "
            "(publish 50051, let the proxy pass gRPC), or name the right one in FOOTNOTE_STORE_URL: ?grpc=PORT"
        )
    return int(meta.get("grpcMaxMessageSize", MESSAGE_BYTES))


async def _speaks_grpc(client: weaviate.WeaviateAsyncClient, node: Node) -> bool:
    if not await listens(node.grpc_host, node.grpc):
        return False
    try:
        async with asyncio.timeout(CONNECT_SECONDS / 2):
            await client.collections.use("FootnoteProbe").query.fetch_objects(limit=1)
    except TimeoutError:  # the client's own patience with what is no gRPC is longer
        return False
    except WeaviateBaseError as exc:
        if not is_missing(exc):
            raise
    return True


def _worst(errors: list[FootnoteError]) -> FootnoteError:
    """The one error that speaks for all nodes: a refusal, which waiting does not mend, before silence."""
    refusal = next((error for error in errors if not isinstance(error, StoreUnavailable)), None)
    if refusal is not None or len(errors) == 1:
        return refusal or errors[0]
    return StoreUnavailable(f"none of {len(errors)} Weaviate nodes answers: " + "; ".join(error.message for error in errors))
