"""`footnote reindex`: plan or carry out, collection by collection, with progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from app.client import Client, open_client
from app.show import progress

if TYPE_CHECKING:
    from app.settings import Settings


async def reindex_all(
    url: str | None, settings: Callable[[], Settings], collection: str | None, body: dict[str, Any]
) -> list[dict[str, Any]]:
    """One result per collection, with `state` (unchanged, planned, succeeded, failed) and a `summary` in words."""
    async with open_client(url, settings, works=not body["plan"]) as client:
        names = [collection] if collection else [item["name"] async for item in client.pages("/collections", "collections")]
        return [await _reindex(client, name, body) for name in names]


async def _reindex(client: Client, name: str, body: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in body.items() if value is not None}
    plan: dict[str, Any] = await client.call("POST", f"/collections/{quote(name, safe='')}/reindex", json=given)
    size = f"{plan['documents']} documents, {plan['chunks']} chunks"
    why = ", ".join(plan["changes"])
    if not plan["chunks"] and not plan["job_id"]:
        return {**plan, "state": "unchanged", "summary": f"{name}: nothing to do"}
    if body["plan"]:
        return {
            **plan,
            "state": "planned",
            "summary": f"{name}: {size} to embed by {plan['embedder']} ({why}), about {plan['estimated_seconds']} s",
        }
    with progress(f"reindexing {name}", plan["documents"]) as seen:
        job = await client.settle_job(plan["job_id"], lambda state: seen(state["done"], plan["documents"]))
    if job["state"] == "succeeded":
        return {**plan, "state": "succeeded", "summary": f"{name}: {size} now embedded by {plan['embedder']} ({why})"}
    detail = (job["error"] or {}).get("detail", job["state"])
    return {**plan, "state": "failed", "error": job["error"], "summary": f"{name}: failed, the old index stays live: {detail}"}
