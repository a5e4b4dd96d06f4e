"""The command line: every verb with an example, every result also as JSON.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app import __version__
from app.errors import EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL, EXIT_USAGE, exit_code_of
from retrieval.errors import FootnoteError

if TYPE_CHECKING:
    from app.settings import Settings  # takes pydantic: half of the time of --help

cli = typer.Typer(
    name="footnote",
    help="Documents in, answers out, every sentence with its footnote.\n\nStart with: footnote serve --demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one a line for lists.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="FOOTNOTE_URL", help="Act on the service that runs there instead of in this process."),
]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="The collection.")]
Consistent = Annotated[
    str | None, typer.Option(help="Wait until this write is settled: a consistency_token of ingest --json.", metavar="TOKEN")
]
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""ClickException: recent typers bring a click of their own, which has no public name."""
USAGE_STATUSES = {400, 413, 415, 422}


def main() -> None:
    """Run a verb; every failure is one line on stderr and an exit code."""
    try:
        code = int(cli(standalone_mode=False) or EXIT_DONE)  # what `typer.Exit` carries is returned
    except _USAGE_ERROR as exc:
        help_alone = type(exc).__name__ == "NoArgsIsHelpError"
        code = _say(exc.format_message() if help_alone else f"footnote: {exc.format_message()}", EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except FootnoteError as exc:
        code = _say(f"footnote: {exc.message}", exit_code_of(exc))
    except _problem_error() as exc:
        code = _say(f"footnote: {exc}", EXIT_USAGE if exc.problem.get("status") in USAGE_STATUSES else EXIT_FAILED)
    except BrokenPipeError:
        code = EXIT_DONE  # the reader of our output had enough
        sys.stderr.close()
    sys.exit(code)


@cli.command(epilog="Example: footnote serve --port 8080 --workers 2")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Local worker processes; 0 where `footnote worker` runs elsewhere.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Ingest data/samples, ask a first question, and go on serving.")] = False,
    listener: Annotated[int | None, typer.Option(hidden=True)] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the HTTP API, with worker processes beside it."""
    if demo:
        os.environ.setdefault("FOOTNOTE_LOG_LEVEL", "warning")  # of the workers too: the answer is what shall be seen
    settings = _settings(host=host, port=port, workers=workers)  # before imports that take seconds
    from app.serve import serve as run
    from app.serve import serve_beside

    if listener is not None and parent is not None:
        _serve(settings, serve_beside(settings, listener=listener, parent=parent))
        return
    _serve(settings, run(settings, ready=import_module("app.demo").show if demo else None))


@cli.command(epilog="Example: FOOTNOTE_CATALOG_URL=postgresql+asyncpg://... footnote worker --queues ingest,delete")
def worker(
    queues: Annotated[str, typer.Option(help="Only these queues, with commas between.")] = "delete,ingest,maintenance,reindex",
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run one worker process: it parses, embeds and stores what was uploaded."""
    from app.serve import work
    from ingest.records import QUEUES

    named = [name.strip() for name in queues.split(",")]
    if not set(named) <= set(QUEUES):
        raise typer.BadParameter(f"--queues {queues}: known are {', '.join(QUEUES)}")
    settings = _settings()
    _serve(settings, work(settings, queues=named, parent=parent))


@cli.command(epilog="Example: footnote ingest ~/reports --glob '*.pdf' --collection reports --metadata '{\"year\": 2026}'")
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)],
    collection: CollectionOption = "default",
    recursive: Annotated[bool, typer.Option(help="Go into the folders within a folder.")] = True,
    glob: Annotated[str, typer.Option(help="Which files of a folder.")] = "*",
    metadata: Annotated[str, typer.Option(help="A JSON object that all of them get.")] = "{}",
    wait: Annotated[bool, typer.Option(help="Wait until all are answerable (always, without --url).")] = True,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Add files and folders; unchanged files are skipped. What is in archives and mails is added too."""
    from app.client import batches, find_files, open_client
    from app.show import progress, summary

    try:
        files = list(find_files(paths, recursive=recursive, glob=glob))
    except FileNotFoundError as exc:
        raise typer.BadParameter(f"there is no file or folder {exc}") from exc
    if not files:
        raise typer.BadParameter("no file found; look at --glob and --recursive")

    async def act() -> list[dict[str, Any]]:
        async with open_client(url, _settings, works=True, begins=True) as client:
            with progress("uploading", len(files)) as seen:
                sent: list[dict[str, Any]] = []
                for batch in batches(files):
                    sent += await client.upload(batch, collection=collection, metadata=metadata)
                    seen(len(sent), len(files))
            if url and not wait:
                return sent
            with progress("ingesting", len(sent)) as seen:
                return await client.settle(sent, None, seen)

    documents = _run(act, url)
    if json_:
        _print_lines(documents)
    else:
        summary(documents)
    states = Counter(document["status"] for document in documents)
    raise typer.Exit(EXIT_DONE if not states["failed"] else EXIT_PARTIAL if len(states) > 1 else EXIT_FAILED)


@cli.command(epilog='Example: footnote query "When is the vault open to visitors?"')
def query(
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    collection: CollectionOption = "default",
    top_k: Annotated[int, typer.Option(help="How many hits to answer from.")] = 5,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='Only documents like this, as JSON: {"year": {"$gte": 2024}}')
    ] = None,
    mode: Annotated[str, typer.Option(help="hybrid, vector or keyword.")] = "hybrid",
    consistent_with: Consistent = None,
    llm: Annotated[str | None, typer.Option(help="`extractive`, or one of the configured models.")] = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Ask a question; the answer comes with its footnotes."""
    from app.show import answer

    body = {**_question(question, collection, top_k, filter_, mode, consistent_with), "llm": llm}
    found = _call("POST", "/query", url, json={name: value for name, value in body.items() if value is not None})
    print(json.dumps(found, ensure_ascii=False)) if json_ else answer(found)  # noqa: T201


