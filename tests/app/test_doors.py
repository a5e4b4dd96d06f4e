"""What the doors promise under load: room is looked for first, time is bounded, writes can be waited for, progress is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from app import watch as watching
from app.client import Client
from app.wiring import Service
from ingest import pipeline as pipelines
from ingest.disk import Disk
from ingest.job_rows import Job
from ingest.jobs import Beat
from ingest.parsers.isolation import ParserPool
from ingest.pipeline import Pipeline
from ingest.records import Entry
from retrieval.types import Chunk, EmbeddedChunk
from tests.app.serving import Inside, serving, slow_embedder, until
from tests.ingest import test_notices
from tests.services import running_service

receiver = test_notices.receiver
MIB = 2**20


@pytest.fixture
async def inside(tmp_path) -> AsyncIterator[Inside]:
    async with serving(tmp_path, max_queued_jobs=20) as found:
        yield found


def note(name: str, text: str = "Apples are red.") -> dict:
    return {"name": name, "text": text}


async def ingest(inside: Inside, *documents: dict, collection: str = "default", **query: object) -> httpx.Response:
    return await inside.http.post("/ingest", json={"documents": list(documents), "collection": collection}, params=query)


async def settle(service: Service, count: int = 1) -> None:
    """Run the next jobs to their end, as far as the catalog sees it."""
    for _ in range(count):
        job = await service.jobs.claim("test")
        assert job is not None
        [(generation, _)] = await service.generations.targets(job.collection)
        written = [Entry(generation, "t" * 64, 1, frozenset({"en"}))]
        place = {"version": job.version, "sha256": "1" * 64, "media_type": "text/plain", "status": "ready", "receipt": None}
        assert await service.jobs.settle.ingest(job, written, place) == "settled"


def kept(folder: Path) -> list[str]:
    """Files that uploads left behind."""
    return [path.name for kind in ("originals", "incoming") for path in (folder / kind).rglob("*") if path.is_file()]


# --- a bounded queue --------------------------------------------------------------------------------------------------------


async def test_a_full_queue_says_when_to_come_back_by_the_pace_of_what_ends(inside):
    assert (await ingest(inside, *(note(f"{n}") for n in range(20)))).status_code == 202
    refused = await ingest(inside, note("more"))
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "60"  # nothing has ended yet
    await settle(inside.service, 2)
    assert (await ingest(inside, note("a"), note("b"))).status_code == 202
    assert (await ingest(inside, note("more"))).headers["retry-after"] == "1"
    assert (await inside.http.post("/search", json={"question": "x"})).status_code == 200


async def test_an_upload_that_is_refused_is_not_read_first(inside, tmp_path):
    await ingest(inside, *(note(f"{n}") for n in range(20)))
    before = kept(tmp_path)
    answer = await answer_to_headers(inside, 400 * MIB)
    assert answer.startswith("HTTP/1.1 503")
    assert "retry-after: 60" in answer
    assert "connection: close" in answer  # else all of it would be read all the same
    assert kept(tmp_path) == before


async def answer_to_headers(inside: Inside, length: int) -> str:
    """What comes back before one byte of an upload was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", inside.http.base_url.port)
    head = (
        f"POST /ingest HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\ncontent-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer.decode().lower().replace("http", "HTTP")


async def test_the_command_line_waits_until_the_queue_has_room(inside, tmp_path):
    await ingest(inside, *(note(f"{n}") for n in range(20)))
    await settle(inside.service)
    await ingest(inside, note("last"))
    (tmp_path / "mine.txt").write_text("Figs are brown.")
    client = Client(inside.http)
    sending = asyncio.create_task(client.upload([("mine.txt", tmp_path / "mine.txt")], collection="default", metadata="{}"))
    await asyncio.sleep(0.2)
    assert not sending.done()
    await settle(inside.service, 5)
    [document] = await asyncio.wait_for(sending, 10)
    assert (document["name"], document["status"]) == ("mine.txt", "queued")
    assert await inside.service.catalog.is_pending(document["consistency_token"])


# --- the disk ---------------------------------------------------------------------------------------------------------------


async def test_a_disk_below_its_mark_takes_no_upload_and_answers_questions(tmp_path):
    async with serving(tmp_path, min_free_disk_mb=10**9) as inside:
        refused = await ingest(inside, note("a"))
        assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
        assert "FOOTNOTE_MIN_FREE_DISK_MB" in refused.json()["detail"]
        assert refused.headers["retry-after"]
        assert kept(tmp_path) == []
        assert (await inside.http.post("/query", json={"question": "x"})).json()["status"] == "abstained"


async def test_an_upload_that_would_go_below_the_mark_is_refused_by_its_length(tmp_path):
    free = psutil.disk_usage(str(tmp_path)).free // MIB
    async with serving(tmp_path, min_free_disk_mb=free // 2) as inside:
        assert (await answer_to_headers(inside, free * 3 // 4 * MIB)).startswith("HTTP/1.1 507")
        assert (await ingest(inside, note("a"))).status_code == 202


async def test_a_worker_with_a_full_disk_holds_ingests_back_and_still_deletes(inside, monkeypatch):
    monkeypatch.setattr(pipelines, "DISK_SECONDS", 0.01)
    service = inside.service
    full = Disk(service.disk.folder, min_free_bytes=2**60)
    parsers = ParserPool(workers=1)
    parts = {name: getattr(service, name) for name in ("catalog", "jobs", "files", "store", "generations", "cache")}
    pipeline = Pipeline(**parts, parsers=parsers, disk=full)
    [held, gone] = (await ingest(inside, note("held"), note("gone"))).json()["documents"]
    stages: list[str] = []
    await pipeline.run(await service.jobs.claim("w"), lambda stage, _done, _total: stages.append(stage))
    job = await service.jobs.job(held["job_id"])
    assert (job.state, job.stage, job.attempts) == ("queued", "waiting for disk", 0)
    assert stages == ["waiting for disk"]
    await inside.http.delete(f"/documents/{gone['id']}")
    deletion = await service.jobs.claim("w")
    assert deletion.kind == "delete"
    await pipeline.run(deletion, lambda *_: None)
    assert (await inside.http.get(f"/documents/{gone['id']}")).status_code == 404
    await parsers.close()


# --- quotas -----------------------------------------------------------------------------------------------------------------


async def test_a_quota_is_set_shown_kept_and_changed(inside, tmp_path):
    created = await inside.http.post("/collections", json={"name": "small", "max_documents": 2, "max_bytes": 1000})
    assert (created.json()["max_documents"], created.json()["max_bytes"]) == (2, 1000)
    answer = await ingest(inside, note("a"), note("b", "Pears."), note("c", "Figs."), collection="small")
    assert answer.status_code == 202
    assert [(each["status"], (each["error"] or {}).get("code")) for each in answer.json()["documents"]] == [
        ("queued", None),
        ("queued", None),
        ("failed", "quota_exceeded"),
    ]
    assert len(kept(tmp_path)) == 2
    refused = await ingest(inside, note("d", "Plums."), collection="small")
    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    assert [each["name"] for each in refused.json()["documents"]] == ["d"]
    assert len(kept(tmp_path)) == 2
    shown = (await inside.http.get("/collections/small")).json()
    assert (shown["used_documents"], shown["used_bytes"]) == (2, 21)
    changed = await inside.http.patch("/collections/small", json={"max_documents": 3})
    assert (changed.json()["max_documents"], changed.json()["max_bytes"]) == (3, 1000)
    assert (await ingest(inside, note("d", "Plums."), collection="small")).status_code == 202
    assert (await ingest(inside, note("d", "P" * 999), collection="small")).status_code == 403
    assert (await inside.http.patch("/collections/absent", json={})).status_code == 404
    assert (await inside.http.patch("/collections/small", json={"max_documents": -1})).status_code == 422


async def test_new_collections_have_the_quota_of_the_settings(tmp_path):
    async with serving(tmp_path, collection_max_documents=1, collection_max_mb=1) as inside:
        answer = await ingest(inside, note("a"), note("b"), collection="fresh")
        assert [each["status"] for each in answer.json()["documents"]] == ["queued", "failed"]
        [default, fresh] = (await inside.http.get("/collections")).json()["collections"]
        assert {(each["max_documents"], each["max_bytes"]) for each in (default, fresh)} == {(1, MIB)}


# --- read your writes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/query", "/search"])
async def test_a_question_waits_until_a_write_is_visible_or_says_not_yet(inside, path):
    token = (await ingest(inside, note("a"), note("b"))).json()["consistency_token"]
    body = {"question": "apples", "mode": "keyword", "consistent_with": token}
    early = await inside.http.post(path, json={**body, "wait_seconds": 0.1})
    assert (early.status_code, early.json()["code"]) == (409, "not_yet_visible")
    assert int(early.headers["retry-after"]) >= 1
    waiting = asyncio.create_task(inside.http.post(path, json=body))
    await settle(inside.service)
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await settle(inside.service)
    assert (await waiting).status_code == 200
    assert (await inside.http.post(path, json={**body, "wait_seconds": 0})).status_code == 200


async def test_a_token_is_opaque_and_short_and_anything_else_is_refused(inside):
    token = (await ingest(inside, note("a"))).json()["consistency_token"]
    assert len(token) < 40
    for wrong in ("", "x", token.upper(), token + "0"):
        response = await inside.http.post("/search", json={"question": "x", "consistent_with": wrong})
        assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/consistent_with")


# --- deadlines, and clients that leave --------------------------------------------------------------------------------------


async def indexed(service: Service) -> None:
    """One chunk in the live index, so that a question is embedded."""
    [(generation, _)] = await service.generations.targets("default")
    await service.store.create(generation.index)
    vector = np.array([1, 0, 0, 0], np.float32)
    chunk = EmbeddedChunk(Chunk("c", "d", "a.txt", 0, "Apples are red.", 0, 15, language="en"), vector, "appl red")
    await service.store.replace(generation.index, {"d": [chunk]})


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"timeout_seconds": 0.3}, {"timeout_seconds": 500}])
async def test_a_question_out_of_time_stops_its_embedder(tmp_path, body):
    limit = 500 if body.get("timeout_seconds") == 0.3 else 0.3
    async with (
        slow_embedder() as embedder,
        serving(tmp_path, embedder="openai:x", embedder_base_url=embedder.url, max_query_seconds=limit) as inside,
    ):
        await indexed(inside.service)
        began = time.monotonic()
        response = await inside.http.post("/query", json={"question": "slow apples", **body})
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - began < 5
        await asyncio.wait_for(embedder.hung_up.wait(), 3)
        assert (await inside.http.post("/search", json={"question": "apples"})).status_code == 200


@pytest.mark.parametrize(("path", "more"), [("/search", {}), ("/query", {}), ("/query", {"stream": True})])
async def test_a_client_that_leaves_stops_the_embedder(tmp_path, path, more):
    async with (
        slow_embedder() as embedder,
        serving(tmp_path, embedder="openai:x", embedder_base_url=embedder.url) as inside,
    ):
        await indexed(inside.service)
        asking = asyncio.create_task(inside.http.post(path, json={"question": "slow apples", **more}))
        await asyncio.wait_for(embedder.asked.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(embedder.hung_up.wait(), 3)
        assert inside.app.state.admission.queued == 0


def waits() -> list[str]:
    return [repr(task.get_coro()) for task in asyncio.all_tasks() if "coroutine object settled" in repr(task.get_coro())]


async def test_a_client_that_leaves_an_ingest_ends_its_wait_and_not_its_documents(inside):
    asking = asyncio.create_task(ingest(inside, note("a"), wait=600))
    await until(waits)
    asking.cancel()
    await until(lambda: not waits())
    [document] = (await inside.http.get("/documents")).json()["documents"]
    assert document["status"] == "queued"


async def test_the_wait_for_a_write_counts_and_ends_with_its_client(inside):
    token = (await ingest(inside, note("a"))).json()["consistency_token"]
    body = {"question": "x", "consistent_with": token, "wait_seconds": 60}
    late = await inside.http.post("/search", json={**body, "timeout_seconds": 0.2})
    assert late.json()["code"] == "deadline_exceeded"
    asking = asyncio.create_task(inside.http.post("/query", json=body))
    await until(lambda: any("begin" in repr(task.get_coro()) for task in asyncio.all_tasks()))
    asking.cancel()
    await until(lambda: not any("begin" in repr(task.get_coro()) for task in asyncio.all_tasks()))


# --- progress ---------------------------------------------------------------------------------------------------------------


async def listen(inside: Inside, job_id: str, heard: list[tuple[str, dict]], comments: list[str] | None = None) -> None:
    name = ""
    async with inside.http.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                heard.append((name, json.loads(line.removeprefix("data: "))))
            elif line.startswith(":") and comments is not None:
                comments.append(line)


async def claimed(inside: Inside, *names: str) -> list[Job]:
    await ingest(inside, *(note(name) for name in names))
    return [await inside.service.jobs.claim("w") for _ in names]


async def test_a_listener_hears_of_each_change_and_last_of_the_end(inside, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.02)
    [job] = await claimed(inside, "a")
    heard: list[tuple[str, dict]] = []
    listening = asyncio.create_task(listen(inside, job.id, heard))
    await until(lambda: heard)
    assert await inside.service.jobs.renew([Beat(job, stage="embedding", done=20, total=50, rate=10.0)]) == []
    await until(lambda: heard[-1][1]["done"] == 20)
    await inside.service.jobs.fail(job, {"code": "unreadable_document", "detail": "x", "retryable": False})
    await asyncio.wait_for(listening, 5)
    assert [name for name, _ in heard] == ["progress", "progress", "done"]
    progress, last = heard[1][1], heard[2][1]
    assert (progress["stage"], progress["total"], progress["rate"], progress["eta_seconds"]) == ("embedding", 50, 10.0, 3.0)
    assert (last["state"], last["error"]["code"]) == ("failed", "unreadable_document")
    listed = (await inside.http.get("/jobs")).json()["jobs"]
    assert listed == [last]


async def test_many_listeners_cost_one_look_and_none_costs_none(inside, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    jobs = await claimed(inside, "a", "b")
    heard: list[list[tuple[str, dict]]] = [[] for _ in range(40)]
    listening = [asyncio.create_task(listen(inside, jobs[n % 2].id, each)) for n, each in enumerate(heard)]
    await until(lambda: all(heard))

    def looks() -> int:
        return sum("Watch._look" in repr(task.get_coro()) for task in asyncio.all_tasks())

    assert looks() == 1
    for job in jobs:
        await inside.service.jobs.succeed(job)
    await asyncio.wait_for(asyncio.gather(*listening), 10)
    assert all(each[-1][0] == "done" for each in heard)
    await until(lambda: not looks())


async def test_a_quiet_job_sends_heartbeats_and_a_listener_that_leaves_is_forgotten(inside, monkeypatch):
    monkeypatch.setattr(watching, "HEARTBEAT_SECONDS", 0.02)
    [job] = await claimed(inside, "a")
    heard: list[tuple[str, dict]] = []
    comments: list[str] = []
    listening = asyncio.create_task(listen(inside, job.id, heard, comments))
    await until(lambda: len(comments) > 2)
    assert len(heard) == 1
    listening.cancel()
    await until(lambda: not inside.app.state.watch._listeners)


async def test_a_listener_that_leaves_before_it_heard_anything_spoils_nothing_for_others(inside, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.02)
    [job] = await claimed(inside, "a")
    await ingest(inside, note("b"))
    [left] = await inside.service.jobs.list_jobs(state="queued", limit=9)  # what one that waits will take is looked up
    watch = inside.app.state.watch
    leaving = asyncio.create_task(anext(watch.states(inside.service, left)))
    await asyncio.sleep(0)  # it has begun to ask the catalog
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    heard: list[tuple[str, dict]] = []
    listening = asyncio.create_task(listen(inside, job.id, heard))
    await until(lambda: heard)
    await inside.service.jobs.succeed(job)
    await asyncio.wait_for(listening, 5)
    assert heard[-1][0] == "done"


async def test_streams_end_with_the_job_that_is_forgotten_and_with_the_service(inside, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.02)
    assert (await inside.http.get("/jobs/absent/events")).status_code == 404
    [job] = await claimed(inside, "a")
    heard: list[tuple[str, dict]] = []
    listening = asyncio.create_task(listen(inside, job.id, heard))
    await until(lambda: heard)
    await inside.http.delete("/collections/default")
    await asyncio.wait_for(listening, 5)
    assert (heard[-1][0], heard[-1][1]["code"]) == ("error", "job_not_found")
    [job] = await claimed(inside, "b")
    listening = asyncio.create_task(listen(inside, job.id, heard))
    await until(lambda: len(heard) == 3)
    inside.app.state.watch.close()
    await asyncio.wait_for(listening, 5)


async def test_a_job_that_waits_has_an_estimate_once_others_have_ended(inside):
    await ingest(inside, *(note(f"{n}") for n in range(4)))
    assert {each["eta_seconds"] for each in (await inside.http.get("/jobs")).json()["jobs"]} == {None}
    await settle(inside.service, 2)
    last, before = (await inside.http.get("/jobs", params={"state": "queued"})).json()["jobs"]
    assert 0 < before["eta_seconds"] < last["eta_seconds"]


# --- the whole service ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_workers_keep_to_their_cores_and_tell_the_webhook(tmp_path, receiver):
    settings = {"webhook_url": receiver.url, "webhook_secret": test_notices.SECRET, "worker_cores": "1"}
    with running_service(tmp_path, **settings) as service, service.client() as http:
        answer = http.post("/ingest?wait=200", json={"documents": [note("a.txt")]})
        assert answer.status_code == 200
        body = {"question": "What is red?", "consistent_with": answer.json()["consistency_token"]}
        assert http.post("/query", json=body).json()["status"] == "answered"
        [worker] = [each for each in psutil.Process(service.process.pid).children() if "worker" in each.cmdline()]
        for process in (worker, *worker.children(recursive=True)):
            assert len(process.cpu_affinity()) == 1
            assert process.nice() >= min(19, psutil.Process().nice() + 5)
        deadline = time.monotonic() + 20
        while not receiver.got and time.monotonic() < deadline:
            time.sleep(0.05)
    [told] = test_notices.bodies(receiver)
    assert (told["type"], told["data"]["name"]) == ("document.ready", "a.txt")
