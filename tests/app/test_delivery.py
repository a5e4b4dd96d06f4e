"""Jobs reach workers whatever becomes of the broker and of the workers: nothing lost, nothing doubled."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.app.test_durability import call_sign, wait_until_settled
from tests.app.test_serve import eventually
from tests.app.test_story import names, note, search
from tests.brokers import running_redis
from tests.contracts.test_brokers import url_of
from tests.services import Running, running_service

pytestmark = pytest.mark.timeout(400)


def upload(http, first: int, count: int, collection: str = "default") -> None:
    notes = [note(f"{i}.txt", f"Beacon number {i} has the call sign {call_sign(i)}.") for i in range(first, first + count)]
    for each in notes:  # one request each, so that messages flow all the while
        assert http.post("/ingest", json={"documents": [each], "collection": collection}).status_code == 202


def assert_whole(http, count: int) -> None:
    """Every document is there once, and is found by what only it says."""
    documents = wait_until_settled(http)
    assert sorted(d["name"] for d in documents) == sorted(f"{i}.txt" for i in range(count))
    assert {d["status"] for d in documents} == {"ready"}
    assert http.get("/collections/default").json()["chunks"] == sum(d["chunks"] for d in documents) == count
    for i in range(0, count, 5):
        assert names(search(http, "default", call_sign(i), mode="keyword")) == [f"{i}.txt"]


def log_events(service: Running) -> list[str]:
    return [line for line in service.log.read_text().splitlines() if "broker_" in line]


def test_a_broker_emptied_killed_restarted_and_swapped_for_the_other_loses_nothing(tmp_path):
    with (
        running_redis() as server,
        running_service(tmp_path, workers="2", broker_url=server.url) as service,
        service.client() as http,
    ):
        assert http.get("/readyz").json() == {
            "status": "ready",
            "checks": {"catalog": "ok", "store": "ok", "files": "ok", "broker": "ok"},
        }
        upload(http, 0, 10)
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        upload(http, 10, 10)
        server.kill()
        upload(http, 20, 10)
        away = http.get("/readyz")
        assert (away.status_code, away.json()["status"]) == (200, "degraded")
        assert "start it" in away.json()["checks"]["broker"]
        wait_until_settled(http)  # while it is away
        server.start()
        upload(http, 30, 5)
        eventually(lambda: http.get("/readyz").json()["status"] == "ready")
        assert_whole(http, 35)
        server.kill()
        upload(http, 35, 5)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=60) == 0
        assert len([line for line in log_events(service) if "unreachable" in line]) <= 6  # 3 processes, twice
    with running_service(tmp_path, broker_url=url_of("amqp", tmp_path)) as service, service.client() as http:
        upload(http, 40, 5)
        assert_whole(http, 45)
        assert "Traceback" not in service.log.read_text()


def job_rows(data: Path) -> list[tuple]:
    with sqlite3.connect(data / "catalog.sqlite") as catalog:
        return catalog.execute("SELECT state, attempts FROM jobs").fetchall()


def end(process: subprocess.Popen[bytes]) -> float:
    """Tells it to stop; gives how many seconds that took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    return time.monotonic() - began


def test_what_is_unfinished_is_given_back_and_a_second_signal_does_not_wait(tmp_path):
    long = "".join(f"Sentence number {i} tells of the {i}th day and of nothing else that happened.\n\n" for i in range(20_000))
    with running_service(tmp_path, drain_seconds="90") as service, service.client() as http:
        assert http.post("/ingest", json={"documents": [note("long.txt", long)]}).status_code == 202
        eventually(lambda: http.get("/jobs").json()["jobs"][0]["state"] == "running", 120)  # the worker has to start
        service.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert service.process.poll() is None  # it drains
        assert end(service.process) < 45  # and not 90
        assert job_rows(service.data_dir) == [("queued", 0)]
    with running_service(tmp_path, drain_seconds="0") as service, service.client() as http:
        upload(http, 0, 4, "small")
        eventually(lambda: http.get("/jobs").json()["jobs"][-1]["state"] == "running", 120)
        assert end(service.process) < 45
        rows = job_rows(service.data_dir)
        assert ("queued", 0) in rows
        assert {state for state, _ in rows} <= {"queued", "succeeded"}
        assert "Traceback" not in service.log.read_text()
