"""Wake-ups through a server that Dramatiq speaks to: its messages carry a job's id, and its actors and workers are not used."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import dramatiq
import structlog

from retrieval.errors import BrokerUnavailable

PREFIX = "footnote."
"""Of the queues' names at the server."""
MOST_MESSAGES = 64
"""Sent for jobs that are queued together: as many workers as may be idle, not as many as there are jobs."""
MOST_UNSENT = 1000
PATIENCE_SECONDS = 1.0
"""A worker that has been full for so long lets go of its connections: they might hold a message that is for another."""
FRESH_SECONDS = 60.0
"""Of an older message every worker has found the job by itself, so that a long queue of them wakes nobody again and again."""
CLOSE_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 10.0
QUOTED = "in a password, / @ : ? # and % are written as %2F %40 %3A %3F %23 and %25"

log = structlog.get_logger(__name__)


class ServerBroker:
    """One thread sends, and one for each queue listens while the worker has room for a job.

    `kind` is what the server is called, `idle_seconds` how long a consumer waits for a message, and `check` asks the server
    for a sign of life: it is called in the thread that sends, and raises whatever it likes.
    """

    def __init__(
        self, url: str, kind: str, server: dramatiq.Broker, *, idle_seconds: float, check: Callable[[], object]
    ) -> None:
        self.kind = kind
        self.address = _without_password(url)
        self._server = server
        self._idle_ms = int(idle_seconds * 1000)
        self._check = check
        self._outage = Outage(self.address)
        self._sender = ThreadPoolExecutor(1, "footnote-send")
        self._unsent = threading.BoundedSemaphore(MOST_UNSENT)
        self._listeners: list[threading.Thread] = []
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._hungry, self._closing = threading.Event(), threading.Event()

    def send(self, queue: str, job_ids: Sequence[str]) -> None:
        if not self._closing.is_set() and not self._outage.is_on("send") and self._unsent.acquire(blocking=False):
            self._sender.submit(self._send, queue, job_ids[:MOST_MESSAGES])

    def _send(self, queue: str, job_ids: Sequence[str]) -> None:
        try:
            if not self._outage.is_on("send"):  # what was sent before this may have found out
                for job_id in job_ids:
                    self._server.enqueue(dramatiq.Message(PREFIX + queue, "job", (job_id,), {}, {}))
                self._outage.ended("send")
        except Exception as exc:  # noqa: BLE001 - whatever a client library raises here means that its server is away
            self._outage.began("send", exc)
        finally:
            self._unsent.release()

    async def receive(self, queues: Sequence[str]) -> None:
        for queue in queues[len(self._listeners) :]:  # a worker has the same queues for all its life
            listener = threading.Thread(target=self._listen, args=(queue,), name=f"footnote-{queue}", daemon=True)
            self._listeners.append(listener)
            listener.start()
        self._hungry.set()
        try:
            await self._woken.wait()
        finally:
            self._hungry.clear()
        self._woken.clear()

    def _listen(self, queue: str) -> None:
        while not self._closing.is_set():
            if not self._hungry.wait(PATIENCE_SECONDS):
                continue
            try:
                self._follow(queue)
            except Exception as exc:  # noqa: BLE001 - as when sending; and a thread that ended would never listen again
                self._closing.wait(self._outage.began(queue, exc))

    def _follow(self, queue: str) -> None:
        """Take messages one at a time, for as long as the worker has room; whatever raises is an outage."""
        consumer = self._server.consume(PREFIX + queue, prefetch=1, timeout=self._idle_ms)
        try:
            for message in consumer:
                self._outage.ended(queue)
                if message is not None:
                    consumer.ack(message)
                    if time.time() - message.message_timestamp / 1000 < FRESH_SECONDS:
                        self._hungry.clear()
                        self._loop.call_soon_threadsafe(self._woken.set)
                if self._closing.is_set() or not self._hungry.wait(PATIENCE_SECONDS):
                    return
        finally:
            with contextlib.suppress(Exception):
                consumer.close()

    async def ping(self) -> str:
        try:
            await asyncio.wrap_future(self._sender.submit(self._check))
        except Exception as exc:
            raise BrokerUnavailable(
                f"{self.kind} at {self.address} does not answer ({_said(exc)}): start it, or look at FOOTNOTE_BROKER_URL; "
                "until then jobs are found by looking into the catalog, a little later"
            ) from exc
        return self.kind

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._hungry.set()
        self._sender.submit(self._server.close)  # by the thread whose connections these are
        await asyncio.to_thread(self._join, time.monotonic() + CLOSE_SECONDS)

    def _join(self, deadline: float) -> None:
        self._sender.shutdown()
        for listener in self._listeners:
            listener.join(max(0.0, deadline - time.monotonic()))


class Outage:
    """Says once that a server is away and once that it is back, whichever thread finds out, and spaces their tries."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def is_on(self, party: str) -> bool:
        """Whether this party should leave the server alone for now."""
        _, until = self._failures.get(party, (0, 0.0))
        return time.monotonic() < until

    def began(self, party: str, error: Exception) -> float:
        """Seconds until this party should try again: longer with each failure, shortened at random."""
        with self._lock:
            if not self._failures:
                log.warning("broker_unreachable", broker=self._address, error=_said(error))
            count, _ = self._failures.get(party, (0, 0.0))
            pause = min(LONGEST_PAUSE_SECONDS, 0.25 * 2.0**count) * random.uniform(0.5, 1.0)  # noqa: S311
            self._failures[party] = (count + 1, time.monotonic() + pause)
        return pause

    def ended(self, party: str) -> None:
        if party in self._failures:
            with self._lock:
                self._failures.pop(party, None)
                if not self._failures:
                    log.info("broker_back", broker=self._address)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.netloc or parts.path).rpartition('@')[2]}"
