"""Notices to a webhook: written in the transaction that settles a job, sent by whichever worker comes first, at least once.

Headers and signature are those of Standard Webhooks, so that a receiver can check them with a library for its language.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.database import Database, new_id
from ingest.schema import documents, notices
from retrieval.errors import FootnoteError

if TYPE_CHECKING:
    import httpx  # only a courier needs it, and this module is part of every start

IDLE_SECONDS = 1.0
AT_ONCE = 8
TIMEOUT_SECONDS = 15.0
LEASE_SECONDS = 60.0
"""A notice that was taken and neither delivered nor put back by then is sent again: its sender died."""
DELAYS_SECONDS = (5, 30, 120, 600, 1800, 3600, 7200, 18000, 36000, 36000)
"""Before each further try, each lengthened by up to a fifth at random; about 32 hours together."""
READ_BYTES = 1024
"""Of what the receiver answers, for the log."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    id: str
    body: str
    attempts: int


class Settled(Protocol):
    """A job, as far as a notice tells of it."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def collection(self) -> str: ...
    @property
    def document_id(self) -> str | None: ...
    @property
    def version(self) -> int: ...


async def write_notice(connection: AsyncConnection, job: Settled, error: Mapping[str, Any] | None, now: float) -> None:
    """Note what became of a job's document, as it stands in this transaction; a re-index is told of by its collection."""
    found = sa.select(documents.c.name, documents.c.status).where(documents.c.id == job.document_id)
    name, status = (await connection.execute(found)).one_or_none() or (None, None)
    status = "deleted" if job.kind == "delete" and error is None else status
    kind = f"document.{status}" if job.document_id else f"collection.{'reindex_failed' if error else 'reindexed'}"
    data = {
        "document_id": job.document_id,
        "name": name,
        "collection": job.collection,
        "status": status,
        "version": job.version if job.document_id else None,
        "error": dict(error) if error else None,
        "job_id": job.id,
    }
    stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = json.dumps({"type": kind, "timestamp": stamp, "data": data}, ensure_ascii=False)
    values = {"id": new_id("msg"), "body": body, "attempts": 0, "run_after": now, "created_at": now}
    await connection.execute(sa.insert(notices).values(**values))


async def backlog(database: Database) -> dict[str, int]:
    """How many notices wait to be sent, and how many were given up."""
    given_up = notices.c.run_after.is_(None)
    query = sa.select(given_up.label("given_up"), sa.func.count().label("count")).group_by(given_up)
    found = {bool(row["given_up"]): int(row["count"]) for row in await database.rows(query)}
    return {"waiting": found.get(False, 0), "given_up": found.get(True, 0)}


def signature(secret: str, notice_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 in base64; `secret` is `whsec_` and base64, or any other text as it is."""
    signed = f"{notice_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    prefix, _, encoded = secret.partition("whsec_")
    if prefix or not encoded:
        return secret.encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return secret.encode()


class Courier:
    """Sends notices until it is cancelled; `clock` gives seconds since the epoch, as it does for the jobs."""

    def __init__(
        self,
        database: Database,
        *,
        url: str,
        secret: str,
        clock: Callable[[], float] = time,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.database = database
        self.url = url
        self.clock = clock
        self._secret = secret
        self._timeout = timeout_seconds

    async def run(self) -> None:
        import httpx

        async with httpx.AsyncClient(timeout=self._timeout, follow_redirects=False) as http:
            while True:
                try:
                    sent = await self.send_due(http)
                except FootnoteError as exc:
                    log.warning("notices_unreachable", code=exc.code, detail=exc.message)
                    sent = 0
                except Exception:  # one notice that cannot be sent must not keep the others
                    log.exception("courier_crashed")
                    sent = 0
                if not sent:
                    await asyncio.sleep(IDLE_SECONDS)

    async def send_due(self, http: httpx.AsyncClient) -> int:
        """Send some of those that are due, side by side; gives how many it tried."""
        taken = await self._take()
        await asyncio.gather(*(self._send(http, notice) for notice in taken))
        return len(taken)

    async def _take(self) -> list[Notice]:
        """Claim the ones that wait longest; a first look without the write lock, since there is mostly nothing."""
        due = sa.select(notices.c.id).where(notices.c.run_after <= self.clock()).order_by(notices.c.run_after).limit(AT_ONCE)
        if await self.database.first(due.limit(1)) is None:
            return []
        async with self.database.writing() as connection:
            if not self.database.is_sqlite:
                due = due.with_for_update(skip_locked=True)
            ids = list((await connection.execute(due)).scalars())
            values = {"run_after": self.clock() + LEASE_SECONDS, "attempts": notices.c.attempts + 1}
            taken = sa.update(notices).where(notices.c.id.in_(ids)).values(**values)
            rows = await connection.execute(taken.returning(notices.c.id, notices.c.body, notices.c.attempts))
            return [Notice(*row) for row in rows]

    async def _send(self, http: httpx.AsyncClient, notice: Notice) -> None:
        import httpx

        try:
            refusal, retry_after = await self._post(http, notice)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
            refusal, retry_after = f"{type(exc).__name__}: {exc}"[:200], 0.0
        async with self.database.writing() as connection:
            mine = sa.and_(notices.c.id == notice.id, notices.c.attempts == notice.attempts)
            if refusal is None:
                await connection.execute(sa.delete(notices).where(notices.c.id == notice.id))
                return
            again = self._next_try(notice.attempts, retry_after)
            await connection.execute(sa.update(notices).where(mine).values(run_after=again))
        if again is None:
            log.error("notice_given_up", notice_id=notice.id, attempts=notice.attempts, refusal=refusal, body=notice.body)
        else:
            log.warning("notice_not_delivered", notice_id=notice.id, attempts=notice.attempts, refusal=refusal)

    async def _post(self, http: httpx.AsyncClient, notice: Notice) -> tuple[str | None, float]:
        """Why it was not taken, or None; and the seconds that the receiver asks for. All of it within the time limit."""
        timestamp, body = int(self.clock()), notice.body.encode()
        headers = {
            "content-type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, notice.id, timestamp, body),
        }
        async with (
            asyncio.timeout(self._timeout),  # the client's own limit is for each read
            http.stream("POST", self.url, content=body, headers=headers) as response,
        ):
            if response.is_success:
                return None, 0.0
            said = b""
            async for piece in response.aiter_raw(READ_BYTES):
                said = piece
                break
            asked = response.headers.get("retry-after", "")
            shown = " ".join(said.decode("utf-8", "replace").split())[:200]
            return f"HTTP {response.status_code} {shown}".strip(), float(asked) if asked.isascii() and asked.isdigit() else 0.0

    def _next_try(self, attempts: int, retry_after: float) -> float | None:
        if attempts > len(DELAYS_SECONDS):
            return None
        wait = max(DELAYS_SECONDS[attempts - 1] * random.uniform(1.0, 1.2), min(retry_after, 86_400.0))  # noqa: S311
        return self.clock() + wait
