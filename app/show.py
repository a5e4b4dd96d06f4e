"""What verbs print for people: tables and answers to stdout, progress to stderr and only to a terminal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from app.doctor import Finding  # the whole service, which a verb with --url need not load

PIPE_WIDTH = 10_000
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
CONTROL = dict.fromkeys((*range(9), *range(11, 32), 127, *range(128, 160)), "�")
"""What a document or a file name must not be able to send to a terminal."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar; call what it gives with how many are done, of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as columns, whole values: a pipe cuts nothing."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=not out.is_terminal)
    for row in rows:
        shown.add_row(*(escape(_cell(row.get(column))) for column in columns))
    out.print(shown) if rows else out.print("none")


def summary(documents: Sequence[dict[str, Any]]) -> None:
    """What became of an ingest: one line for each document that is not simply ready, then the counts."""
    for document in documents:
        reason = _reason(document)
        if reason:
            out.print(f"{document['status']:<16} {escape(_cell(document['name']))}: {escape(_cell(reason))}")
    counts = Counter("unchanged" if document.get("duplicate") else document["status"] for document in documents)
    out.print(", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.most_common()))


def document(found: dict[str, Any]) -> None:
    """One document: what it is, what was read of it, and why it cannot be relied on."""
    rows = [(name, found[name]) for name in ("id", "name", "collection", "status", "version", "media_type", "size")]
    if found["parent_id"]:
        rows.append(("part of", found["parent_id"]))
    rows += _receipt_rows(found["receipt"]) if found["receipt"] else []
    if reason := _reason(found):
        rows.append(("reason", reason))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"[bold]{name:<{width}}[/bold]  {escape(_cell(value))}")


def _receipt_rows(receipt: dict[str, Any]) -> list[tuple[str, Any]]:
    """The lines of a receipt that say something about this kind of file."""
    rows = [("parser", receipt["parser"])]
    if receipt["encoding"]:
        replaced, removed = receipt["replaced_characters"], receipt["removed_characters"]
        rows.append(("encoding", f"{receipt['encoding']}, {replaced:,} characters replaced, {removed:,} removed"))
    if receipt["pages"] is not None:
        rows.append(("pages", f"{receipt['pages']:,}, {receipt['pages_without_text']:,} without text"))
    if receipt["ocr_pages"]:
        sure = "no word recognised" if receipt["ocr_confidence"] is None else f"confidence {receipt['ocr_confidence']:g} of 100"
        rows.append(("ocr", f"{receipt['ocr_pages']:,} pages, {sure}"))
    rows.append(("text", f"{receipt['characters']:,} characters in {receipt['chunks']:,} chunks"))
    rows.append(("tokens", f"{receipt['tokens']:,}, {receipt['tokens_cut']:,} cut off"))
    rows.append(("embedded", f"{receipt['embedded']:,} chunks, {receipt['cached']:,} known before"))
    if receipt["tables_seen"]:
        rows.append(("tables", f"{receipt['tables']:,} kept of {receipt['tables_seen']:,}"))
    if receipt["images_skipped"]:
        rows.append(("images", f"{receipt['images_skipped']:,} not read"))
    if receipt["parts"]:
        failed = f", {receipt['failed_parts']:,} failed" if receipt["failed_parts"] else ""
        rows.append(("parts", f"{receipt['parts']:,} documents{failed}"))
    if receipt["stages"]:
        rows.append(("seconds", ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in receipt["stages"].items())))
    rows += [("note", note) for note in receipt["notes"]]
    return rows


def answer(found: dict[str, Any]) -> None:
    """The answer, then its footnotes."""
    if found["status"] == "abstained":
        out.print(f"No answer: {escape(_cell(found['reason']))}")
        return
    out.print(escape(_cell(found["answer"])))
    if found["reason"]:
        out.print(f"(in part: {escape(_cell(found['reason']))})")
    out.print()
    for citation in found["citations"]:
        place = [
            citation["document_name"],
            *([f"page {citation['page']}"] if citation["page"] else []),
            *citation["headings"][-1:],
        ]
        doubt = "" if citation["verified"] else "  (not found in the source)"
        out.print(f"[dim]{escape('[' + str(citation['marker']) + ']')}[/dim] {escape(_cell(', '.join(place)))}{doubt}")
        out.print(f"    {escape(_cell(' '.join(citation['quote'].split())))}")


def hits(found: dict[str, Any]) -> None:
    """The hits, best first."""
    for number, hit in enumerate(found["hits"], 1):
        page = f", page {hit['page']}" if hit["page"] else ""
        scores = f"score {hit['score']:.3f}, vector {hit['vector_score']:.3f}, keyword {hit['keyword_score']:.2f}"
        out.print(f"{number}. [bold]{escape(_cell(hit['document_name']))}[/bold]{page}  [dim]{scores}[/dim]")
        out.print(f"   {escape(_cell(' '.join(hit['text'].split())[:300]))}")
    if not found["hits"]:
        out.print("none")


def finding(found: Finding) -> None:
    mark = "[green]ok[/green]     " if found.state == "ok" else "[red]problem[/red]"
    out.print(f"{mark}  {escape(_cell(found.check))}: {escape(_cell(found.detail))}")


def _reason(document: dict[str, Any]) -> str | None:
    if document.get("error"):
        return str(document["error"]["detail"])
    return (document.get("receipt") or {}).get("needs_attention")


def _cell(value: Any) -> str:
    return "" if value is None else str(value).translate(CONTROL)