@cli.command(epilog='Example: footnote search "opening hours" --top-k 10 --mode keyword')
def search(
    question: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    collection: CollectionOption = "default",
    top_k: Annotated[int, typer.Option(help="How many hits.")] = 5,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='Only documents like this, as JSON: {"year": {"$gte": 2024}}')
    ] = None,
    mode: Annotated[str, typer.Option(help="hybrid, vector or keyword.")] = "hybrid",
    consistent_with: Consistent = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Show the passages that fit a question best."""
    from app.show import hits

    found = _call("POST", "/search", url, json=_question(question, collection, top_k, filter_, mode, consistent_with))
    print(json.dumps(found, ensure_ascii=False)) if json_ else hits(found)  # noqa: T201


@cli.command(epilog="Example: footnote documents --status failed")
def documents(
    document_id: Annotated[
        str | None, typer.Argument(help="Show what was read of this one, and what not.", metavar="ID", show_default=False)
    ] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only of this collection.")] = None,
    status: Annotated[
        str | None, typer.Option(help="queued, processing, ready, needs_attention, degraded, failed or deleting.")
    ] = None,
    part_of: Annotated[str | None, typer.Option(help="Only what came out of this archive or mail.", metavar="ID")] = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """List documents, newest first; or show one with its receipt."""
    from app.show import document, table

    if document_id is not None:
        one = _call("GET", f"/documents/{quote(document_id, safe='')}", url)
        _print_lines([one]) if json_ else document(one)
        return
    found = _list("/documents", "documents", url, collection=collection, status=status, parent=part_of)
    _print_lines(found) if json_ else table(found, ["id", "name", "collection", "status", "chunks", "size", "updated_at"])


@cli.command(epilog="Example: footnote delete doc_0199c0ffee00a1b2c3d4e5f6")
def delete(
    ids: Annotated[list[str], typer.Argument(help="Documents' ids.", show_default=False)], url: Url = None, json_: Json = False
) -> None:
    """Delete documents with all their traces."""
    from app.client import ProblemError, open_client

    async def act() -> list[dict[str, Any]]:
        done = []
        async with open_client(url, _settings, works=True) as client:
            for document_id in ids:
                try:
                    job = await client.call("DELETE", f"/documents/{quote(document_id, safe='')}")
                    done.append({"document_id": document_id, **await client.settle_job(job["id"], lambda _: None)})
                except ProblemError as exc:
                    done.append({"document_id": document_id, "state": "failed", "error": exc.problem})
        return done

    done = _run(act, url)
    if json_:
        _print_lines(done)
    else:
        for item in done:
            typer.echo(f"{item['document_id']}  {'deleted' if item['state'] == 'succeeded' else item['error']['detail']}")
    failed = sum(item["state"] != "succeeded" for item in done)
    raise typer.Exit(EXIT_DONE if not failed else EXIT_FAILED if failed == len(done) else EXIT_PARTIAL)


@cli.command(epilog="Example: footnote jobs --state failed")
def jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, dead or cancelled.")] = None,
    cancel: Annotated[str | None, typer.Option(help="Stop this job.", metavar="ID")] = None,
    retry: Annotated[
        list[str] | None, typer.Option(help="Queue this job again, may be repeated; `all` for all of --state.", metavar="ID")
    ] = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """List jobs, newest first; cancel one, or retry some or all of a state."""
    from app.show import table

    if retry == ["all"] and state not in {"failed", "dead", "cancelled"}:
        raise typer.BadParameter("--retry all: say of which, with --state dead, failed or cancelled")
    if cancel:
        found = [_call("POST", f"/jobs/{quote(cancel, safe='')}/cancel", url)]
    elif retry:
        ids = retry if retry != ["all"] else [job["id"] for job in _list("/jobs", "jobs", url, state=state) if _may_retry(job)]
        found = _call_each("POST", [f"/jobs/{quote(job_id, safe='')}/retry" for job_id in ids], url)
    else:
        found = _list("/jobs", "jobs", url, state=state)
    _print_lines(found) if json_ else table(
        found, ["id", "kind", "collection", "state", "stage", "done", "total", "eta_seconds", "attempts", "created_at"]
    )


def _may_retry(job: dict[str, Any]) -> bool:
    return (job["error"] or {}).get("code") != "superseded"


@cli.command(epilog="Example: footnote collections --delete drafts")
def collections(
    delete_: Annotated[
        str | None, typer.Option("--delete", help="Delete this collection with all its documents.", metavar="NAME")
    ] = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """List collections; delete one."""
    from app.show import table

    if delete_:
        _call("DELETE", f"/collections/{quote(delete_, safe='')}", url)
    found = _list("/collections", "collections", url)
    _print_lines(found) if json_ else table(found, ["name", "documents", "chunks", "embedder", "generation", "created_at"])


@cli.command(epilog="Example: footnote reindex --embedder local:intfloat/multilingual-e5-small --plan")
def reindex(
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only this collection; else all.")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Build with this embedding model and keep it for the collection.")
    ] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Tokens per chunk; 0 for the default.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only count and estimate.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build anew even if nothing changed.")] = False,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Build what must change into a new index beside the live one, then switch; questions are answered all the while."""
    from app.reindex import reindex_all

    body = {"embedder": embedder, "chunk_size": chunk_size, "plan": plan, "force": force}
    results = _run(partial(reindex_all, url, _settings, collection, body), url)
    if json_:
        _print_lines(results)
    else:
        for result in results:
            typer.echo(result["summary"])
    failed = sum(result["state"] == "failed" for result in results)
    raise typer.Exit(EXIT_DONE if not failed else EXIT_FAILED if failed == len(results) else EXIT_PARTIAL)


