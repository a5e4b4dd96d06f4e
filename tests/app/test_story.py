"""The product's main story through its own doors, on the embedded store and on Weaviate: the same words, the same answers."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.timeout(300)  # the first ingest of a service imports torch, which takes its time on a busy machine

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
FIRST = "Why did Vault B warm up in February 2025, and how is its alarm tested now?"


@pytest.fixture(scope="module", params=["lance", "weaviate"])
def http(request, serve):
    settings = {} if request.param == "lance" else {"store_url": request.getfixturevalue("weaviate_url")}
    with serve(**settings).client() as client:
        yield client


@pytest.fixture
def collection() -> str:
    return f"c-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def samples(http) -> str:
    """A collection that holds the samples."""
    name = f"samples-{secrets.token_hex(4)}"
    files = [("files", (path.name, path.read_bytes())) for path in sorted(SAMPLES.iterdir())]
    response = http.post(
        "/ingest?wait=120", files=files, data={"collection": name, "metadata": '{"origin": "samples", "year": 2025}'}
    )
    assert response.status_code == 200, response.text
    assert {document["status"] for document in response.json()["documents"]} == {"ready"}
    return name


def ingest(http: httpx.Client, collection: str, *documents: dict, **query: object) -> list[dict]:
    body = {"documents": list(documents), "collection": collection}
    response = http.post("/ingest", json=body, params={"wait": 60, **query})
    assert response.status_code == 200, response.text
    return response.json()["documents"]


def note(name: str, text: str, **metadata: object) -> dict:
    return {"name": name, "text": text, "media_type": "text/plain", "metadata": metadata}


def search(http: httpx.Client, collection: str, question: str, **more: object) -> list[dict]:
    response = http.post("/search", json={"question": question, "collection": collection, **more})
    assert response.status_code == 200, response.text
    return response.json()["hits"]


def names(hits: list[dict]) -> list[str]:
    return [hit["document_name"] for hit in hits]


def test_an_answer_draws_on_two_files_and_every_quote_stands_in_its_text(http, samples):
    answer = http.post("/query", json={"question": FIRST, "collection": samples}).json()
    assert answer["status"] == "answered"
    assert {"incident-report-vault-b.pdf", "staff-handbook.docx"} <= {c["document_name"] for c in answer["citations"]}
    assert "fan bearing" in answer["answer"]
    for citation in answer["citations"]:
        text = http.get(f"/documents/{citation['document_id']}/text").text
        assert citation["verified"]
        assert text[citation["start"] : citation["end"]] == citation["quote"]
        assert f"[{citation['marker']}]" in answer["answer"]
    pdf = next(c for c in answer["citations"] if c["document_name"].endswith(".pdf"))
    assert pdf["page"] == 1


@pytest.mark.parametrize(
    ("question", "document"),
    [
        ("Wann finden Führungen auf Deutsch statt?", "besuch-de.md"),
        ("沼泽龙胆是什么时候重新种回野外的？", "introduction-zh.txt"),
        ("How many marsh gentians flowered in 2024?", "collecting-notes.txt"),
        ("How much does an adult ticket cost?", "fees.html"),
    ],
)
def test_questions_find_their_file_in_every_format_and_language(http, samples, question, document):
    assert document in names(search(http, samples, question))[:2]


def test_nothing_relevant_is_an_abstention_and_not_an_invention(http, samples):
    answer = http.post("/query", json={"question": "Who won the football world cup in 1998?", "collection": samples}).json()
    assert (answer["status"], answer["answer"], answer["citations"]) == ("abstained", "", [])
    assert answer["reason"]


def test_every_chunk_is_a_slice_of_the_text(http, samples):
    for document in http.get("/documents", params={"collection": samples}).json()["documents"]:
        text = http.get(f"/documents/{document['id']}/text").text
        chunks = http.get(f"/documents/{document['id']}/chunks", params={"limit": 1000}).json()["chunks"]
        assert len(chunks) == document["chunks"] > 0
        assert all(text[chunk["start"] : chunk["end"]] == chunk["text"] for chunk in chunks)
        assert document["receipt"]["chunks"] == document["chunks"]


def test_originals_come_back_byte_for_byte(http, samples):
    for document in http.get("/documents", params={"collection": samples}).json()["documents"]:
        original = http.get(f"/documents/{document['id']}/original")
        assert original.content == (SAMPLES / document["name"]).read_bytes()
        assert original.headers["content-disposition"].startswith("attachment")


def test_modes_search_by_words_by_vectors_or_by_both(http, collection):
    ingest(http, collection, note("a", "The zyzzyva beetle eats palm leaves."), note("b", "Cars need petrol to drive."))
    by_words = search(http, collection, "zyzzyva", mode="keyword")
    by_vectors = search(http, collection, "automobile fuel", mode="vector")
    assert names(by_words) == ["a"]
    assert by_words[0]["keyword_score"] > 0
    assert names(by_vectors)[0] == "b"
    assert len(search(http, collection, "automobile fuel", mode="hybrid")) == 2


def test_filters_narrow_what_is_searched(http, collection):
    ingest(
        http,
        collection,
        note("old", "The harbour fee is ten pounds.", year=2019, tags=["harbour", "fees"], open=True),
        note("new", "The harbour fee is twelve pounds.", year=2024, tags=["harbour"], open=False),
    )
    asked = {"$gte": 2020}, 2019, {"$in": [2019, 2024]}, {"$ne": 2019}
    found = [sorted(names(search(http, collection, "harbour fee", filter={"year": each}))) for each in asked]
    assert found == [["new"], ["old"], ["new", "old"], ["new"]]
    assert names(search(http, collection, "harbour fee", filter={"tags": {"$contains": "fees"}})) == ["old"]
    both = {"$or": [{"open": True}, {"$not": {"year": {"$lt": 2030}}}]}
    assert names(search(http, collection, "harbour fee", filter=both)) == ["old"]


def test_the_same_bytes_are_the_same_document_and_new_bytes_replace_the_old(http, collection):
    [first] = ingest(http, collection, note("n.txt", "The gate code is 1111."))
    [same] = ingest(http, collection, note("n.txt", "The gate code is 1111."))
    [new] = ingest(http, collection, note("n.txt", "The gate code is 2222."))
    assert first["id"] == same["id"] == new["id"]
    assert (first["duplicate"], same["duplicate"], new["duplicate"]) == (False, True, False)
    assert [hit["text"] for hit in search(http, collection, "gate code")] == ["The gate code is 2222."]
    document = http.get(f"/documents/{new['id']}").json()
    assert (document["version"], document["live_version"], document["status"]) == (2, 2, "ready")


def test_a_broken_new_version_leaves_the_old_one_answerable(http, collection):
    [first] = ingest(http, collection, note("n.pdf.txt", "The gate code is 1111."))
    response = http.post(
        "/ingest?wait=60", files=[("files", ("n.pdf.txt", b"%PDF-1.4 not really a pdf"))], data={"collection": collection}
    )
    assert response.json()["documents"][0]["status"] == "failed"
    document = http.get(f"/documents/{first['id']}").json()
    assert (document["status"], document["live_version"]) == ("failed", 1)
    assert document["error"]["detail"]
    assert names(search(http, collection, "gate code")) == ["n.pdf.txt"]


def test_a_deleted_document_is_found_no_more_and_leaves_nothing(http, collection):
    [kept, gone] = ingest(http, collection, note("kept", "Apples are red."), note("gone", "Apples are secretly blue."))
    deleted = http.delete(f"/documents/{gone['id']}")
    assert deleted.status_code == 202
    assert names(search(http, collection, "apples blue")) == ["kept"]
    wait_for_job(http, deleted.json()["id"])
    assert http.get(f"/documents/{gone['id']}").status_code == 404
    assert http.get(f"/documents/{kept['id']}").status_code == 200
    assert http.get(f"/collections/{collection}").json()["documents"] == 1


def wait_for_job(http: httpx.Client, job_id: str, seconds: float = 60) -> dict:
    deadline = time.monotonic() + seconds
    while (job := http.get(f"/jobs/{job_id}").json())["state"] in {"queued", "running"}:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job


def test_a_deleted_collection_is_gone_and_its_name_begins_anew(http, collection):
    ingest(http, collection, note("a", "Apples are red."))
    assert http.delete(f"/collections/{collection}").status_code == 204
    assert http.post("/search", json={"question": "apples", "collection": collection}).json()["code"] == "collection_not_found"
    ingest(http, collection, note("b", "Pears are green."))
    assert names(search(http, collection, "apples")) == ["b"]


def test_collections_never_mix(http, collection):
    ingest(http, collection, note("mine", "The password is swordfish."))
    ingest(http, f"{collection}-other", note("theirs", "The password is marlin."))
    assert names(search(http, collection, "password")) == ["mine"]
    assert names(search(http, f"{collection}-other", "password")) == ["theirs"]


def test_a_reindex_answers_all_the_while_and_switches_whole(http, collection):
    texts = [note(f"n{i}", f"Lighthouse number {i} stands on rock {i}.") for i in range(12)]
    ingest(http, collection, *texts)
    before = http.get(f"/collections/{collection}").json()["generation"]
    seen: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=http.base_url, trust_env=False, timeout=60) as own:
            while not stop.is_set():
                seen.append(len(search(own, collection, "lighthouse rock", top_k=50)))

    asking = threading.Thread(target=ask)
    asking.start()
    started = http.post(f"/collections/{collection}/reindex", json={"force": True, "chunk_size": 64}).json()
    job = wait_for_job(http, started["job_id"], 120)
    stop.set()
    asking.join()
    assert job["state"] == "succeeded"
    assert http.get(f"/collections/{collection}").json()["generation"] != before
    assert set(seen) == {12}
    assert len(search(http, collection, "lighthouse rock", top_k=50)) == 12


def test_a_reindex_with_nothing_to_change_does_nothing(http, collection):
    ingest(http, collection, note("a", "Apples are red."))
    plan = http.post(f"/collections/{collection}/reindex", json={}).json()
    assert (plan["job_id"], plan["changes"], plan["documents"]) == (None, [], 0)
    planned = http.post(f"/collections/{collection}/reindex", json={"chunk_size": 32, "plan": True}).json()
    assert planned["job_id"] is None
    assert (planned["documents"], planned["chunks"]) == (1, 1)
    assert planned["estimated_seconds"] >= 0


def test_an_empty_collection_abstains(http, collection):
    assert http.post("/collections", json={"name": collection}).status_code == 201
    answer = http.post("/query", json={"question": "anything?", "collection": collection}).json()
    assert (answer["status"], answer["reason"], answer["generation"]) == ("abstained", "the collection is empty", None)


def test_an_idempotency_key_makes_a_retry_safe(http, collection):
    body = {"documents": [note("a", "Apples are red.")], "collection": collection}
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first = http.post("/ingest", json=body, headers=key).json()
    assert http.post("/ingest", json=body, headers=key).json() == first
    other = {**body, "documents": [note("b", "Pears are green.")]}
    assert http.post("/ingest", json=other, headers=key).json()["code"] == "idempotency_conflict"


def test_ready_alive_and_measured(http):
    assert http.get("/healthz").json()["status"] == "alive"
    ready = http.get("/readyz").json()
    assert ready == {"status": "ready", "checks": {"catalog": "ok", "store": "ok", "files": "ok", "broker": "ok"}}
    metrics = http.get("/metrics").text
    assert "footnote_http_requests_total" in metrics
    assert 'footnote_jobs{state="queued"}' in metrics
