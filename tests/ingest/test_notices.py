"""Notices to a webhook: written with what they tell of, signed, sent until they are taken; to a real server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa

from ingest.job_rows import LeaseLost
from ingest.jobs import Jobs
from ingest.notices import DELAYS_SECONDS, LEASE_SECONDS, Courier, backlog, signature
from ingest.schema import notices
from tests.ingest import test_catalog
from tests.ingest.test_catalog import accept, entry, generation, lease_runs_out, source, upload
from tests.services import free_ports

db = test_catalog.db

KEY = b"24 bytes of a shared key"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass
class Receiver:
    """Answers with each of `answers` in turn, then with 204; keeps what came in."""

    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    endless: bool = False
    hold: threading.Event | None = None
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        self.got.append(({name.lower(): value for name, value in request.headers.items()}, body))
        if self.hold:
            self.hold.wait(20)
        status = self.answers.pop(0) if self.answers else 204
        request.send_response(status)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        try:
            while self.endless and status >= 300:
                request.wfile.write(b"no " * 10_000)
        except OSError:
            pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.answer(self)

        do_GET = do_POST  # noqa: N815 - the server's name for it

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        if receiver.hold:
            receiver.hold.set()
        server.shutdown()


@pytest.fixture
async def world(db, receiver) -> AsyncIterator[SimpleNamespace]:
    """A catalog whose jobs are told of, and the courier that tells."""
    jobs = Jobs(db.database, lease_seconds=30, max_attempts=3, clock=db.clock, steady=db.clock, notify=True)
    courier = Courier(db.database, url=receiver.url, secret=SECRET, clock=db.clock, timeout_seconds=1)
    async with httpx.AsyncClient(timeout=1, trust_env=False) as http:
        db.jobs = jobs
        yield SimpleNamespace(db=db, jobs=jobs, courier=courier, http=http, receiver=receiver, clock=db.clock)


async def settle(world, name: str = "a.txt", **changes) -> None:
    await accept(world.db, upload(name, **changes))
    gen = await generation(world.db)
    job = await world.jobs.claim("w")
    assert await world.jobs.settle.ingest(job, [entry(gen)], source(job.version)) == "settled"


async def send(world) -> int:
    return await world.courier.send_due(world.http)


async def waiting(world) -> list[sa.RowMapping]:
    async with world.db.database.reading() as connection:
        return list((await connection.execute(sa.select(notices).order_by(notices.c.id))).mappings())


def bodies(receiver: Receiver) -> list[dict]:
    return [json.loads(body) for _, body in receiver.got]


async def test_a_receiver_that_talks_nonsense_is_asked_again(world):
    await settle(world)
    world.receiver.answers, world.receiver.headers = [503], {"Retry-After": "\u00b2"}  # a digit, and no number
    assert await send(world) == 1
    [notice] = await waiting(world)
    assert notice["run_after"] > world.clock()


async def test_what_became_of_a_document_is_told_once_and_signed(world):
    await settle(world)
    assert await send(world) == 1
    assert await send(world) == 0
    [(headers, raw)] = world.receiver.got
    told = json.loads(raw)
    [document] = await world.db.catalog.list_documents(limit=9)
    assert told["type"] == "document.ready"
    assert told["timestamp"] == "2033-05-18T03:33:20.000Z"
    assert told["data"] == {
        "document_id": document.id,
        "name": "a.txt",
        "collection": "default",
        "status": "ready",
        "version": 1,
        "error": None,
        "job_id": document.job_id,
    }
    assert headers["content-type"] == "application/json"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_a_signature_is_that_of_the_example_in_the_standard():
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_that_is_no_base64_is_taken_as_it_is():
    assert signature("plain", "m", 1, b"{}") == signature("plain", "m", 1, b"{}") != signature("whsec_!", "m", 1, b"{}")


async def test_every_end_is_told_as_what_it_is(world):
    await settle(world, "ready.txt")
    [ready] = await world.db.catalog.list_documents(limit=9)
    await world.db.catalog.delete_document(ready.id)
    await world.jobs.settle.delete(await world.jobs.claim("w"))
    await accept(world.db, upload("broken.txt"))
    error = {"code": "unreadable_document", "detail": "broken", "retryable": False}
    await world.jobs.fail(await world.jobs.claim("w"), error)
    [stopped] = await accept(world.db, upload("stopped.txt"))
    await world.jobs.cancel(stopped.job_id)
    await accept(world.db, upload("poison.txt"))
    for _ in range(3):
        await world.jobs.claim("w")
        await lease_runs_out(world)
    assert await world.jobs.claim("w") is None
    gen = await generation(world.db, live=False, fingerprint="f2")
    await world.jobs.add_reindex("default", gen)
    await world.jobs.succeed(await world.jobs.claim("w"))
    while await send(world):
        pass
    told = {(each["type"], each["data"]["name"], (each["data"]["error"] or {}).get("code")) for each in bodies(world.receiver)}
    assert told == {
        ("document.ready", "ready.txt", None),
        ("document.deleted", "ready.txt", None),
        ("document.failed", "broken.txt", "unreadable_document"),
        ("document.failed", "stopped.txt", "cancelled"),
        ("document.failed", "poison.txt", "worker_lost"),
        ("collection.reindexed", None, None),
    }


async def test_what_a_newer_version_overtook_is_not_told_and_a_retry_is_not_an_end(world):
    await accept(world.db, upload("a"))
    gen = await generation(world.db)
    old = await world.jobs.claim("w")
    await accept(world.db, upload("a", "2"))
    assert await world.jobs.settle.ingest(old, [entry(gen)], source(1)) == "superseded"
    new = await world.jobs.claim("w")
    await world.jobs.fail(new, {"code": "store_unavailable", "detail": "x", "retryable": True})
    assert await waiting(world) == []


async def test_a_worker_that_lost_its_lease_tells_nothing(world):
    await accept(world.db, upload("a"))
    gen = await generation(world.db)
    slow = await world.jobs.claim("w")
    await lease_runs_out(world)
    quick = await world.jobs.claim("w2")
    with pytest.raises(LeaseLost):
        await world.jobs.settle.ingest(slow, [entry(gen)], source())
    assert await waiting(world) == []
    await world.jobs.settle.ingest(quick, [entry(gen)], source())
    assert len(await waiting(world)) == 1


async def test_a_refusal_is_tried_again_later_under_the_same_id(world):
    world.receiver.answers = [500, 302]
    world.receiver.headers = {"Location": world.receiver.url}
    await settle(world)
    assert await send(world) == 1
    assert await send(world) == 0  # not at once
    for delay in DELAYS_SECONDS[:2]:
        world.clock.now += 1.2 * delay
        assert await send(world) == 1
    assert len(world.receiver.got) == 3  # the redirection was not followed
    assert len({headers["webhook-id"] for headers, _ in world.receiver.got}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in world.receiver.got}) == 3
    assert await waiting(world) == []


async def test_a_receiver_may_say_when_to_come_back(world):
    world.receiver.answers, world.receiver.headers = [503], {"Retry-After": "900"}
    await settle(world)
    await send(world)
    [notice] = await waiting(world)
    assert notice["run_after"] - world.clock.now == 900


async def test_a_receiver_that_is_not_there_is_waited_for(world):
    [port] = free_ports(1)
    there, world.courier.url = world.courier.url, f"http://127.0.0.1:{port}/hook"
    await settle(world)
    await send(world)
    world.courier.url = there
    world.clock.now += 60
    assert await send(world) == 1
    assert [each["type"] for each in bodies(world.receiver)] == ["document.ready"]


async def test_a_slow_or_endless_answer_is_cut_off_and_delays_no_other(world):
    world.receiver.answers, world.receiver.endless = [500], True
    await settle(world, "endless.txt")
    assert await send(world) == 1
    world.receiver.hold = threading.Event()
    for name in ("b", "c", "d"):
        await settle(world, name)
    async with asyncio.timeout(3):  # each by itself would be cut off after a second
        assert await send(world) == 3
    assert len(await waiting(world)) == 4


async def test_after_the_last_try_it_is_given_up_and_kept(world):
    world.receiver.answers = [500] * 20
    await settle(world)
    for _ in range(len(DELAYS_SECONDS) + 5):
        await send(world)
        world.clock.now += 100_000
    assert len(world.receiver.got) == len(DELAYS_SECONDS) + 1
    [notice] = await waiting(world)
    assert notice["run_after"] is None
    await settle(world, "next.txt")
    assert await backlog(world.db.database) == {"waiting": 1, "given_up": 1}


async def test_a_notice_whose_sender_died_is_sent_by_another_and_not_before(world):
    await settle(world)
    taken = await world.courier._take()
    assert len(taken) == 1
    other = Courier(world.db.database, url=world.receiver.url, secret=SECRET, clock=world.clock)
    assert await other.send_due(world.http) == 0
    world.clock.now += LEASE_SECONDS + 1
    assert await other.send_due(world.http) == 1
    await world.courier._send(world.http, taken[0])  # it was only slow: told twice, under one id
    assert len({headers["webhook-id"] for headers, _ in world.receiver.got}) == 1
    assert await waiting(world) == []


async def test_couriers_side_by_side_send_each_notice_once(world):
    for number in range(20):
        await settle(world, f"{number}.txt")
    couriers = [Courier(world.db.database, url=world.receiver.url, secret=SECRET, clock=world.clock) for _ in range(3)]

    async def run(courier: Courier) -> None:
        while await courier.send_due(world.http):
            pass

    await asyncio.gather(*(run(courier) for courier in couriers))
    assert sorted(each["data"]["name"] for each in bodies(world.receiver)) == sorted(f"{n}.txt" for n in range(20))
    assert await waiting(world) == []
