"""A service whose Weaviate is not there yet, or not any more: it accepts, says so, and catches up."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.app.test_durability import wait_until_settled
from tests.app.test_story import note, search
from tests.services import WeaviateServer, running_service, weaviate_binary

pytestmark = pytest.mark.timeout(300)


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_service_started_before_its_weaviate_waits_and_comes_up(tmp_path):
    binary = weaviate_binary() or pytest.skip("no Weaviate: put its binary on PATH as `weaviate`")
    server = WeaviateServer(binary, tmp_path)
    settings = {"store_url": server.url, "job_max_attempts": "1"}
    try:
        with running_service(tmp_path / "service", **settings) as service, service.client() as http:
            assert http.get("/healthz").status_code == 200
            ready = http.get("/readyz")
            assert ready.status_code == 503
            assert "cannot reach Weaviate" in ready.json()["checks"]["store"]
            accepted = http.post("/ingest", json={"documents": [note("a.txt", "The vault opens at nine.")]})
            assert accepted.status_code == 202
            # With one try allowed, a job that counted the store's absence as a try would be dead by now.
            wait_for(lambda: jobs(http) == ["waiting for store"])

            server.start()
            assert [document["status"] for document in wait_until_settled(http)] == ["ready"]
            assert [hit["document_name"] for hit in search(http, "default", "When does the vault open?")] == ["a.txt"]
            wait_for(lambda: http.get("/readyz").status_code == 200)

            server.kill()
            for route in ("/query", "/search"):
                refused(
                    http.post(route, json={"question": "At what hour is the vault opened?"})
                )  # not asked before: not remembered
            server.start()
            wait_for(lambda: http.post("/search", json={"question": "Which hour opens the vault?"}).status_code == 200)
            assert [hit["document_name"] for hit in search(http, "default", "Is the vault open at nine?")] == ["a.txt"]
    finally:
        server.stop()


def jobs(http: httpx.Client) -> list[str]:
    return [job["stage"] for job in http.get("/jobs").json()["jobs"]]


def refused(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["code"] == "store_unavailable"
    assert int(response.headers["Retry-After"]) >= 1
