"""What was accepted is answerable exactly once, or its status says why not, whatever dies and whenever.

A round uploads documents from several clients at once, replaces and deletes some, breaks something at a random moment, mends
it, and then compares every document with what it should be. The suite runs a few short rounds; `make chaos` runs many:

    make chaos SEED=7 ROUNDS=20 DOCUMENTS=500 ARGS="-k 'redis and worker'"
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.stack import Combination, Stack, running_stack

SEED = int(os.environ.get("FOOTNOTE_TEST_CHAOS_SEED", "1"))
ROUNDS = int(os.environ.get("FOOTNOTE_TEST_CHAOS_ROUNDS", "0"))
DOCUMENTS = int(os.environ.get("FOOTNOTE_TEST_CHAOS_DOCUMENTS", "40"))
REPORT = os.environ.get("FOOTNOTE_TEST_CHAOS_REPORT")
CLIENTS = 4
SETTLE_SECONDS = 240.0
HOSTILE = {"broken.pdf": b"%PDF-1.7 and nothing that follows from it", "deep.json": b"[" * 20_000}

SHORT = [
    (Combination("local", "sqlite", "lance"), "all_workers_killed"),
    (Combination("redis", "postgres", "lance"), "broker_emptied"),
    (Combination("amqp", "postgres", "weaviate"), "store_killed"),
]
EVERY = [
    (Combination(broker, catalog, store), fault)
    for broker in ("local", "redis", "amqp")
    for catalog in ("sqlite", "postgres")
    for store in ("lance", "weaviate")
    for fault in FAULTS
]
"""Sorted by combination, so that an installation is started once for all of its faults."""


@dataclass
class Wanted:
    """What one name should end as: its last text, or None for nothing; `gone` are texts that must not be found."""

    text: str | None
    gone: list[str]
    hostile: bool = False


class Load(threading.Thread):
    """One client: uploads its documents in small lots, then a new version of some, and deletes some."""

    def __init__(self, number: int, stack: Stack, collection: str, count: int, chance: random.Random) -> None:
        super().__init__()
        self.number, self.stack, self.collection, self.count, self.chance = number, stack, collection, count, chance
        self.wanted: dict[str, Wanted] = {}
        self.ids: dict[str, str] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.stack.client() as http:
                self._work(http)
        except (AssertionError, httpx.HTTPError) as exc:
            self.error = exc

    def _work(self, http: httpx.Client) -> None:
        names = [f"{self.number}-{each}.txt" for each in range(self.count)]
        while names:
            size = self.chance.randint(1, 20)
            self._upload(http, names[:size])
            names = names[size:]
        for name, content in HOSTILE.items():
            self._upload_file(http, f"{self.number}-{name}", content)
        known = [name for name, wanted in self.wanted.items() if not wanted.hostile]
        self._upload(http, self.chance.sample(known, len(known) // 10))
        for name in self.chance.sample(known, len(known) // 20):
            self._take_back(http, name)

    def _upload(self, http: httpx.Client, names: list[str]) -> None:
        documents = [{"name": name, "text": f"The beacon {sign()} blinks on the pier."} for name in names]
        if not documents:
            return
        body = {"documents": documents, "collection": self.collection}
        key = {"Idempotency-Key": sign()}
        accepted = patiently(lambda: http.post("/ingest", json=body, headers=key)).json()["documents"]
        for document, answer in zip(documents, accepted, strict=True):
            before = self.wanted.get(document["name"])
            gone = [*before.gone, before.text] if before and before.text else []
            self.wanted[document["name"]] = Wanted(document["text"], gone)
            self.ids[document["name"]] = answer["id"]

    def _upload_file(self, http: httpx.Client, name: str, content: bytes) -> None:
        files, form, key = [("files", (name, content))], {"collection": self.collection}, {"Idempotency-Key": sign()}
        patiently(lambda: http.post("/ingest", files=files, data=form, headers=key))
        self.wanted[name] = Wanted(None, [], hostile=True)

    def _take_back(self, http: httpx.Client, name: str) -> None:
        wanted = self.wanted[name]
        patiently(lambda: http.delete(f"/documents/{self.ids[name]}"), done={202, 404})
        self.wanted[name] = Wanted(None, [*wanted.gone, wanted.text or ""])


def sign() -> str:
    """A word that stands nowhere else, of letters only: the analysis would split one of letters and digits."""
    return "kz" + "".join(random.SystemRandom().choices("bcdfghjkmp", k=12))


def word(text: str) -> str:
    return text.split()[2]


def patiently(send: Callable[[], httpx.Response], done: set[int] | None = None) -> httpx.Response:
    """Try until it is accepted: refusals that pass and broken connections are what the fault does."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            response = send()
            if response.status_code in (done or {200, 202}):
                return response
            assert response.status_code >= 500 or response.status_code == 429, response.text
            said = response.text
        except httpx.TransportError as exc:
            said = repr(exc)
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def one_round(stack: Stack, fault: str, number: int, documents: int, chance: random.Random) -> tuple[int, float]:
    """Jobs that were unfinished when the fault began, a hundred at most, and seconds from its end until all was settled."""
    collection = f"{fault.replace('_', '-')}-{number}"
    loads = [Load(each, stack, collection, documents // CLIENTS, random.Random(chance.random())) for each in range(CLIENTS)]
    for load in loads:
        load.start()
    time.sleep(chance.uniform(0.1, 2.0))
    with stack.client() as http:
        busy = until_busy(http, collection)
    with FAULTS[fault](stack, chance):
        time.sleep(chance.uniform(0.2, 2.0))
    mended = time.monotonic()
    for load in loads:
        load.join()
        assert load.error is None, load.error
    wanted = {name: each for load in loads for name, each in load.wanted.items()}
    with stack.client() as http:
        settle(http, collection)
        seconds = time.monotonic() - mended
        compare(http, collection, wanted)
    return busy, seconds


def until_busy(http: httpx.Client, collection: str) -> int:
    """Wait for work that a fault can meet; how many jobs that is."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (found := unfinished(http, collection)):
        assert time.monotonic() < deadline, "nothing was ever under way"
        time.sleep(0.02)
    return len(found)


def settle(http: httpx.Client, collection: str) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while waiting := unfinished(http, collection):
        assert time.monotonic() < deadline, waiting[:3]
        time.sleep(0.2)


def unfinished(http: httpx.Client, collection: str) -> list[dict]:
    """A page of the jobs that wait, and one of those that run."""
    asked = [{"collection": collection, "state": state} for state in ("queued", "running")]
    return [job for each in asked for job in patiently(lambda each=each: http.get("/jobs", params=each)).json()["jobs"]]


def compare(http: httpx.Client, collection: str, wanted: dict[str, Wanted]) -> None:
    """Nothing lost, nothing twice, nothing old, nothing stuck."""
    documents = every_document(http, collection)
    living = {name: each for name, each in wanted.items() if each.text or each.hostile}
    assert sorted(document["name"] for document in documents) == sorted(living)
    for document in documents:
        hostile = living[document["name"]].hostile
        assert document["status"] == "ready" or hostile, document
        assert document["error"] if document["status"] == "failed" else document["live_version"] == document["version"], (
            document
        )
    held = http.get(f"/collections/{collection}").json()["chunks"]
    assert held == sum(document["chunks"] for document in documents)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda document: compare_one(http, collection, document, living[document["name"]]), documents))
        gone = [text for each in wanted.values() for text in each.gone]
        list(threads.map(lambda text: nothing_found(http, collection, text), gone))


def every_document(http: httpx.Client, collection: str) -> list[dict]:
    found: list[dict] = []
    cursor = None
    while True:
        params = {"collection": collection, "limit": 1000, **({"cursor": cursor} if cursor else {})}
        page = http.get("/documents", params=params).json()
        found += page["documents"]
        if (cursor := page["next_cursor"]) is None:
            return found


def compare_one(http: httpx.Client, collection: str, document: dict, wanted: Wanted) -> None:
    if wanted.hostile:
        return
    chunks = http.get(f"/documents/{document['id']}/chunks").json()["chunks"]
    assert [chunk["text"] for chunk in chunks] == [wanted.text], document
    hits = search(http, collection, word(wanted.text or ""))
    assert [(hit["document_id"], hit["text"]) for hit in hits] == [(document["id"], wanted.text)], document


def nothing_found(http: httpx.Client, collection: str, text: str) -> None:
    assert search(http, collection, word(text)) == []


def search(http: httpx.Client, collection: str, question: str) -> list[dict]:
    body = {"question": question, "collection": collection, "mode": "keyword"}
    return patiently(lambda: http.post("/search", json=body)).json()["hits"]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory):
    """One installation at a time, kept while the combination stays the same."""
    current: list = []

    def stack_of(combination: Combination, chance: random.Random) -> Stack:
        if not current or current[0] != combination:
            close()
            opened = running_stack(combination, tmp_path_factory.mktemp(str(combination)), chance, small_disk=bool(ROUNDS))
            current[:] = [combination, opened, opened.__enter__()]
        return current[2]

    def close() -> None:
        if current:
            current[1].__exit__(None, None, None)
            current.clear()

    yield stack_of
    close()


@pytest.mark.timeout(7200 if ROUNDS else 300)
@pytest.mark.parametrize(("combination", "fault"), EVERY if ROUNDS else SHORT, ids=str)
def test_nothing_is_lost_doubled_or_stuck(stacks, combination, fault):
    chance = random.Random(f"{SEED} {combination} {fault}")
    stack = stacks(combination, chance)
    for number in range(ROUNDS or 1):
        busy, seconds = one_round(stack, fault, number, DOCUMENTS, chance)
        if REPORT:
            with Path(REPORT).open("a") as file:
                file.write(f"{combination}\t{fault}\t{number}\t{DOCUMENTS}\t{busy}\t{seconds:.1f}\n")
