"""What was accepted is answerable, exactly once, though its workers are killed on the way."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest

from tests.app.test_parts import packed
from tests.app.test_story import note, search
from tests.services import Running, running_service

pytestmark = pytest.mark.timeout(400)

DOCUMENTS = 60
PACKED = 15
"""As many of them come in one archive."""


def call_sign(number: int) -> str:
    """A word of letters only: the analysis would split one of letters and digits."""
    return "kz" + "".join("bcdfghjkmp"[int(digit)] for digit in f"{number:03}")


def workers(service: Running) -> list[psutil.Process]:
    return [child for child in psutil.Process(service.process.pid).children() if "worker" in child.cmdline()]


def wait_until_settled(http, seconds: float = 200) -> list[dict]:
    deadline = time.monotonic() + seconds
    while True:
        documents = http.get("/documents", params={"limit": 1000}).json()["documents"]
        if all(document["status"] not in {"queued", "processing"} for document in documents):
            return documents
        assert time.monotonic() < deadline, [d["status"] for d in documents]
        time.sleep(0.2)


def test_killing_workers_loses_nothing_and_doubles_nothing(tmp_path):
    chance = random.Random(3)
    with running_service(tmp_path, lease_seconds="2", job_max_attempts="20") as service, service.client() as http:
        names = [f"{i}.txt" if i >= PACKED else f"box.zip/{i}.txt" for i in range(DOCUMENTS)]
        texts = [f"Beacon number {i} has the call sign {call_sign(i)}." for i in range(DOCUMENTS)]
        box = packed({f"{i}.txt": texts[i] for i in range(PACKED)})
        assert http.post("/ingest", files=[("files", ("box.zip", box))]).status_code == 202
        notes = [note(name, text) for name, text in zip(names, texts, strict=True)][PACKED:]
        for first in range(0, len(notes), 20):
            assert http.post("/ingest", json={"documents": notes[first : first + 20]}).status_code == 202
        for _ in range(3):
            time.sleep(chance.uniform(1.0, 4.0))
            for worker in workers(service):
                os.kill(worker.pid, signal.SIGKILL)
        documents = wait_until_settled(http)
        assert sorted(document["name"] for document in documents) == sorted(["box.zip", *names])
        assert {document["status"] for document in documents} == {"ready"}
        assert http.get("/collections/default").json()["chunks"] == DOCUMENTS
        for i in range(DOCUMENTS):
            hits = search(http, "default", call_sign(i), mode="keyword")
            assert [hit["document_name"] for hit in hits] == [names[i]]


def test_what_was_accepted_before_a_stop_is_done_after_the_next_start(tmp_path):
    with running_service(tmp_path, workers="0") as service, service.client() as http:
        http.post("/ingest", json={"documents": [note("a.txt", "Apples are red.")]})
        assert http.get("/documents").json()["documents"][0]["status"] == "queued"
    with running_service(tmp_path) as service, service.client() as http:
        assert [document["status"] for document in wait_until_settled(http)] == ["ready"]
