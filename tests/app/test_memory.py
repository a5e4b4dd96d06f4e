"""What is remembered of questions is never out of date, and bounded."""

from __future__ import annotations

import secrets

import httpx
import numpy as np
import pytest

from app import memory
from app.memory import Memory
from retrieval.embedders.questions import REMEMBERED, QuestionMemory

pytestmark = pytest.mark.timeout(300)


def test_what_was_not_asked_for_longest_goes_first():
    held = Memory(100)
    for name in "abc":
        held.put(name, name.upper(), 40)
    assert [held.get(name) for name in "abc"] == [None, "B", "C"]
    held.get("b")
    held.put("d", "D", 40)
    assert [held.get(name) for name in "bcd"] == ["B", None, "D"]
    held.put("b", "other", 90)
    assert [held.get(name) for name in "bd"] == ["other", None]
    held.put("huge", "H", 101)
    assert [held.get(name) for name in ("huge", "b")] == [None, "other"]


def test_nothing_is_kept_for_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(memory, "monotonic", lambda: now[0])
    held = Memory(100)
    held.put("a", "A", 10)
    now[0] += memory.KEEP_SECONDS + 1
    assert held.get("a") is None
    held.put("b", "B", 100)
    assert held.get("b") == "B"


def test_a_limit_of_nothing_keeps_nothing():
    held = Memory(0)
    held.put("a", "A", 1)
    assert held.get("a") is None


class CountingEmbedder:
    spec, dimension, fingerprint, tokenizer = "hand:test", 2, "0" * 16, None

    def __init__(self):
        self.asked = []

    async def embed_query(self, text):
        self.asked.append(text)
        return np.array([1, 0], np.float32)


async def test_a_question_is_embedded_once_and_the_oldest_are_forgotten():
    inner = CountingEmbedder()
    embedder = QuestionMemory(inner)
    for text in ("a", "b", "a"):
        vector = await embedder.embed_query(text)
    assert inner.asked == ["a", "b"]
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 0
    for number in range(REMEMBERED - 1):
        await embedder.embed_query(str(number))
    await embedder.embed_query("a")
    assert inner.asked.count("a") == 1
    await embedder.embed_query("b")
    assert inner.asked.count("b") == 2


@pytest.fixture(scope="module")
def http(serve):
    with serve().client() as client:
        yield client


def metric(http: httpx.Client, name: str) -> int:
    return next(float(line.split()[1]) for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name} "))


def ingest(http: httpx.Client, collection: str, text: str) -> str:
    """The id of the document once it is ready; the first one waits for the model, on a busy machine for minutes."""
    body = {"documents": [{"name": "mast.txt", "text": text}], "collection": collection}
    for _ in range(4):
        [document] = http.post("/ingest", params={"wait": 60}, json=body).raise_for_status().json()["documents"]
        if document["status"] not in {"queued", "processing"}:
            break
    assert document["status"] == "ready"
    return document["id"]


def test_an_answer_is_remembered_until_the_next_write_of_the_collection(http):
    collection = f"c-{secrets.token_hex(4)}"

    def write(text: str) -> str:
        return ingest(http, collection, text)

    def ask(question: str = "How high is the mast of the radio station?", **options: object) -> dict:
        hits = metric(http, "footnote_query_cache_hits_total")
        body = {"question": question, "collection": collection, **options}
        answer = http.post("/query", json=body).raise_for_status().json()
        return {**answer, "remembered": metric(http, "footnote_query_cache_hits_total") > hits}

    document_id = write("The mast of the radio station is 41 metres high. It is painted red.")
    first, again = ask(), ask()
    assert "41 metres" in first["answer"]
    assert not first["remembered"]
    assert again["remembered"]
    assert again["id"] != first["id"]
    same = ["answer", "citations", "hits", "status", "model", "generation", "usage"]
    assert [again[name] for name in same] == [first[name] for name in same]
    for other in (
        {"top_k": 4},
        {"mode": "keyword"},
        {"filter": {"document_name": "mast.txt"}},
        {"question": "How high is the mast?"},
    ):
        assert not ask(**other)["remembered"]

    write("The mast of the radio station is 57 metres high. It is painted red.")
    assert "57 metres" in ask()["answer"]
    assert ask()["remembered"]
    http.delete(f"/documents/{document_id}").raise_for_status()
    gone = ask()
    assert gone["status"] == "abstained"
    assert gone["hits"] == []


def test_a_filter_on_true_is_not_one_on_one(http):
    collection = f"c-{secrets.token_hex(4)}"
    for name, flag in (("yes.txt", True), ("one.txt", 1)):
        note = {"name": name, "text": f"The mast in {name} is 41 metres high.", "metadata": {"flag": flag}}
        http.post("/ingest", params={"wait": 60}, json={"documents": [note], "collection": collection}).raise_for_status()

    def found(flag: bool | int) -> list[str]:
        question = {"question": "How high is the mast?", "collection": collection, "filter": {"flag": flag}}
        return [hit["document_name"] for hit in http.post("/search", json=question).raise_for_status().json()["hits"]]

    assert found(True) == found(True) == ["yes.txt"]
    assert found(1) == found(1) == ["one.txt"]


def test_a_remembered_answer_streams_as_the_first_one_did(http):
    collection = f"c-{secrets.token_hex(4)}"
    ingest(http, collection, "The mast is 41 metres high.")
    question = {"question": "How high is the mast?", "collection": collection, "stream": True}
    one, other = [http.post("/query", json=question).raise_for_status().text.split("\n\n") for _ in range(2)]
    assert one[:-2] == other[:-2]
    assert one[-2].startswith("event: done")
    assert other[-2].startswith("event: done")
