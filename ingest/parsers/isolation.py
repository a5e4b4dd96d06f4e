"""Parsing in processes that may hang, eat memory or crash without harm to the service."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from ingest.blobs.folder import disk_errors
from ingest.parsers import DEFAULTS, Bookmark, Options, Parsed, Part, finish, parse_portion
from ingest.parsers.sandbox import enter, give_back_memory, has_network, limit_memory, resident_bytes
from retrieval.errors import Overloaded, ParserKilled, ParseTimeout, UnreadableDocument

T = TypeVar("T")

_TASKS_PER_PROCESS = 1000
"""After so many documents a process is replaced (0.1 s), so that what parsers leak is bounded."""
_MAX_GROWTH = 256 * 1024 * 1024
"""And earlier when it keeps so many bytes more than it had at first."""
_KILLED = {-signal.SIGKILL, -signal.SIGTERM, signal.SIGTERM, 255}
"""Exit codes of a process that was killed from outside: Pebble's ends with the number of SIGTERM, and 255 is said of one whose
fork server was killed."""
_LOOK_SECONDS = 1.0
_STUCK_SECONDS = 30.0
"""After so long in which tasks waited and none ran, a pool is taken for broken; processes start in two."""
_PATIENCE_SECONDS = 0.2
_CLOSED = "The service is stopping; try again when it is back."


class _Tasks(int):
    """A number of tasks that is used up early in a process that has grown too large.

    After each task Pebble asks, in the process that did it, whether this is more than were done; if not, it ends the process
    in peace and starts another.
    """

    idle_bytes = 0

    def __gt__(self, done: int) -> bool:
        return super().__gt__(done) and resident_bytes() - self.idle_bytes < _MAX_GROWTH


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
        return ProcessPool(
            max_workers=self._workers, max_tasks=_Tasks(_TASKS_PER_PROCESS), initializer=_start_worker, context=context
        )

    async def warm(self) -> None:
        """Start the processes, so that the first document does not wait for them (1 to 2 s)."""
        await self._run(_ready)

    async def has_network(self) -> bool:
        """Whether a process of the pool could reach the network."""
        return await self._run(has_network)

    async def parse(self, path: Path, name: str, media_type: str, parts: Path | None = None) -> Parsed:
        """Parse the file at `path`. Cancelling kills the parse. Raises as `portions` does, and `EmptyDocument`."""
        return finish([portion async for portion in self.portions(path, name, media_type, parts)], name)

    async def portions(self, path: Path, name: str, media_type: str, parts: Path | None = None) -> AsyncGenerator[Parsed]:
        """Parse the file at `path` portion by portion, each within the time limit, and one ahead of the caller.

        The bytes of the files within it are left in the folder `parts` as files named 0, 1, 2 … in the order of
        `Parsed.parts`, which come without them and with the first portion; where no folder is named, they are dropped.

        Raises `ParseTimeout`, `ParseMemoryExceeded`, and what `ingest.parsers.parse_portion` raises; `UnreadableDocument`
        also when the file crashes its parser, and `ParserKilled` when somebody else ended that.
        """
        coming: asyncio.Task[Parsed] | None = asyncio.create_task(self._portion(path, name, media_type, None, parts))
        try:
            while coming is not None:
                portion = await coming
                rest = portion.rest
                coming = asyncio.create_task(self._portion(path, name, media_type, rest, parts)) if rest else None
                yield portion
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _portion(self, path: Path, name: str, media_type: str, bookmark: Bookmark | None, parts: Path | None) -> Parsed:
        where = f"{name} (from page {bookmark.done + 1:,})" if bookmark else name
        try:
            return await self._run(_parse_file, path, name, media_type, self._options, bookmark, self._memory, parts)
        except FutureTimeoutError as error:
            raise ParseTimeout(
                f"{where} could not be read within {self._timeout:g} s. Split it, or save it in a simpler format."
            ) from error
        except (ProcessExpired, BrokenProcessPool) as error:
            code = error.exitcode if isinstance(error, ProcessExpired) else None
            if code is None or code in _KILLED:
                raise ParserKilled(
                    f"the process that read {where} was killed from outside, as a machine does that runs out of memory: "
                    "it is tried again; if it happens again, give the worker more memory"
                ) from error
            raise UnreadableDocument(
                f"{where} made its parser crash (exit code {code}). "
                "It is damaged, or needs too much memory: open and save it again."
            ) from error

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        for again in (True, False):
            try:
                # Scheduling starts the fork server the first time, and that blocks until the parsers are loaded.
                pool, future = await asyncio.to_thread(self._schedule, function, arguments)
                return await self._outcome(pool, future)
            except BrokenProcessPool:  # all processes were killed from outside while this waited for its turn
                if not again:
                    raise
        raise AssertionError("unreachable")

    async def _outcome(self, pool: ProcessPool, future: Future[T]) -> T:
        """What a task comes to. Raises `BrokenProcessPool` also where Pebble would let it wait: a pool whose processes all died
        forgets the tasks that it had not handed out, and one that was killed while it took a task leaves a lock that is never
        released.
        """
        waiting = asyncio.wrap_future(future)
        stood = 0.0
        try:
            while not (await asyncio.wait({waiting}, timeout=_LOOK_SECONDS))[0]:
                stood = 0.0 if any(each.running() for each in tuple(self._running)) else stood + _LOOK_SECONDS
                if stood >= _STUCK_SECONDS or not pool.active:
                    await asyncio.to_thread(self._drop, pool)
                    raise BrokenProcessPool
            return waiting.result()
        finally:
            waiting.cancel()
            self._running.discard(future)

    def _schedule(self, function: Callable[..., T], arguments: tuple[object, ...]) -> tuple[ProcessPool, Future[T]]:
        with self._opening, _spared_from_ctrl_c():
            if self._closed:
                raise Overloaded(_CLOSED)
            if self._pool is None:
                self._pool = self._open()
            pool = self._pool
            try:
                future: Future[T] = pool.schedule(function, args=arguments, timeout=self._timeout)
            except RuntimeError as error:  # its processes were killed from outside, or could not be started: begin again
                self._pool = None
                self._end_beside(pool)
                raise BrokenProcessPool from error
            self._running.add(future)
            future.add_done_callback(self._running.discard)
            return pool, future

    def _drop(self, pool: ProcessPool) -> None:
        """The next task gets a new pool."""
        with self._opening:
            if self._pool is pool:
                self._pool = None
                self._end_beside(pool)

    def _end_beside(self, pool: ProcessPool) -> None:
        """On a thread of its own, as what is broken may take minutes to end."""
        threading.Thread(target=self._end, args=(pool,), name="parsers end", daemon=True).start()

    async def close(self) -> None:
        """Kill running parses and end all processes; idempotent. Who waits for a parse gets `Overloaded`: it may be retried."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._closed = True
        if not self._opening.acquire(
            timeout=_PATIENCE_SECONDS
        ):  # the fork server still loads the parsers, which nobody needs now
            _kill_fork_server()
            self._opening.acquire()
        pool, self._pool = self._pool, None
        self._opening.release()
        if pool is not None:
            self._end(pool)
        for future in tuple(self._running):  # a stopped pool leaves its futures pending for ever
            with contextlib.suppress(InvalidStateError):
                future.set_exception(Overloaded(_CLOSED))

    @staticmethod
    def _end(pool: ProcessPool) -> None:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


