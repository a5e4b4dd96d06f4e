"""Redis and RabbitMQ servers of a test's own, which can be killed and started again on the same port with the same data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.services import free_ports

START_SECONDS = 90.0
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Not the wrapper on the PATH, which wants to be root or an account of its own."""


class Server:
    """One server process on loopback, with a folder that outlives it. `start` returns when its port answers."""

    def __init__(self, folder: Path, url: str, port: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.url = url
        self.log = folder / "server.log"
        self._folder, self._port, self._command, self._environment = folder, port, command, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self._folder), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut would: it writes nothing more and says goodbye to nobody."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        os.killpg(self._process.pid, how)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@contextmanager
def running_redis() -> Iterator[Server]:
    """A Redis that keeps what it was sent (append-only file)."""
    require(shutil.which("redis-server"), "redis-server")
    with tempfile.TemporaryDirectory(prefix="footnote-redis-") as folder:
        [port] = free_ports(1)
        keep = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, *keep]
        server = Server(Path(folder), f"redis://127.0.0.1:{port}/0", port, command, {})
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def running_rabbitmq() -> Iterator[Server]:
    """A RabbitMQ with a name server of its own, which lives on when it is killed, as the machine's would."""
    require(RABBITMQ.exists() and shutil.which("epmd"), "rabbitmq-server")
    with tempfile.TemporaryDirectory(prefix="footnote-rabbitmq-") as name, ExitStack() as stack:
        folder = Path(name)
        port, erlang, epmd = free_ports(3)
        names = {"ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        name_server = Server(folder, "", epmd, ["epmd"], names)
        name_server.start()
        stack.callback(name_server.kill)
        environment = {
            **names,
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(erlang),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        server = Server(folder, f"amqp://guest:guest@127.0.0.1:{port}/", port, [str(RABBITMQ)], environment)
        stack.callback(server.kill)
        server.start()
        yield server


def require(found: object, program: str) -> None:
    if found:
        return
    if os.environ.get("CI"):
        pytest.fail(f"no {program}: CI must install it")
    pytest.skip(f"no {program}: install it (Debian: apt install {program})")