@cli.command(epilog="Example: footnote doctor --repair")
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild what the store lacks, remove what it should not hold, and wait for it.")
    ] = False,
    json_: Json = False,
) -> None:
    """Check settings, model, store and catalog and whether they agree; exits 1 on a finding and names the cure."""
    from app.doctor import examine
    from app.show import finding

    if repair:
        _repair(json_=json_)

    async def act() -> bool:
        well = True
        async for each in examine(_settings()):
            well = well and each.state == "ok"
            print(json.dumps({"check": each.check, "state": each.state, "detail": each.detail})) if json_ else finding(each)  # noqa: T201
        return well

    raise typer.Exit(EXIT_DONE if _run(act, None) else EXIT_FAILED)


@cli.command(epilog="Example: footnote config --json")
def config(json_: Json = False) -> None:
    """Show the settings in force and where each value came from."""
    from app.settings import Settings, load_settings

    loaded = load_settings()
    rows = {
        name: {
            "value": _shown(getattr(loaded.settings, name)),
            "source": loaded.sources[name],
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    }
    if json_:
        typer.echo(json.dumps(rows))
        return
    width = max(map(len, rows)) + len("FOOTNOTE_")
    for name, row in rows.items():
        typer.echo(f"{'FOOTNOTE_' + name.upper():<{width}}  {'' if row['value'] is None else row['value']}  ({row['source']})")


def _repair(*, json_: bool) -> None:
    from app.doctor import Repair, repair
    from app.show import table

    async def act() -> list[dict[str, Any]]:
        return [asdict(each) async for each in repair(_settings())]

    rows = _run(act, None)
    _print_lines(rows) if json_ else table(rows, [field.name for field in fields(Repair)])
    left, repaired = sum(row["left"] for row in rows), sum(row["repaired"] for row in rows)
    raise typer.Exit(EXIT_DONE if not left else EXIT_PARTIAL if repaired else EXIT_FAILED)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"footnote {__version__}")
        raise typer.Exit


