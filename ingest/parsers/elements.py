"""The border to `unstructured`: offline, without spaCy, and its elements as our drafts.

Import `unstructured` through this module only: what is set here must be set before its first import.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

from ingest.parsers.parsed import Draft, table_text

os.environ["DO_NOT_TRACK"] = "1"  # else importing it makes a blocking request, up to 10 s behind a firewall
os.environ["UNSTRUCTURED_DISABLE_NOTICE"] = "1"

VERSION = f"unstructured {version('unstructured')}"

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def _sent_tokenize(text: str) -> list[str]:
    return [part for part in _SENTENCE.split(text) if part]


def _pos_tag(text: str) -> list[tuple[str, str]]:
    return [(word, "VB") for word in text.split()]


def replace_classifier() -> None:
    """Put rules where `unstructured` keeps a spaCy model that it would download.

    It tells prose from other text with it, which we do not use: titles come from headings and styles alone.
    """
    rules: Any = types.ModuleType("unstructured.nlp.tokenize")
    rules.sent_tokenize = _sent_tokenize
    rules.word_tokenize = str.split
    rules.pos_tag = _pos_tag
    sys.modules.setdefault("unstructured.nlp.tokenize", rules)


replace_classifier()


def load() -> None:
    """Import the partitioners that we use, ahead of the first document."""
    for module in ("docx", "pptx"):
        import_module(f"unstructured.partition.{module}")


_BULLET_JOIN = 4000
"""Characters of a list after which a new list block begins, so that no block grows without bound."""


def drafts(elements: Iterable[Any]) -> Iterator[Draft]:
    """Elements as drafts: neighbouring list items become one list, tables become rows."""
    items: list[str] = []
    items_page: int | None = None
    length = 0
    for element in elements:
        category, page, text = element.category, element.metadata.page_number, element.text
        if category == "ListItem":
            if items and (page != items_page or length > _BULLET_JOIN):
                yield Draft("list", "\n".join(items), items_page)
                items, length = [], 0
            items_page = page
            items.append(f"- {text}")
            length += len(text)
            continue
        if items:
            yield Draft("list", "\n".join(items), items_page)
            items, length = [], 0
        yield from _one(element, category, page, text)
    if items:
        yield Draft("list", "\n".join(items), items_page)


def _one(element: Any, category: str, page: int | None, text: str) -> Iterator[Draft]:
    if category == "Title":
        yield Draft("title", " ".join(text.split()), page, (element.metadata.category_depth or 0) + 1)
    elif category == "Table":
        rows = table_rows(element.metadata.text_as_html) if element.metadata.text_as_html else []
        yield Draft("table", table_text(rows) or text, page)
    elif category == "CodeSnippet":
        yield Draft("code", text, page)
    elif category not in {"PageBreak", "Image"}:
        yield Draft("text", text, page)


def table_rows(markup: str) -> list[list[str]]:
    """The cells of an HTML table, row by row; a table inside a cell stays text of that cell."""
    from lxml import html

    table = html.fragment_fromstring(markup, create_parent=True).find(".//table")
    if table is None:
        return []
    rows = table.xpath("./tr | ./thead/tr | ./tbody/tr | ./tfoot/tr")
    return [[cell.text_content() for cell in row if cell.tag in {"td", "th"}] for row in rows]
