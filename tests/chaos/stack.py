"""A whole installation for chaos: a web process, workers, and the servers of one combination, each of which can be killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.brokers import Server, require, running_rabbitmq, running_redis
from tests.chaos.programs import EmbeddingServer, Program, footnote
from tests.services import WeaviateServer, free_ports, weaviate_binary, weaviate_server

WORKERS = 2
LEASE_SECONDS = 3
DISK_MB = 512


@dataclass(frozen=True)
class Combination:
    """Which engines carry an installation."""

    broker: str
    catalog: str
    store: str

    def __str__(self) -> str:
        return f"{self.broker}-{self.catalog}-{self.store}"


@dataclass
class Stack:
    """What runs; `disk` is where the data dir lies if it is a small file system of its own."""

    combination: Combination
    folder: Path
    web: Program
    workers: list[Program]
    embedder: EmbeddingServer
    url: str
    settings: dict[str, str]
    disk: Path | None
    broker: Server | None = None
    postgres: Server | None = None
    weaviate: WeaviateServer | None = None

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def worker(self, name: str) -> Program:
        program = footnote(name, ["worker"], self.folder, self.settings, lambda: program.said("worker_started"))
        return program


@contextmanager
def running_stack(combination: Combination, folder: Path, chance: random.Random, *, small_disk: bool) -> Iterator[Stack]:
    """All of it started, and stopped in reverse; with `small_disk` the data lie on a file system that can be filled."""
    with ExitStack() as stack:
        embedder = EmbeddingServer(chance)
        stack.callback(embedder.stop)
        disk = stack.enter_context(file_system(folder / "data")) if small_disk else None
        settings = {
            "data_dir": str(folder / "data"),
            "log_format": "json",
            "lease_seconds": str(LEASE_SECONDS),
            "job_max_attempts": "50",
            "embedder": "openai:bag-of-words",
            "embedder_base_url": embedder.url,
            "min_free_disk_mb": "1",
        }
        broker = postgres = weaviate = None
        if combination.broker != "local":
            broker = stack.enter_context(running_redis() if combination.broker == "redis" else running_rabbitmq())
            settings["broker_url"] = broker.url
        if combination.catalog == "postgres":
            postgres = stack.enter_context(running_postgres())
            settings["catalog_url"] = postgres.url
        if combination.store == "weaviate":
            binary = weaviate_binary() or pytest.skip("no Weaviate: put its binary on PATH as `weaviate`")
            weaviate = stack.enter_context(weaviate_server(binary))
            settings["store_url"] = weaviate.url
        [port] = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        web = footnote("web", ["serve", "--port", str(port), "--workers", "0"], folder, settings, lambda: answers(url))
        running = Stack(combination, folder, web, [], embedder, url, settings, disk, broker, postgres, weaviate)
        running.workers = [running.worker(f"worker-{number}") for number in range(WORKERS)]
        for program in (web, *running.workers):
            program.start()
            stack.callback(program.stop)
        yield running


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextmanager
def running_postgres() -> Iterator[Server]:
    """A PostgreSQL with an empty database; fsync stays off, as what is killed here is the process, not the machine.

    Not below pytest's folders: pytest closes them to other accounts whenever it starts anew, and PostgreSQL has another.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    require(found, "postgresql")
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="footnote-postgres-", ignore_cleanup_errors=True) as name:
        place, data = Path(name), f"{name}/data"
        options = ["-D", data, "-U", "footnote", "-A", "trust", "-E", "UTF8", "--no-sync"]
        initdb = as_server(place, [str(found[-1] / "initdb"), *options])
        subprocess.run(initdb, cwd=place, check=True, stdout=subprocess.DEVNULL)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]
        command = as_server(place, [str(found[-1] / "postgres"), "-D", data, "-p", str(port), "-k", name, *options])
        server = Server(place, f"postgresql+asyncpg://footnote@127.0.0.1:{port}/postgres", port, command, {})
        server.start()
        try:
            yield server
        finally:
            server.kill()


def as_server(place: Path, command: list[str]) -> list[str]:
    """PostgreSQL does not run as root: it gets the account that Debian made for it, and the folder."""
    if os.geteuid() != 0:
        return command
    shutil.chown(place, "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]


@contextmanager
def file_system(folder: Path) -> Iterator[Path | None]:
    """A file system that can be filled, where this account may mount one; else None, and an ordinary folder."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "footnote-chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(options, check=False, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
