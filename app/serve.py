"""The service's processes: a web server here, more of them and workers as children, which are started again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from app.settings import Settings
from ingest.records import QUEUES
from retrieval.errors import ConfigurationError, FootnoteError

if TYPE_CHECKING:
    import uvicorn

RESTART_SECONDS = 2.0
STOP_SECONDS = 5.0
"""What a child gets to close its connections, beyond the time in which it drains."""
HURRY_SECONDS = 2.0
"""What a worker gets to give its jobs back when it is told twice to stop."""
MOST_FILES = 65_536
PR_SET_PDEATHSIG = 1
M_ARENA_MAX = -8
HEAPS = 2
SETTLED_SECONDS = 10.0
"""After so long a process has loaded what it needs."""
COLLECT_AT = (5_000, 10, 100)
"""New objects until the youngest are looked at, and how many such looks until the older ones are."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names the folder for what several processes count together; `app.metrics` reads it when it is imported."""

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, ready: Callable[[str], Any] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called with the base URL once the first request can be answered; what it
    returns, if it is awaitable, runs beside the service.
    """
    with _shared_metrics(settings.web_processes):
        _allow_many_connections()
        _keep_few_heaps()
        _collect_seldom()
        listener = _listen(settings)
        _read_ahead(settings)
        server, close, refusal = _web_server(settings)
        socket_file, parent = listener.fileno(), str(os.getpid())
        worker = Child(["worker", "--parent", parent])
        # With the host, which the command line may have named: whether keys are asked for hangs on it.
        web = Child(["serve", "--listener", str(socket_file), "--host", settings.host, "--parent", parent], [socket_file])
        children = Children([*[worker] * settings.workers, *[web] * (settings.web_processes - 1)])

        def stop() -> None:
            close()
            children.stop()

        keeping = asyncio.create_task(children.keep())
        with _signals(stop):
            serving = asyncio.create_task(_run(server, listener, refusal))
            watch = asyncio.create_task(_announce(server, serving, _url(settings, listener), ready))
            try:
                await serving
            finally:
                watch.cancel()
                await children.end(settings.drain_seconds + STOP_SECONDS)
                await keeping
                with contextlib.suppress(asyncio.CancelledError):
                    await watch


async def serve_beside(settings: Settings, *, listener: int, parent: int) -> None:
    """Be one more web process of the service that `parent` is, on its socket, and not longer than it."""
    _end_with(parent)
    _allow_many_connections()
    _keep_few_heaps()
    _collect_seldom()
    server, close, refusal = _web_server(settings)
    with _signals(close):
        await _run(server, socket.socket(fileno=listener), refusal)


async def _run(server: uvicorn.Server, listener: socket.socket, refusal: Callable[[], FootnoteError | None]) -> None:
    """Raises why it could not start."""
    with contextlib.suppress(SystemExit):  # uvicorn's, with 3 as the exit code, which says something else here
        await server.serve(sockets=[listener])
    if not (server.started or server.should_exit):
        raise refusal() or ConfigurationError("the service could not start; the lines above say why")


def _web_server(settings: Settings) -> tuple[uvicorn.Server, Callable[[], None], Callable[[], FootnoteError | None]]:
    """A server that nothing listens for yet, what ends it, at once if called twice, and why it did not start."""
    import uvicorn

    from app.main import create_app

    app = create_app(settings)
    drain = max(1, int(settings.drain_seconds))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=drain, server_header=False
    )
    server = uvicorn.Server(config)
    # uvicorn's own handling ends the process by the signal, before our children have stopped, and not with exit code 0.
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]

    def refusal() -> FootnoteError | None:
        return getattr(app.state, "refusal", None)

    logging.getLogger("uvicorn.error").addFilter(lambda _: refusal() is None)

    def close() -> None:
        app.state.watch.close()  # else each listener would hold up the stop
        server.force_exit, server.should_exit = server.should_exit, True

    return server, close, refusal


@contextmanager
def _shared_metrics(processes: int) -> Iterator[None]:
    """Where several processes answer, they count in files that each of them adds up: a scrape reaches any of them."""
    if processes == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="footnote-metrics-") as folder:
        os.environ[METRICS_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[METRICS_FOLDER]


async def work(settings: Settings, *, queues: Sequence[str] = QUEUES, parent: int | None = None) -> None:
    """Be a worker until SIGINT or SIGTERM, and not longer than the process `parent`.

    The first signal lets running jobs come to their end within `drain_seconds`; the second gives them back at once.
    """
    from app.wiring import open_service, open_worker

    if parent is not None:
        _give_way(settings.worker_cores)
        _end_with(parent)
    _collect_seldom()
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


def _keep_few_heaps() -> None:
    """glibc gives each thread a heap of its own, and keeps in all of them what was ever needed at once."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)


