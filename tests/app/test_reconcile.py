"""A store that was changed behind the product's back is found out, shown, and made whole: real stores, real documents."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

from app.client import open_client
from app.settings import Settings
from app.wiring import open_service, open_worker
from ingest.records import Generation
from retrieval.analysis import analyze
from retrieval.stores import weaviate
from retrieval.types import EmbeddedChunk
from tests.app.test_cli import footnote, lines
from tests.app.test_story import note
from tests.contracts.behind import BehindLance, BehindWeaviate
from tests.services import MODELS

pytestmark = pytest.mark.timeout(300)

SENTENCES = {
    "heron.txt": "The heron at lock seven eats eleven roach a day.",
    "kiln.txt": "Kiln four is fired with beech wood every second Thursday.",
    "organ.txt": "The organ's lowest pipe was tuned by Marta Quist in 1911.",
    "well.txt": "The well in the court is fed by a spring under the chapel.",
}


@pytest.fixture(params=["lance", "weaviate"])
async def place(request, tmp_path) -> AsyncIterator[SimpleNamespace]:
    """A service in this process without a worker, four documents in a collection of their own, and a way behind its back."""
    at = {} if request.param == "lance" else {"store_url": request.getfixturevalue("weaviate_url")}
    settings = Settings(data_dir=tmp_path, models_dir=MODELS, ocr_languages="eng", **at)
    behind = BehindLance(tmp_path / "lance") if request.param == "lance" else BehindWeaviate(at["store_url"])
    async with open_client(None, lambda: settings, begins=True) as client:
        service = client.http._transport.app.state.service
        collection = f"c-{secrets.token_hex(4)}"
        place = SimpleNamespace(client=client, service=service, collection=collection, behind=behind, kind=request.param)
        async with working(place):
            documents = [note(name, text, year=2024) for name, text in SENTENCES.items()]
            body = {"documents": documents, "collection": collection}
            await client.call("POST", "/ingest?wait=60", json=body)
        place.ids = {each["name"]: each["id"] for each in await listed(place)}
        assert await statuses(place) == dict.fromkeys(SENTENCES, "ready")
        yield place
        await service.store.drop((await live(place)).index)


@asynccontextmanager
async def working(place: SimpleNamespace) -> AsyncIterator[None]:
    async with open_worker(place.service) as worker:
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        yield
        stop.set()
        await running


async def listed(place: SimpleNamespace) -> list[dict]:
    return [each async for each in place.client.pages("/documents", "documents", collection=place.collection)]


async def statuses(place: SimpleNamespace) -> dict[str, str]:
    return {each["name"]: each["status"] for each in await listed(place)}


async def live(place: SimpleNamespace) -> Generation:
    return await place.service.catalog.live_generation(place.collection)


async def compared(place: SimpleNamespace) -> dict[str, str]:
    """A comparison of everything with its repairs begun: the kind of drift by document id."""
    generation, found = await live(place), {}
    async for comparison in place.service.reconciler.compare(generation):
        await place.service.reconciler.repair(generation, comparison)
        found.update({drift.document_id: drift.kind for drift in comparison.drifts})
    return found


async def repaired(place: SimpleNamespace) -> None:
    async with working(place):
        deadline = time.monotonic() + 60
        while await place.service.reconciler.ledger.repairing(await live(place)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def assert_whole(place: SimpleNamespace) -> None:
    """Every document is found by its own sentence, by words and by meaning, and nothing else is in the store."""
    for name, sentence in SENTENCES.items():
        for mode in ("keyword", "vector"):
            body = {"question": sentence, "collection": place.collection, "mode": mode, "filter": {"year": 2024}}
            hits = (await place.client.call("POST", "/search", json=body))["hits"]
            assert (hits[0]["document_name"], hits[0]["text"]) == (name, sentence)
    index = (await live(place)).index
    assert await place.service.store.count(index) == await place.service.store.size(index) == len(SENTENCES)
    assert await statuses(place) == dict.fromkeys(SENTENCES, "ready")
    assert await compared(place) == {}


async def test_damaged_documents_are_degraded_until_they_are_whole_again(place, monkeypatch):
    index, hurt = (await live(place)).index, ["heron.txt", "kiln.txt", "organ.txt"]
    await place.behind.remove_chunks(index, place.ids["heron.txt"])
    await place.behind.change(index, place.ids["kiln.txt"], "text")
    if place.kind == "lance":
        await place.behind.change(index, place.ids["organ.txt"], "year")
    else:
        await place.behind.remove_marker(index, place.ids["organ.txt"])
    await place.behind.copy(index, place.ids["well.txt"], "doc_nobody")
    assert await compared(place) == {**{place.ids[name]: ANY for name in hurt}, "doc_nobody": "orphaned"}
    assert await statuses(place) == {**dict.fromkeys(hurt, "degraded"), "well.txt": "ready"}
    shown = await place.client.call("GET", f"/documents/{place.ids['kiln.txt']}")
    assert (shown["error"]["code"], shown["error"]["retryable"]) == ("index_drift", True)
    assert await compared(place) == {}  # their repairs wait: they are not found a second time
    await repaired(place)
    monkeypatch.setattr(weaviate, "ABANDONED", 0.0)  # what was left invisible with the marker is old now
    assert await compared(place) == {}
    await assert_whole(place)
    assert [each["error"] for each in await listed(place)] == [None] * len(SENTENCES)


async def test_an_index_that_vanished_is_built_again(place):
    await place.behind.remove_index((await live(place)).index)
    assert set((await compared(place)).values()) == {"missing"}
    assert await statuses(place) == dict.fromkeys(SENTENCES, "degraded")
    await repaired(place)
    await assert_whole(place)


async def test_a_document_whose_original_is_gone_too_says_what_to_do_and_is_whole_after_it(place):
    hurt = place.ids["heron.txt"]
    shown = await place.client.call("GET", f"/documents/{hurt}")
    await place.behind.remove_chunks((await live(place)).index, hurt)
    await place.service.files.discard([shown["sha256"]])
    await compared(place)
    await repaired(place)
    shown = await place.client.call("GET", f"/documents/{hurt}")
    assert (shown["status"], shown["error"]["code"]) == ("degraded", "original_lost")
    assert "upload the document again" in shown["error"]["detail"]
    again = {"documents": [note("heron.txt", SENTENCES["heron.txt"], year=2024)], "collection": place.collection}
    async with working(place):
        [sent] = (await place.client.call("POST", "/ingest?wait=60", json=again))["documents"]
    assert (sent["id"], sent["duplicate"]) == (hurt, False)
    await assert_whole(place)


async def test_a_worker_that_starts_finds_and_mends_what_happened_while_nobody_looked(place):
    await place.service.reconciler.ledger.compared(await live(place))
    await place.behind.remove_chunks((await live(place)).index, place.ids["kiln.txt"])
    place.service.reconciler.every_seconds = 0.5
    async with working(place):
        deadline = time.monotonic() + 60
        while (await mended(place)) < 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    await assert_whole(place)


async def mended(place: SimpleNamespace) -> int:
    return {each.name: each.mended for each in await place.service.reconciler.ledger.passes()}["indexes"]


async def test_uploads_of_one_name_deletions_and_a_reindex_at_once_leave_what_was_accepted_last(place):
    service, call = place.service, place.client.call

    async def upload(name: str, word: str, key: str | None = None) -> list[dict]:
        body = {"documents": [note(name, f"The word for {name} is {word}.")], "collection": place.collection}
        return (await call("POST", "/ingest", json=body, headers={"Idempotency-Key": key} if key else {}))["documents"]

    async with working(place):
        await call("POST", f"/collections/{place.collection}/reindex", json={"force": True})
        for turn in "abcd":
            names = ("heron.txt", "heron.txt", "kiln.txt", "new.txt")
            [[_], [one], [_], [two]] = await asyncio.gather(*(upload(n, f"{turn}{i}") for i, n in enumerate(names)))
            assert await upload("well.txt", turn, key=f"{place.collection}{turn}") == await upload(
                "well.txt", turn, key=f"{place.collection}{turn}"
            )
            await asyncio.gather(*(call("DELETE", f"/documents/{each}") for each in (two["id"], place.ids["organ.txt"])))
            place.ids["organ.txt"] = (await upload("organ.txt", turn))[0]["id"]
            assert one["id"] == place.ids["heron.txt"]
        while sum((await service.jobs.depth()).values()):
            await asyncio.sleep(0.1)
    documents = {each["name"]: each for each in await listed(place)}
    assert set(documents) == {"heron.txt", "kiln.txt", "organ.txt", "well.txt"}
    for name, shown in documents.items():
        original = (await place.client.http.get(f"/documents/{shown['id']}/original")).text
        chunks = (await call("GET", f"/documents/{shown['id']}/chunks"))["chunks"]
        assert [chunk["text"] for chunk in chunks] == [original]
        assert (shown["status"], shown["live_version"]) == ("ready", shown["version"]), name
    assert {documents[name]["version"] for name in ("kiln.txt", "well.txt")} == {5}
    assert await place.service.store.count((await live(place)).index) == 4
    assert await compared(place) == {}


async def test_the_bytes_of_a_replaced_version_are_removed_and_no_others(place):
    files, call = place.service.files, place.client.call
    old = await place.service.catalog.document(place.ids["kiln.txt"])
    other = await place.service.catalog.document(place.ids["well.txt"])
    same = note("copy.txt", SENTENCES["kiln.txt"])  # another document with the bytes of the old version
    body = {"documents": [note("kiln.txt", "Kiln four is cold."), same], "collection": place.collection}
    async with working(place):
        await call("POST", "/ingest?wait=60", json=body)
        assert await files.has_originals([old.sha256, other.sha256])
        assert await files.has_texts([old.text_key, other.text_key])
        again = {"documents": [note("copy.txt", "A copy no more.")], "collection": place.collection}
        await call("POST", "/ingest?wait=60", json=again)
    assert not await files.has_originals([old.sha256])
    assert not await files.has_texts([old.text_key])
    assert await files.has_originals([other.sha256])


def test_the_doctor_reports_and_repairs_what_can_be_and_says_what_is_left(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "in"
    folder.mkdir()
    for name, sentence in SENTENCES.items():
        (folder / name).write_text(sentence)
    documents = {each["name"]: each for each in lines("ingest", folder, DATA_DIR=str(data))}
    asyncio.run(hurt(data, documents))
    said = footnote("doctor", expect=1, DATA_DIR=str(data))
    assert "collection default: in the store are 2 missing, 1 orphaned" in said
    [done] = lines("doctor", "--repair", expect=3, DATA_DIR=str(data))
    counts = {"missing": 2, "stale": 0, "orphaned": 1, "repaired": 2, "left": 1}
    assert done == {"collection": "default", "checked": 4, **counts}
    states = {each["name"]: each["status"] for each in lines("documents", DATA_DIR=str(data))}
    assert states == {**dict.fromkeys(SENTENCES, "ready"), "organ.txt": "degraded"}


async def hurt(data: Path, documents: dict[str, dict]) -> None:
    """One document loses its chunks, one its original too, and one is there twice."""
    async with open_service(Settings(data_dir=data, models_dir=MODELS)) as service:
        index = (await service.catalog.live_generation("default")).index
        behind = BehindLance(data / "lance")
        for name in ("kiln.txt", "organ.txt"):
            await behind.remove_chunks(index, documents[name]["id"])
        await behind.copy(index, documents["well.txt"]["id"], "doc_nobody")
        await service.files.discard([documents["organ.txt"]["sha256"]])


async def test_what_is_written_late_for_a_lost_job_is_made_good(place):
    """It stood still in mid-work, another did the job meanwhile, one document was deleted and one replaced, and it went on."""
    store, index = place.service.store, (await live(place)).index
    deleted, replaced = place.ids["heron.txt"], place.ids["kiln.txt"]
    found = await store.keyword(index, ["heron", "kiln"], 10)
    late = {
        each.chunk.document_id: [EmbeddedChunk(each.chunk, each.vector, " ".join(analyze(each.chunk.text, "en")))]
        for each in found
    }
    assert set(late) == {deleted, replaced}
    lost = {job["document_id"]: await place.service.jobs.job(job["id"]) for job in await jobs_of(place)}
    new = "Kiln four was torn down in May."
    async with working(place):
        await place.client.call("DELETE", f"/documents/{deleted}")
        body = {"documents": [note("kiln.txt", new)], "collection": place.collection}
        await place.client.call("POST", "/ingest?wait=60", json=body)
        await until_none_waits(place)
    await store.replace(index, late)
    assert {each.document_id for each in await store.scan(index)} >= {deleted, replaced}

    async with open_worker(place.service) as worker:
        for document_id in late:
            await worker.pipeline.make_good(lost[document_id])
    assert await store.count(index, deleted) == 0
    async with working(place):
        async with asyncio.timeout(60):
            while [each.text for each in await store.scan(index, document_id=replaced)] != [new]:
                await asyncio.sleep(0.05)
        await until_none_waits(place)
    assert await store.count(index, deleted) == 0
    assert await statuses(place) == {"kiln.txt": "ready", "organ.txt": "ready", "well.txt": "ready"}


async def jobs_of(place: SimpleNamespace) -> list[dict]:
    return [each async for each in place.client.pages("/jobs", "jobs", collection=place.collection)]


async def until_none_waits(place: SimpleNamespace) -> None:
    async with asyncio.timeout(60):
        while any((await place.service.jobs.depth()).values()):
            await asyncio.sleep(0.05)
