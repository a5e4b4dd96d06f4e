"""The events of a streamed answer: their names, their order, and that they add up to the answer."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator

import httpx
import pytest

TEXTS = {
    "vaults.md": "Vault A was opened in 1994 and holds the base collection. Vault B was opened in 2009.",
    "fees.md": "Eine Führung kostet 3 £ – für Kinder 🧒 gilt: naïve Preise. 沼泽龙胆于2016年重新种回野外。",
}


@pytest.fixture(scope="module")
def http(serve) -> Iterator[httpx.Client]:
    with serve().client() as client:
        yield client


@pytest.fixture(scope="module")
def collection(http) -> str:
    name = f"stream-{secrets.token_hex(4)}"
    documents = [{"name": each, "text": text} for each, text in TEXTS.items()]
    assert http.post("/ingest?wait=60", json={"documents": documents, "collection": name}).status_code == 200
    return name


def streamed(http: httpx.Client, **body: object) -> list[tuple[str, object]]:
    response = http.post("/query", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    text = response.content.decode("utf-8")
    assert re.fullmatch(r"(event: [a-z]+\ndata: [^\n\r]+\n\n)+", text)
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (.+)\ndata: (.+)\n", text)]


QUESTIONS = ["When was Vault A opened?", "Was kostet eine Führung für Kinder?", "沼泽龙胆是什么时候重新种回野外的？"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_hits_come_first_the_answer_last_and_the_deltas_add_up_to_it(http, collection, question):
    events = streamed(http, question=question, collection=collection)
    names = [name for name, _ in events]
    answer = events[-1][1]
    assert names[0] == "hits"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"delta", "citation"}
    assert events[0][1] == answer["hits"] != []
    assert "".join(data["text"] for name, data in events if name == "delta") == answer["answer"] != ""
    assert [data for name, data in events if name == "citation"] == answer["citations"] != []
    assert answer["status"] == "answered"


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_stream_tells_what_the_plain_answer_tells(http, collection, question):
    streamed_answer = streamed(http, question=question, collection=collection)[-1][1]
    plain = http.post("/query", json={"question": question, "collection": collection}).json()
    for each in (streamed_answer, plain):
        del each["id"], each["timings_ms"]
    assert streamed_answer == plain


def test_an_answer_of_extracts_quotes_text_of_every_script_to_the_character(http, collection):
    answer = streamed(http, question="Was kostet eine Führung für Kinder?", collection=collection)[-1][1]
    assert "£ – für Kinder 🧒" in answer["answer"]
    for citation in answer["citations"]:
        assert TEXTS[citation["document_name"]][citation["start"] : citation["end"]] == citation["quote"]
        assert f"[{citation['marker']}]" in answer["answer"]


def test_an_abstention_is_its_hits_and_nothing_but_done(http, collection):
    events = streamed(http, question="Who won the football world cup in 1998?", collection=collection)
    assert [name for name, _ in events] == ["hits", "done"]
    assert (events[1][1]["status"], events[1][1]["answer"], events[1][1]["citations"]) == ("abstained", "", [])
    assert events[1][1]["reason"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"question": "x", "collection": "nowhere"}, 404, "collection_not_found"),
        ({"question": "   "}, 422, "invalid_input"),
        ({"question": "x", "llm": "nosuch:model"}, 422, "invalid_input"),
        ({"question": "x", "filter": {"$nor": []}}, 422, "invalid_filter"),
    ],
)
def test_what_is_refused_before_the_first_event_is_a_problem_with_a_status(http, collection, body, status, code):
    response = http.post("/query", json={"collection": collection, **body, "stream": True})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_question_without_any_shared_word_is_answered_if_it_is_alike(http):
    name = f"stream-{secrets.token_hex(4)}"
    document = {"name": "cars.txt", "text": "Cars need petrol to drive along the road."}
    assert http.post("/ingest?wait=60", json={"documents": [document], "collection": name}).status_code == 200
    answer = streamed(http, question="What fuel does an automobile use?", collection=name)[-1][1]
    assert answer["answer"] == "Cars need petrol to drive along the road [1]."
