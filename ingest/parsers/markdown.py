"""Markdown, read in linear time by markdown-it's block rules; the text of each block stays as it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ingest.parsers.decode import decode
from ingest.parsers.html import html_drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_DATA_URI = re.compile(r"\(data:[^()\s]{100,}\)")
_HEADING_MARKUP = re.compile(r"[ \t]*\{[ ]?#[\w-]+[ ]?\}[ \t]*$|`|\*\*|__")
_CELL_EDGE = re.compile(r"\s*(?<!\\)\|\s*")


def parse_markdown(file: File) -> Parsed:
    """CommonMark with tables and front matter."""
    text, encoding, replaced, removed = decode(file.data)
    text, images = _DATA_URI.subn("(image)", text)
    receipt = Receipt(f"markdown-it-py {version('markdown-it-py')}", encoding=encoding, replaced_characters=replaced,
                      removed_characters=removed, images_skipped=images)  # fmt: skip
    return assemble(markdown_drafts(text), receipt)


def markdown_drafts(text: str) -> Iterator[Draft]:
    """Blocks of Markdown; what stands inside lists and quotes stays part of them."""
    front = _FRONT_MATTER.match(text)
    if front:
        yield Draft("code", front[1])
        text = text[front.end() :]
    # Inline rules are what hostile input makes slow ("[[[[["), and we keep inline markup as written.
    reader = MarkdownIt("commonmark").enable("table").disable("inline")
    lines = text.split("\n")
    yield from _blocks(reader.parse(text), lines)


def _blocks(tokens: Sequence[Token], lines: list[str]) -> Iterator[Draft]:
    for at, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        source = "\n".join(lines[token.map[0] : token.map[1]])
        if token.type == "heading_open":
            title = _HEADING_MARKUP.sub("", tokens[at + 1].content)
            yield Draft("title", " ".join(title.split()), None, int(token.tag[1]))
        elif token.type in {"fence", "code_block"}:
            yield Draft("code", token.content if token.content.strip() else source)
        elif token.type == "html_block":
            yield from html_drafts(source)[0]
        elif token.type == "table_open":
            yield Draft("table", _table(source))
        elif token.type != "hr":
            yield Draft("list" if token.type.endswith("list_open") else "text", source)


def _table(source: str) -> str:
    header, _, *rows = source.split("\n")
    return "\n".join(_CELL_EDGE.sub(" | ", line).strip(" |") for line in (header, *rows))
