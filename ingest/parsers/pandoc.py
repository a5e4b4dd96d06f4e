"""OpenDocument text, e-books, rich text, reStructuredText and Org, by pandoc, which makes web pages of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ingest.parsers.decode import decode
from ingest.parsers.html import html_drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble
from ingest.parsers.programs import STDOUT, run, version
from ingest.parsers.rtf import in_utf8

_TEMPLATE = b"""<html><body>
$if(title)$<h1>$title$</h1>$endif$
$if(author)$<p>$for(author)$$author$$sep$, $endfor$</p>$endif$
$body$
</body></html>
"""
_OPTIONS = (
    "--to=html",
    "--template=template.html",
    "--shift-heading-level-by=1",  # the document's title is the outermost
    "--wrap=none",
    "--no-highlight",
    "--sandbox",  # a document may ask for other files
    *("+RTS", "-M768M", "-RTS"),
)


def _parse(source: str, file: File) -> Parsed:
    """A document in the format that pandoc calls `source`."""
    files = {f"input.{source}": file.data, "template.html": _TEMPLATE}
    page = run("pandoc", [f"input.{source}", f"--from={source}", *_OPTIONS], name=file.name, files=files, result=STDOUT)
    drafts, images, notes = html_drafts(page.decode("utf-8", "replace"))
    return assemble(_raised(drafts), Receipt(version("pandoc"), images_skipped=images, notes=tuple(notes)))


def _parse_text(source: str, file: File) -> Parsed:
    """A text with markup; pandoc reads UTF-8 only."""
    text, encoding, replaced, removed = decode(file.data)
    parsed = _parse(source, replace(file, data=text.encode()))
    removed += parsed.receipt.removed_characters
    return replace(
        parsed,
        receipt=replace(parsed.receipt, encoding=encoding, replaced_characters=replaced, removed_characters=removed),
    )


def _raised(drafts: list[Draft]) -> list[Draft]:
    """Without a title, the outermost headings take its place."""
    least = min((draft.depth for draft in drafts if draft.depth), default=1)
    return [draft._replace(depth=draft.depth - least + 1) if draft.depth else draft for draft in drafts]


def parse_rtf(file: File) -> Parsed:
    """A rich-text document."""
    return _parse("rtf", replace(file, data=in_utf8(file.data)))


parse_odt, parse_epub = (partial(_parse, source) for source in ("odt", "epub"))
parse_rst, parse_org = (partial(_parse_text, source) for source in ("rst", "org"))
