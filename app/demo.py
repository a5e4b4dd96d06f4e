"""`footnote serve --demo`, which `make run` runs: ingest the samples, ask a first question, print answer and addresses."""

from __future__ import annotations

import sys
from pathlib import Path

from app.client import Client, batches, find_files, open_client
from app.settings import Settings
from app.show import answer, out, summary

SAMPLES = Path("data/samples")
QUESTION = "Why did Vault B warm up in February 2025, and how is its alarm tested now?"


async def show(url: str) -> None:
    """Act as a first user of the service at `url`; whatever goes wrong is printed, and the service goes on."""
    from app.client import ProblemError

    try:
        async with open_client(url, _no_settings) as client:
            await _ingest(client)
            out.print(f"\n[bold]Q: {QUESTION}[/bold]")
            answer(await client.call("POST", "/query", json={"question": QUESTION, "collection": "samples"}))
            body = '{"question": "...", "collection": "samples"}'
            out.print(f"\nAPI page:  {url}/docs")
            out.print(f"Ask:       curl -s {url}/query -H 'content-type: application/json' -d '{body}'")
            out.print(f'Your own:  .venv/bin/footnote ingest PATH --url {url}, then .venv/bin/footnote query "..." --url {url}')
            out.print("Stop with Ctrl-C.")
    except ProblemError as exc:
        print(f"footnote: {exc}", file=sys.stderr)  # noqa: T201


async def _ingest(client: Client) -> None:
    if not SAMPLES.is_dir():  # noqa: ASYNC240 - one look, before anything else runs
        out.print(f"{SAMPLES} is not here: start in the project's folder to see the samples")
        return
    sent = []
    for batch in batches(find_files([SAMPLES], recursive=True, glob="*")):
        sent += await client.upload(batch, collection="samples", metadata="{}")
    out.print(
        f"Ingesting {len(sent)} samples ..." if not all(d["duplicate"] for d in sent) else "The samples are here already."
    )
    summary(await client.settle(sent, 300, lambda *_: None))


def _no_settings() -> Settings:
    raise AssertionError("the demo speaks to a running service")
