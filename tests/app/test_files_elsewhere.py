"""A door without workers and a worker with another data dir, as on two machines: they share catalog, store and bucket."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, nullcontext

import pytest

from app.doctor import Finding, examine
from app.settings import Settings, load_settings
from tests.app.test_parts import packed
from tests.services import free_ports, running_service, running_worker

TEXT = "The vault opens at nine.\n" * 4
GATE = """
import asyncio, sys

async def pass_on(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

async def connect(reader, writer):
    behind = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pass_on(reader, behind[1]), pass_on(behind[0], writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(connect, "127.0.0.1", int(sys.argv[1])) as server:
        print("open", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""
"""Stands before the bucket, so that it can be away and come back with all that is in it."""


class Machines:
    """What a door and a worker share, and the way to their bucket."""

    def __init__(self, storage, folder) -> None:
        self.storage = storage
        self.bucket = storage.bucket()
        [self.port] = free_ports(1)
        self.settings = {
            "files_url": storage.url(self.bucket, f"http://127.0.0.1:{self.port}"),
            "files_credentials": "key:secret",
            "catalog_url": f"sqlite+aiosqlite:///{folder / 'catalog.sqlite'}",
            "store_url": f"lance:{folder / 'lance'}",
            "job_max_attempts": "20",
        }
        self.open()

    def open(self) -> None:
        command = [sys.executable, "-c", GATE, str(self.port), self.storage.endpoint.rpartition(":")[2]]
        self.gate = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.gate.stdout.readline() == b"open\n"

    def close(self) -> None:
        self.gate.kill()
        self.gate.wait()
        self.gate.stdout.close()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.close()
        try:
            yield
        finally:
            self.open()


@pytest.fixture(scope="module")
def machines(storage, tmp_path_factory):
    machines = Machines(storage, tmp_path_factory.mktemp("shared"))
    yield machines
    machines.close()


@pytest.fixture(scope="module")
def http(machines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    with (
        running_service(folder / "door", workers="0", **machines.settings) as service,
        running_worker(folder / "worker", **machines.settings) as machines.log,
        service.client() as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(http) -> dict:
    return ingested(http, "hours.txt", TEXT.encode())


def ingested(http, name: str, data: bytes) -> dict:
    document = http.post("/ingest?wait=120", files={"files": (name, data)}).json()["documents"][0]
    assert document["status"] == "ready"
    return document


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_one_machine_took_in_another_reads(http, machines, document):
    answer = http.post("/query", json={"question": "When does the vault open?"}).json()
    assert answer["answer"].startswith("The vault opens at nine [1].")
    assert answer["citations"][0]["verified"]
    assert http.get(f"/documents/{document['id']}/original").text == TEXT
    assert "The vault opens at nine." in http.get(f"/documents/{document['id']}/text").text
    assert {key.split("/")[1] for key in machines.storage.keys(machines.bucket)} == {"originals", "texts"}
    assert http.get("/readyz").json()["checks"]["files"] == "ok"


def test_a_deletion_removes_from_the_bucket_a_document_and_what_came_out_of_it(http, machines, document):
    before = set(machines.storage.keys(machines.bucket))
    archive = ingested(http, "box.zip", packed({f"{i}.txt": f"Beacon {i} is lit." for i in range(20)}))
    parts = http.get("/documents", params={"parent": archive["id"]}).json()["documents"]
    assert {part["status"] for part in parts} == {"ready"}
    assert http.get(f"/documents/{parts[0]['id']}/original").text.startswith("Beacon")
    assert len(machines.storage.keys(machines.bucket)) > len(before) + 20
    http.delete(f"/documents/{archive['id']}")
    until(lambda: set(machines.storage.keys(machines.bucket)) == before)


def test_while_the_bucket_is_away_the_door_says_so_and_the_worker_tries_again(http, machines, document):
    with machines.away():
        for refused in (
            http.post("/ingest", files={"files": ("new.txt", b"new")}),
            http.get(f"/documents/{document['id']}/original"),
            http.get(f"/documents/{document['id']}/text"),
        ):
            assert (refused.status_code, refused.json()["code"]) == (503, "files_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        ready = http.get("/readyz")
        assert ready.status_code == 503
        assert "does not answer" in ready.json()["checks"]["files"]
        assert http.post("/query", json={"question": "When does the vault open?"}).json()["status"] == "answered"
        job = http.post("/collections/default/reindex", json={"force": True}).json()["job_id"]
        until(lambda: '"files_unavailable"' in machines.log.read_text())
    until(lambda: http.get(f"/jobs/{job}").json()["state"] == "succeeded")
    assert http.get("/readyz").status_code == 200


async def test_the_doctor_knows_a_bucket_that_lacks_what_the_catalog_knows(machines, document, tmp_path):
    settings = load_settings({}, data_dir=tmp_path, **machines.settings).settings
    assert (await files_finding(settings)).state == "ok"
    empty = machines.storage.bucket()
    moved = settings.model_copy(update={"files_url": machines.storage.url(empty)})
    finding = await files_finding(moved)
    assert (finding.state, "copy the folders" in finding.detail) == ("problem", True)
    assert machines.storage.keys(empty) == []


async def files_finding(settings: Settings) -> Finding:
    async with aclosing(examine(settings)) as findings:
        async for finding in findings:
            if finding.check == "files":
                return finding
    pytest.fail("the doctor did not look at the files")


@pytest.fixture(scope="module", params=["folder", "bucket"])
def original(request, serve):
    """A client, and the path of an original that lies in a folder or in a bucket."""
    with nullcontext(request.getfixturevalue("http")) if request.param == "bucket" else serve().client() as http:
        yield http, f"/documents/{ingested(http, 'ranges.txt', TEXT.encode())['id']}/original"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=5-9", 5, 10), ("bytes=90-", 90, 100), ("bytes=-7", 93, 100), ("bytes=50-999", 50, 100)],
)
def test_a_range_of_an_original(original, asked, start, end):
    http, path = original
    part = http.get(path, headers={"Range": asked})
    assert (part.status_code, part.text) == (206, TEXT[start:end])
    assert part.headers["content-range"] == f"bytes {start}-{end - 1}/100"
    assert part.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=9-5", "bytes=0-1,5-6", "lines=1-2", "bytes=x-y", "bytes=١-٢".encode()]
)
def test_what_is_not_one_range_is_the_whole(original, asked):
    http, path = original
    assert (http.get(path, headers={"Range": asked}).status_code, http.get(path).headers["accept-ranges"]) == (200, "bytes")


def test_a_range_counts_only_for_the_bytes_that_it_was_meant_for(original):
    http, path = original
    etag = http.get(path).headers["etag"]
    assert http.get(path, headers={"Range": "bytes=1-2", "If-Range": etag}).status_code == 206
    assert http.get(path, headers={"Range": "bytes=1-2", "If-Range": '"older"'}).text == TEXT


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=999-1000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused_with_the_size(original, asked):
    http, path = original
    refused = http.get(path, headers={"Range": asked})
    assert (refused.status_code, refused.json()["code"]) == (416, "range_not_satisfiable")
    assert refused.headers["content-range"] == "bytes */100"
