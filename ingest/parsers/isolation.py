"""Parsing in processes that may hang, eat memory or crash without harm to the service."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from ingest.parsers import DEFAULTS, Options, Parsed, parse
from retrieval.errors import Overloaded, ParseTimeout, UnreadableDocument

T = TypeVar("T")

_TASKS_PER_PROCESS = 100
"""After so many documents a process is replaced (0.1 s), so that what parsers leak is bounded."""
_CLOSED = "The service is stopping; try again when it is back."
_PR_SET_PDEATHSIG = 1


class ParserPool:
    """A few warm processes that parse one document each at a time.

    `timeout_seconds` is wall time from the start of a parse; `memory_bytes` is what one document may take on top of
    what the process takes idle. Processes start with the first parse or `warm`.
    """

    def __init__(
        self, workers: int = 2, timeout_seconds: float = 60.0, memory_bytes: int = 1024**3, options: Options = DEFAULTS
    ) -> None:
        self._workers = workers
        self._timeout = timeout_seconds
        self._memory = memory_bytes
        self._options = options
        self._pool: ProcessPool | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._running: set[Future[Any]] = set()

    def _open(self) -> ProcessPool:
        # Forking the service would copy its threads' locks; the fork server is a small process that has the parsers loaded.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ingest.parsers.preload"])
        return ProcessPool(max_workers=self._workers, max_tasks=_TASKS_PER_PROCESS, initializer=_start_worker, context=context)

    async def warm(self) -> None:
        """Start the processes, so that the first document does not wait for them (1 to 2 s)."""
        await self._run(_ready)

    async def parse(self, path: Path, name: str, media_type: str) -> Parsed:
        """Parse the file at `path`. Cancelling kills the parse.

        Raises `ParseTimeout`, `ParseMemoryExceeded`, and what `ingest.parsers.parse` raises; `UnreadableDocument` also
        when the file crashes its parser.
        """
        try:
            return await self._run(_parse_file, str(path), name, media_type, self._options, self._memory)
        except FutureTimeoutError as error:
            raise ParseTimeout(
                f"{name} could not be read within {self._timeout:g} s. Split it, or save it in a simpler format."
            ) from error
        except ProcessExpired as error:
            raise UnreadableDocument(
                f"{name} made its parser crash (exit code {error.exitcode}). "
                "It is damaged, or needs too much memory: open and save it again."
            ) from error

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        # Scheduling starts the fork server the first time, and that blocks until the parsers are loaded.
        future = await asyncio.to_thread(self._schedule, function, arguments)
        try:
            return await asyncio.wrap_future(future)
        except BrokenProcessPool:  # all processes were killed from outside while this waited for its turn
            return await asyncio.wrap_future(await asyncio.to_thread(self._schedule, function, arguments))

    def _schedule(self, function: Callable[..., T], arguments: tuple[object, ...]) -> Future[T]:
        with self._opening:
            if self._closed:
                raise Overloaded(_CLOSED)
            if self._pool is not None and not self._pool.active:  # all its processes were killed from outside: begin again
                self._end(self._pool)
                self._pool = None
            if self._pool is None:
                self._pool = self._open()
            future: Future[T] = self._pool.schedule(function, args=arguments, timeout=self._timeout)
            self._running.add(future)
            future.add_done_callback(self._running.discard)
            return future

    async def close(self) -> None:
        """Kill running parses and end all processes; idempotent. Who waits for a parse gets `Overloaded`: it may be retried."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._opening:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            self._end(pool)
        for future in tuple(self._running):  # a stopped pool leaves its futures pending for ever
            with contextlib.suppress(InvalidStateError):
                future.set_exception(Overloaded(_CLOSED))

    @staticmethod
    def _end(pool: ProcessPool) -> None:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _ready() -> None:
    return None


def _parse_file(path: str, name: str, media_type: str, options: Options, memory_bytes: int) -> Parsed:
    _limit_memory(memory_bytes)
    try:
        return parse(Path(path).read_bytes(), name, media_type, options)
    finally:
        _give_back_memory()


def _start_worker() -> None:
    """In each new process: die with the parent, lead an own session, load the parsers."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()  # programs that a parser starts can be killed with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    import_module("ingest.parsers.preload")  # done already where the fork server could


def _limit_memory(extra: int) -> None:
    """Allow `extra` bytes on top of what the process has now; absolute limits fail as soon as a large library is loaded."""
    if sys.platform != "linux":  # other systems do not enforce it
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _give_back_memory() -> None:
    """glibc keeps what a large document took until it is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
