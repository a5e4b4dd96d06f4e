"""The service's processes: the web server here, and workers as children, started again when they die, stopped with us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import structlog

from app.settings import Settings
from retrieval.errors import ConfigurationError

RESTART_SECONDS = 2.0
STOP_SECONDS = 25.0
PR_SET_PDEATHSIG = 1

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, ready: Callable[[str], Any] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called with the base URL once the first request can be answered; what it
    returns, if it is awaitable, runs beside the service.
    """
    import uvicorn

    from app.main import create_app

    listener = _listen(settings)
    app = create_app(settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10, server_header=False)
    server = uvicorn.Server(config)

    def stop(signum: int, frame: None) -> None:
        app.state.watch.close()  # else each listener would hold up the stop
        server.handle_exit(signum, frame)

    # uvicorn's own handling ends the process by the signal, before our workers have stopped, and not with exit code 0.
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    with _workers(settings.workers), _signals(stop):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        watch = asyncio.create_task(_announce(server, serving, _url(settings, listener), ready))
        try:
            await serving
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
    if not server.started:
        raise ConfigurationError("the service could not start; the lines above say why")


async def work(settings: Settings, *, parent: int | None = None) -> None:
    """Be a worker until SIGINT or SIGTERM, and not longer than the process `parent`; a second signal stops at once."""
    from app.wiring import open_service, open_worker

    if parent is not None:
        _become_child(parent, settings.worker_cores)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, lambda: os._exit(1) if stop.is_set() else stop.set())
    async with open_service(settings) as service, open_worker(service) as worker:
        log.info("worker_started", name=worker.name, concurrency=worker.concurrency)
        await worker.run(stop)
    log.info("worker_stopped")


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
def _signals(stop: Callable[[int, None], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `stop`; once the server has stopped, another one ends us at once."""
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop, name, None)
    try:
        yield
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


@contextmanager
def _workers(count: int) -> Iterator[None]:
    """Keep `count` worker processes alive; a child dies with us even if we are killed."""
    children: dict[int, subprocess.Popen[bytes]] = {}
    stopping = False

    async def keep() -> None:
        while not stopping:
            for slot in range(count):
                child = children.get(slot)
                if child is None or child.poll() is not None:
                    if child is not None:
                        log.warning("worker_died", code=child.returncode)
                        await asyncio.sleep(RESTART_SECONDS)
                    children[slot] = _start_worker()
            await asyncio.sleep(0.5)

    keeping = asyncio.ensure_future(keep())
    try:
        yield
    finally:
        stopping = True
        keeping.cancel()
        for child in children.values():
            child.terminate()
        for child in children.values():
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _start_worker() -> subprocess.Popen[bytes]:
    """A worker beside us.

    In a session of its own: Ctrl-C reaches us alone, and we stop our workers in order.
    """
    command = [sys.executable, "-m", "app.cli", "worker", "--parent", str(os.getpid())]
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
