"""What goes wrong, as context managers: the fault is there while the block runs, and mended at its end."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.brokers import Server
from tests.chaos.programs import Program
from tests.chaos.stack import LEASE_SECONDS, Stack
from tests.services import WeaviateServer

Fault = Callable[[Stack, random.Random], AbstractContextManager[None]]


def killing(victims: Callable[[Stack, random.Random], Sequence[Program | Server | WeaviateServer | None]]) -> Fault:
    """Kills these, and starts them again."""

    @contextmanager
    def fault(stack: Stack, chance: random.Random) -> Iterator[None]:
        found = [each for each in victims(stack, chance) if each is not None]
        if not found:
            pytest.skip("this combination has no such server")
        for each in found:
            each.kill()
        try:
            yield
        finally:
            for each in found:
                each.start()

    return fault


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
    try:
        yield
    finally:
        ended.set()
        holding.join()


@contextmanager
def embedder_refusing(stack: Stack, chance: random.Random) -> Iterator[None]:
    stack.embedder.refusing = 0.6
    try:
        yield
    finally:
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
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def clock_jumps(stack: Stack, chance: random.Random) -> Iterator[None]:
    """The clock of one worker goes hours ahead, then behind, and right again."""
    worker, clock = chance.choice(stack.workers), stack.folder / "clock"
    usual = worker.command
    clock.write_text("0")
    worker.command = [sys.executable, str(Path(__file__).with_name("skewed.py")), str(clock), "worker"]
    worker.stop()
    worker.start()
    try:
        for hours in (chance.uniform(1, 48), -chance.uniform(1, 48)):
            clock.write_text(f"{3600 * hours:.0f}")
            time.sleep(LEASE_SECONDS * 1.5)
        yield
    finally:
        clock.write_text("0")
        worker.command = usual
        worker.stop()
        worker.start()


FAULTS: dict[str, Fault] = {
    "a_worker_killed": killing(lambda stack, chance: [chance.choice(stack.workers)]),
    "all_workers_killed": killing(lambda stack, _: stack.workers),
    "web_killed": killing(lambda stack, _: [stack.web]),
    "parsers_killed": parsers_killed,
    "a_worker_frozen": a_worker_frozen,
    "broker_killed": killing(lambda stack, _: [stack.broker]),
    "broker_emptied": broker_emptied,
    "catalog_killed": killing(lambda stack, _: [stack.postgres]),
    "store_killed": killing(lambda stack, _: [stack.weaviate]),
    "store_slow": store_slow,
    "embedder_refusing": embedder_refusing,
    "disk_full": disk_full,
    "clock_jumps": clock_jumps,
}