@cli.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Documents in, answers out, every sentence with its footnote.

    Start with: footnote serve --demo
    """


def _settings(**overrides: Any) -> Settings:
    from app.settings import load_settings

    return load_settings(**overrides).settings


def _serve(settings: Settings, service: Coroutine[Any, Any, None]) -> None:
    from app.logs import configure_logs

    configure_logs(settings.log_level, settings.log_format)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends us at once until the service, or the worker, handles it
    asyncio.run(service)


def _run(work: Callable[[], Coroutine[Any, Any, Any]], url: str | None) -> Any:
    """Run a verb that is no service: of its log only failures are shown."""
    gc.enable()
    if not url:  # of a service elsewhere there is no log here
        from app.logs import configure_logs

        configure_logs("error", "auto")
        _settings()  # what is wrong with them is said at once; what is imported then takes seconds
        import_module("app.main")  # before there is an event loop, in which Ctrl-C waits for the end of an import
    return asyncio.run(work())


def _question(question: str, collection: str, top_k: int, filter_: str | None, mode: str, token: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"question": question, "collection": collection, "top_k": top_k, "mode": mode}
    if token is not None:
        body |= {"consistent_with": token, "wait_seconds": 60}
    if filter_ is not None:
        try:
            body["filter"] = json.loads(filter_)
        except (ValueError, RecursionError) as exc:
            raise typer.BadParameter(f"--filter is not JSON ({exc})") from exc
    return body


def _call(method: str, path: str, url: str | None, **options: Any) -> Any:
    return _call_each(method, [path], url, **options)[0]


def _call_each(method: str, paths: list[str], url: str | None, **options: Any) -> list[Any]:
    """One after another; the first that is refused ends it."""
    from app.client import open_client

    async def act() -> list[Any]:
        async with open_client(url, _settings) as client:
            return [await client.call(method, path, **options) for path in paths]

    found: list[Any] = _run(act, url)
    return found


def _list(path: str, key: str, url: str | None, **params: Any) -> list[dict[str, Any]]:
    from app.client import open_client

    async def act() -> list[dict[str, Any]]:
        async with open_client(url, _settings) as client:
            return [item async for item in client.pages(path, key, **params)]

    found: list[dict[str, Any]] = _run(act, url)
    return found


def _shown(value: Any) -> Any:
    from app.settings import hide_password

    return value if isinstance(value, int | float | bool | None) else hide_password(str(value))


def _print_lines(items: list[dict[str, Any]]) -> None:
    for item in items:
        typer.echo(json.dumps(item, ensure_ascii=False))


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201
    return code


def _problem_error() -> type[Any]:
    """The client's error, without importing the client (and httpx) for verbs that need neither."""
    module = sys.modules.get("app.client")
    return module.ProblemError if module else _Never


class _Never(Exception):
    """Raised by nobody."""

    problem: dict[str, Any]