@contextlib.contextmanager
def _spared_from_ctrl_c() -> Iterator[None]:
    """What is started meanwhile never sees a terminal's Ctrl-C, which is its parent's business, also while it loads modules."""
    resource_tracker.ensure_running()  # which the fork server would start: that lets signals in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_fork_server() -> None:
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # noqa: SLF001 - there is no public way to it
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ready() -> None:
    return None


def _parse_file(
    path: Path,
    name: str,
    media_type: str,
    options: Options,
    bookmark: Bookmark | None,
    memory_bytes: int,
    parts: Path | None,
) -> Parsed:
    limit_memory(memory_bytes)
    try:
        parsed = parse_portion(path.read_bytes(), name, media_type, options, bookmark)
        return replace(parsed, parts=_unloaded(parsed.parts, parts))
    finally:
        give_back_memory()


def _unloaded(parts: Sequence[Part], folder: Path | None) -> tuple[Part, ...]:
    """Parts without their bytes, which may be too many for the pipe between two processes."""
    if folder is not None:
        with disk_errors():
            for number, part in enumerate(parts):
                (folder / str(number)).write_bytes(part.data)
    return tuple(replace(part, data=b"") for part in parts)


def _start_worker() -> None:
    # A worker dies with the fork server, and that when nobody holds this any more: not when the worker itself does.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # noqa: SLF001
    enter()
    import_module("ingest.parsers.preload")  # done already where the fork server could
    _Tasks.idle_bytes = resident_bytes()
