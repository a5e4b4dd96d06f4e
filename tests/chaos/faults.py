"""What goes wrong, as context managers: the fault is there while the block runs, and mended at its end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.brokers import Server
from tests.chaos.programs import Program
from tests.chaos.stack import LEASE_SECONDS, Stack
from tests.services import WeaviateServer

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

Fault = Callable[[Stack, random.Random], AbstractContextManager[None]]


def restarted(*programs: Program | Server | WeaviateServer | None) -> Iterator[None]:
    for program in programs:
        if program is None:
            pytest.skip("this combination has no such server")
        program.kill()
    yield
    for program in programs:
        if program is not None:
            program.start()


@contextmanager
def a_worker_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(chance.choice(stack.workers))


@contextmanager
def all_workers_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(*stack.workers)


@contextmanager
def web_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(stack.web)


@contextmanager
def broker_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(stack.broker)


@contextmanager
def catalog_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(stack.postgres)


@contextmanager
def store_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    yield from restarted(stack.weaviate)


@contextmanager
def parsers_killed(stack: Stack, chance: random.Random) -> Iterator[None]:
    """Every process below a worker, several times."""
    for _ in range(5):
        for child in chance.choice(stack.workers).children():
            child.kill()
        time.sleep(0.3)
    yield


@contextmanager
def broker_emptied(stack: Stack, chance: random.Random) -> Iterator[None]:
    if stack.combination.broker != "redis":
        pytest.skip("FLUSHALL is a command of Redis")
    import redis

    client = redis.Redis.from_url(stack.settings["broker_url"])
    for _ in range(5):
        client.flushall()
        time.sleep(0.2)
    yield


@contextmanager
def a_worker_frozen(stack: Stack, chance: random.Random) -> Iterator[None]:
    """For longer than its lease: it wakes up believing that its job is still its own."""
    worker = chance.choice(stack.workers)
    worker.freeze()
    time.sleep(LEASE_SECONDS * 1.5)
    worker.thaw()
    yield


@contextmanager
def store_slow(stack: Stack, chance: random.Random) -> Iterator[None]:
    """Weaviate answers in fits and starts."""
    server = stack.weaviate
    if server is None or server.process is None:
        pytest.skip("this combination has no such server")
    ended = threading.Event()

    def hold() -> None:
        while not ended.is_set():
            os.kill(server.process.pid, signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(server.process.pid, signal.SIGCONT)
            time.sleep(0.2)

    holding = threading.Thread(target=hold)
    holding.start()
    yield
    ended.set()
    holding.join()


@contextmanager
def embedder_refusing(stack: Stack, chance: random.Random) -> Iterator[None]:
    stack.embedder.refusing = 0.6
    yield
    stack.embedder.refusing = 0.0


@contextmanager
def disk_full(stack: Stack, chance: random.Random) -> Iterator[None]:
    if stack.disk is None:
        pytest.skip("this account may not mount a small file system")
    ballast = stack.disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**20))
                file.flush()
        except OSError:
            pass
    yield
    ballast.unlink()


@contextmanager
def clock_jumping(stack: Stack, chance: random.Random) -> Iterator[None]:
    """One more worker, whose clock jumps an hour while it works."""
    if FAKETIME is None:
        pytest.skip("no libfaketime: install faketime")
    clock = stack.folder / "clock"
    clock.write_text("+0")
    odd = stack.worker(
        "odd-clock",
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    odd.start()
    time.sleep(2)
    clock.write_text(chance.choice(["+1h", "-1h"]))
    time.sleep(2)
    yield
    odd.kill()


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        a_worker_killed,
        all_workers_killed,
        web_killed,
        parsers_killed,
        a_worker_frozen,
        broker_killed,
        broker_emptied,
        catalog_killed,
        store_killed,
        store_slow,
        embedder_refusing,
        disk_full,
        clock_jumping,
    )
}
