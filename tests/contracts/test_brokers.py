"""What every broker must do, with the real servers; and what the ones with a server do when it goes away."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pika
import pytest
import redis
import structlog.testing

from ingest.brokers import Broker, open_broker, server
from ingest.brokers.server import PATIENCE_SECONDS, Outage
from ingest.records import QUEUES
from retrieval.errors import BrokerUnavailable, ConfigurationError
from tests.brokers import running_rabbitmq, running_redis
from tests.services import free_ports

# pika leaves the sockets of a connection that failed to the garbage collector, which warns when it finds them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Open = Callable[[], Awaitable[Broker]]
SERVERS = {"redis": "FOOTNOTE_TEST_REDIS_URL", "amqp": "FOOTNOTE_TEST_AMQP_URL"}


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """So that it finds them here and not in a test of something else."""
    yield
    gc.collect()


def url_of(kind: str, folder: Path) -> str:
    if kind == "local":
        return f"local:{folder / 'wake'}"
    if SERVERS[kind] not in os.environ:
        if os.environ.get("CI"):
            pytest.fail(f"no server: CI must set {SERVERS[kind]}")
        pytest.skip(f"no server: set {SERVERS[kind]} to one")
    return os.environ[SERVERS[kind]]


@pytest.fixture(params=["local", "redis", "amqp"])
async def open_one(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> AsyncIterator[Open]:
    """Opens brokers on queues that no other test uses."""
    url = url_of(request.param, tmp_path)
    own_queues(monkeypatch)
    opened: list[Broker] = []

    async def one() -> Broker:
        opened.append(await open_broker(url))
        return opened[-1]

    yield one
    await asyncio.gather(*(broker.close() for broker in opened))
    forget_queues(url)


def own_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PREFIX", f"test-{time.time_ns()}.")


def forget_queues(url: str) -> None:
    """The servers are shared with other tests, and may be kept for long."""
    if url.startswith("redis:"):
        with redis.Redis.from_url(url) as client:
            for key in client.scan_iter(f"dramatiq:*{server.PREFIX}*"):
                client.delete(key)
    elif url.startswith("amqp:"):
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            for queue in QUEUES:
                for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
                    connection.channel().queue_delete(server.PREFIX + name)


async def woken(broker: Broker, *queues: str, within: float = 10.0) -> bool:
    try:
        await asyncio.wait_for(broker.receive(queues or QUEUES), within)
    except TimeoutError:
        return False
    return True


async def test_who_waits_is_woken(open_one: Open):
    sender, receiver = await open_one(), await open_one()
    waiting = asyncio.create_task(woken(receiver))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    sender.send("ingest", ["job_1"])
    assert await waiting


async def test_what_is_announced_while_nobody_waits_is_kept(open_one: Open):
    sender, receiver = await open_one(), await open_one()
    sender.send("ingest", ["job_1"])
    assert await woken(receiver)
    sender.send("delete", ["job_2"])
    await asyncio.sleep(0.1)
    assert await woken(receiver)


async def test_only_the_queues_that_were_named_wake(open_one: Open):
    sender, receiver = await open_one(), await open_one()
    sender.send("ingest", ["job_1"])
    assert not await woken(receiver, "delete", "reindex", within=1.0)
    sender.send("reindex", ["job_2"])
    assert await woken(receiver, "delete", "reindex")


async def test_giving_up_waiting_loses_nothing(open_one: Open):
    sender, receiver = await open_one(), await open_one()
    for _ in range(5):
        assert not await woken(receiver, within=0.05)
    sender.send("ingest", ["job_1"])
    assert await woken(receiver)


async def test_one_that_is_full_leaves_announcements_to_another(open_one: Open):
    sender, full, other = await open_one(), await open_one(), await open_one()
    assert not await woken(full, "ingest", within=0.5)
    await asyncio.sleep(PATIENCE_SECONDS + 0.5)
    for _ in range(3):
        sender.send("ingest", ["job_1"])
        assert await woken(other, "ingest")


async def test_a_ping_names_it_and_closing_twice_is_fine(open_one: Open):
    broker = await open_one()
    assert (await broker.ping()).lower() in {"local", "redis", "rabbitmq"}
    broker.send("ingest", ["job_1"])
    await broker.close()
    await broker.close()
    broker.send("ingest", ["job_2"])  # too late, and no error


async def test_what_was_sent_last_is_delivered_though_the_sender_closes(open_one: Open):
    sender, receiver = await open_one(), await open_one()
    sender.send("maintenance", ["job_1"])
    await sender.close()
    assert await woken(receiver)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_a_server_that_is_away_fails_nobody_and_is_said_once(scheme: str):
    [port] = free_ports(1)
    broker = await open_broker(f"{scheme}://user:hidden@127.0.0.1:{port}")
    with structlog.testing.capture_logs() as said:
        for _ in range(5):
            broker.send("ingest", ["job_1"])
            assert not await woken(broker, within=0.2)
        with pytest.raises(BrokerUnavailable, match=f"{scheme}://127.0.0.1:{port} does not answer") as failure:
            await broker.ping()
        await broker.close()
    assert [entry["event"] for entry in said] == ["broker_unreachable"]
    assert "hidden" not in f"{failure.value} {said}"


@pytest.mark.parametrize("url", ["kafka://x", "local:", "redis://127.0.0.1:port", "amqp://127.0.0.1:port"])
async def test_a_wrong_url_is_refused(url: str):
    with pytest.raises(ConfigurationError, match=r"broker|FOOTNOTE_BROKER_URL"):
        await open_broker(url)


def test_tries_are_spaced_and_an_outage_of_several_threads_is_one():
    outage = Outage("redis://x")
    with structlog.testing.capture_logs() as said:
        pauses = [outage.began("send", OSError("gone")) for _ in range(9)]
        outage.began("ingest", OSError("gone"))
        assert outage.is_on("send")
        outage.ended("send")
        outage.ended("delete")
        outage.ended("ingest")
    assert pauses[0] <= 0.25 < pauses[4] <= 4 < pauses[-1] <= 10
    assert [entry["event"] for entry in said] == ["broker_unreachable", "broker_back"]


@pytest.mark.parametrize("running", [running_redis, running_rabbitmq])
async def test_after_a_kill_and_a_restart_it_delivers_again(running):
    with running() as started:
        sender, receiver = await open_broker(started.url), await open_broker(started.url)
        sender.send("ingest", ["job_1"])
        assert await woken(receiver)
        started.kill()
        sender.send("ingest", ["lost"])
        assert not await woken(receiver, within=0.5)
        started.start()
        for _ in range(60):  # the pauses between its tries grow
            sender.send("ingest", ["job_2"])
            if await woken(receiver, within=0.5):
                break
        else:
            pytest.fail("no message came through")
        assert await sender.ping()
        await sender.close()
        await receiver.close()


async def test_what_is_in_a_queue_but_no_message_of_ours_stops_no_listener(monkeypatch):
    url = url_of("redis", Path())
    own_queues(monkeypatch)
    broker = await open_broker(url)
    key = f"dramatiq:{server.PREFIX}ingest"
    with redis.Redis.from_url(url) as client:
        client.hset(f"{key}.msgs", "1", b"not json")
        client.rpush(key, "1")
    assert not await woken(broker, "ingest", within=0.5)
    broker.send("ingest", ["job_1"])
    assert await woken(broker, "ingest")
    await broker.close()
    forget_queues(url)


# Dramatiq leaves a connection to the garbage collector where a queue does not exist.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_queues_that_were_deleted_at_the_server_are_made_again(monkeypatch):
    url = url_of("amqp", Path())
    own_queues(monkeypatch)
    broker = await open_broker(url)
    broker.send("ingest", ["job_1"])
    assert await woken(broker, "ingest")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    with suppress(pika.exceptions.AMQPError):
        connection.channel().queue_delete(f"{server.PREFIX}ingest")
    connection.close()
    assert not await woken(broker, "ingest", within=0.5)
    for _ in range(30):
        broker.send("ingest", ["job_2"])
        if await woken(broker, "ingest", within=0.5):
            break
    else:
        pytest.fail("no message came through")
    await broker.close()
    forget_queues(url)