def _collect_seldom() -> None:
    """Leave what the start has made out of the search for cyclic garbage, and search what lives long seldom.

    `app.__main__` has turned the search off. Its usual pace took a quarter of the CPU of 2,000 answers that stream at once, in
    pauses of up to 1.8 s on a busy machine.
    """

    def settled() -> None:
        gc.collect()  # once: what is garbage now would stay for good
        gc.freeze()
        gc.set_threshold(*COLLECT_AT)
        gc.enable()

    asyncio.get_running_loop().call_later(SETTLED_SECONDS, settled)


def _read_ahead(settings: Settings) -> None:
    """Begin with the model, much of which needs no interpreter: that has a second's work with importing our modules."""
    if settings.embedder.startswith("local:") and settings.embedder_engine != "torch":
        from retrieval.embedders.local import read_ahead

        threading.Thread(target=read_ahead, args=(settings.embedder,)).start()


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
        cure = (
            f"stop what listens there, or choose another port: --port {settings.port + 1} (make run PORT={settings.port + 1})"
        )
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


@dataclass(frozen=True, slots=True)
class Child:
    """A process to be kept running: its command line after `footnote`, and the open files that it inherits."""

    verb: Sequence[str]
    files: Sequence[int] = ()


class Children:
    """Processes of ours beside this one: started again when they die, and stopped with us, even if we are killed."""

    def __init__(self, wanted: Sequence[Child]) -> None:
        self._wanted = wanted
        self._children: list[subprocess.Popen[bytes] | None] = [None] * len(wanted)
        self._stopping = asyncio.Event()

    async def keep(self) -> None:
        """Have all of them running, until told to stop."""
        while not self._stopping.is_set():
            for slot, child in enumerate(self._children):
                if child is None:
                    self._children[slot] = _started(self._wanted[slot])
                elif child.poll() is not None:
                    log.warning("process_died", process=self._wanted[slot].verb[0], code=child.returncode)
                    _forget_counts(child.pid)
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


def _forget_counts(pid: int) -> None:
    from app.metrics import forget  # not at the top: it must find the folder

    forget(pid)


def _started(child: Child) -> subprocess.Popen[bytes] | None:
    """None where the machine has no room for another process now: it is tried again.

    In a session of its own: Ctrl-C reaches us alone, and we stop our children in order.
    """
    command = [sys.executable, "-m", "app", *child.verb]
    environment = {"MALLOC_ARENA_MAX": str(HEAPS), **os.environ}
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            command, start_new_session=True, stdin=subprocess.DEVNULL, env=environment, pass_fds=child.files
        )
    except OSError as exc:
        log.warning("process_not_started", process=child.verb[0], error=str(exc))
        return None


def _give_way(cores: int) -> None:
    """Let the web process go first, before us and all that we start."""
    os.nice(5)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where sessions are scheduled as groups, they know only this
            Path("/proc/self/autogroup").write_text("5")
        if cores:  # the last ones; how many threads our model and parsers have follows from it
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


def _end_with(parent: int) -> None:
    """Be told to stop when the parent ends, even if it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit  # it died before we asked to be told
