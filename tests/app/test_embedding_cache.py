"""What has been embedded once is not embedded again: by upload, name, collection, cut, re-index and the way back."""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.client import Client, open_client
from app.settings import Settings
from tests.services import MODELS

pytestmark = pytest.mark.timeout(300)

TEXT = "\n\n".join(
    f"# Part {number}\n\nThe {colour} door of hall {number} leads to the {colour} garden, and it is locked at {number} o'clock."
    for number, colour in enumerate(("red", "green", "blue", "white", "black", "brown"), 1)
)


class Story:
    """A service in this process with its worker, and what it has embedded so far."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen: dict[str, int] = {}

    async def upload(self, name: str, text: str, collection: str = "default") -> dict[str, Any]:
        """The receipt."""
        body = {"documents": [{"name": name, "text": text, "media_type": "text/markdown"}], "collection": collection}
        sent = await self.client.call("POST", "/ingest", json=body, params={"wait": 200})
        assert sent["documents"][0]["status"] == "ready", sent
        return (await self.client.call("GET", f"/documents/{sent['documents'][0]['id']}"))["receipt"]

    async def reindex(self, **body: Any) -> None:
        started = await self.client.call("POST", "/collections/default/reindex", json=body)
        assert (await self.client.settle_job(started["job_id"], lambda job: None))["state"] == "succeeded"

    async def new(self) -> tuple[int, int]:
        """Texts embedded, and known, since it was asked last; as the metrics say."""
        page = (await self.client.http.get("/metrics")).text
        now = {name: int(count) for name, count in re.findall(r'embedded_texts_total{result="(\w+)"} (\d+)', page)}
        changed = tuple(now.get(name, 0) - self.seen.get(name, 0) for name in ("embedded", "cached"))
        self.seen = now
        return changed

    async def built_from_cache(self) -> int:
        """Texts known since it was asked last, where none was embedded; a re-index may build a document twice."""
        embedded, cached = await self.new()
        assert embedded == 0
        return cached


async def test_only_what_is_new_is_embedded(tmp_path):
    settings = Settings(data_dir=tmp_path, models_dir=MODELS, chunk_size=32)
    async with open_client(None, lambda: settings, works=True, begins=True) as client:
        story = Story(client)
        first = await story.upload("a.md", TEXT)
        chunks = first["chunks"]
        assert (first["embedded"], first["cached"]) == (chunks, 0)
        assert chunks >= 6
        assert await story.new() == (chunks, 0)

        renamed = await story.upload("b.md", TEXT)
        assert (renamed["embedded"], renamed["cached"]) == (0, chunks)
        await story.upload("a.md", TEXT, "another")
        assert await story.new() == (0, 2 * chunks)

        edited = await story.upload("a.md", TEXT.replace("blue garden", "blue pond"))
        assert (edited["embedded"], edited["cached"]) == (1, chunks - 1)
        await story.upload("a.md", TEXT)  # the former version again
        assert await story.new() == (1, 2 * chunks - 1)

        await story.reindex(force=True)
        assert await story.built_from_cache() >= 2 * chunks
        await story.reindex(chunk_size=33)  # which cuts at the same places
        assert await story.built_from_cache() >= 2 * chunks
        await story.reindex(chunk_size=16)
        assert (await story.new())[0] > 0
        await story.reindex(chunk_size=32)  # and back
        assert await story.built_from_cache() >= 2 * chunks

        for document in (await client.call("GET", "/documents"))["documents"]:
            await client.call("DELETE", f"/documents/{document['id']}")
        again = await story.upload("c.md", TEXT)
        assert (again["embedded"], again["cached"]) == (0, chunks)
        found = await client.call("POST", "/search", json={"question": "When is the white door locked?"})
        assert "white" in found["hits"][0]["text"]
