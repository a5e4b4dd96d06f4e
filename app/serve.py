"""The service's processes: the web server here, and workers as children, started again when they die, stopped with us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import structlog

from app.settings import Settings
from ingest.records import QUEUES
from retrieval.errors import ConfigurationError

RESTART_SECONDS = 2.0
STOP_SECONDS = 5.0
"""What a worker gets to close its connections, beyond the time in which it drains."""
HURRY_SECONDS = 2.0
"""What a worker gets to give its jobs back when it is told twice to stop."""
MOST_FILES = 65_536
PR_SET_PDEATHSIG = 1

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, ready: Callable[[str], Any] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called with the base URL once the first request can be answered; what it
    returns, if it is awaitable, runs beside the service.
    """
    import uvicorn

    from app.main import create_app

    _allow_many_connections()
    listener = _listen(settings)
    app = create_app(settings)
    drain = max(1, int(settings.drain_seconds))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=drain, server_header=False)
    server = uvicorn.Server(config)
    # uvicorn's own handling ends the process by the signal, before our workers have stopped, and not with exit code 0.
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    workers = Workers(settings.workers)

    def stop() -> None:
        app.state.watch.close()  # else each listener would hold up the stop
        server.force_exit, server.should_exit = server.should_exit, True
        workers.stop()

    keeping = asyncio.create_task(workers.keep())
    with _signals(stop):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        watch = asyncio.create_task(_announce(server, serving, _url(settings, listener), ready))
        try:
            await serving
        finally:
            watch.cancel()
            await workers.end(settings.drain_seconds + STOP_SECONDS)
            await keeping
            with contextlib.suppress(asyncio.CancelledError):
                await watch
    if not server.started:
        raise ConfigurationError("the service could not start; the lines above say why")


async def work(settings: Settings, *, queues: Sequence[str] = QUEUES, parent: int | None = None) -> None:
    """Be a worker until SIGINT or SIGTERM, and not longer than the process `parent`.

    The first signal lets running jobs come to their end within `drain_seconds`; the second gives them back at once.
    """
    from app.wiring import open_service, open_worker

    if parent is not None:
        _become_child(parent, settings.worker_cores)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def stopping() -> None:
        if stop.is_set():  # giving jobs back takes a moment; where it takes longer, their leases run out
            hurry.set()
            threading.Thread(target=_exit_after, args=(HURRY_SECONDS,), daemon=True).start()
        stop.set()

    starting = cast("asyncio.Task[None]", asyncio.current_task())  # until it works, nothing is left to finish
    with _signals(starting.cancel), contextlib.suppress(asyncio.CancelledError):
        async with open_service(settings) as service, open_worker(service, queues) as worker:
            with _signals(stopping):
                log.info("worker_started", name=worker.name, concurrency=worker.concurrency, queues=worker.turns.queues)
                await worker.run(stop, hurry)
    log.info("worker_stopped")


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def _allow_many_connections() -> None:
    """As many open files as the system lets us have: each answer that is streamed from a model holds two."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything else is started, so that a busy one costs a line and not a half-started service."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's delay (40 ms a response) off only where a socket says that it is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        cure = f"stop what listens there, or choose another port: --port {settings.port + 1}"
        raise ConfigurationError(f"cannot listen on {settings.host}:{settings.port} ({exc.strerror}): {cure}") from exc
    listener.listen(2048)
    return listener


def _url(settings: Settings, listener: socket.socket) -> str:
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - comparing, not binding
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


async def _announce(server: Any, serving: asyncio.Task[None], url: str, ready: Callable[[str], Any] | None) -> None:
    while not server.started:
        if serving.done():
            return
        await asyncio.sleep(0.02)
    log.info("ready", url=url, docs=f"{url}/docs")
    if ready is not None and asyncio.iscoroutine(result := ready(url)):
        await result


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    """Each SIGINT or SIGTERM calls `stop`."""
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


class Workers:
    """Worker processes beside us: started again when they die, and stopped with us, even if we are killed."""

    def __init__(self, count: int) -> None:
        self._children: list[subprocess.Popen[bytes] | None] = [None] * count
        self._stopping = asyncio.Event()

    async def keep(self) -> None:
        """Have all of them running, until told to stop."""
        while not self._stopping.is_set():
            for slot, child in enumerate(self._children):
                if child is None:
                    self._children[slot] = _started_worker()
                elif child.poll() is not None:
                    log.warning("worker_died", code=child.returncode)
                    self._children[slot] = None
            pause = RESTART_SECONDS if None in self._children else 0.5
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    def stop(self) -> None:
        """Tell them to come to an end; told again, they give back their jobs at once."""
        self._stopping.set()
        for child in self._alive():
            child.terminate()

    async def end(self, seconds: float) -> None:
        """Have them stopped, and wait for it; those that take longer are killed."""
        if not self._stopping.is_set():
            self.stop()
        await asyncio.to_thread(self._wait, time.monotonic() + seconds)

    def _wait(self, deadline: float) -> None:
        for child in self._alive():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [child for child in self._children if child is not None and child.poll() is None]


def _started_worker() -> subprocess.Popen[bytes] | None:
    """None where the machine has no room for another process now: it is tried again."""
    try:
        return _start_worker()
    except OSError as exc:
        log.warning("worker_not_started", error=str(exc))
        return None


def _start_worker() -> subprocess.Popen[bytes]:
    """A worker beside us.

    In a session of its own: Ctrl-C reaches us alone, and we stop our workers in order.
    """
    command = [sys.executable, "-m", "app", "worker", "--parent", str(os.getpid())]
    # glibc gives each thread a heap of its own, and keeps in all of them what large batches took.
    environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, env=environment)  # noqa: S603 - our own program


def _become_child(parent: int, cores: int) -> None:
    """Give way to the web process, with all that we start, and end with it even if it is killed."""
    os.nice(5)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where sessions are scheduled as groups, they know only this
            Path("/proc/self/autogroup").write_text("5")
        if cores:  # the last ones; how many threads our model and parsers have follows from it
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit  # it died before we asked to be told
