"""One page of a PDF: its lines and tables by its text layer, and, where it is a picture of text, its words by OCR."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from ingest.parsers.ocr import Recognised, recognise
from ingest.parsers.pdf_layout import Line, TextLayer, reading_order
from ingest.parsers.pdf_numbers import aligned_tables
from ingest.parsers.pdf_shapes import Shapes, page_shapes
from ingest.parsers.pdf_tables import ruled_tables
from retrieval.errors import DocumentTooLarge

_MAX_CHARACTERS = 5_000_000
_STRAY_LETTERS = 100
"""Below so many letters on a page that an image covers, the text layer is a stamp or a page number, not its text."""
_COVERED = 0.5
_WITHOUT_MEANING = 0.5
"""Share of characters without a meaning beyond which a text layer says nothing."""
_FIGURE = 0.02
"""Share of a page that an image takes at least to be more than an ornament."""
_CHEAP_OBJECTS, _MAX_OBJECTS = 1_000, 3_000
"""Objects on a page that are looked at in any case, and where it may hold a table; each costs some microseconds."""
_NEIGHBOURS = 3
"""Pairs of lines side by side from which on a page may hold a table."""
_MAX_LINES = 4_000
"""On a page; beyond, nothing was laid out for a reader, and no order is looked for."""
_DPI = 200
_MAX_PIXELS = 30_000_000
"""A page of 60 cm by 80 cm at 200 dpi; larger ones are drawn coarser."""


@dataclass(frozen=True, slots=True)
class Page:
    """What is on a page; `lines` are in reading order and hold its tables too."""

    number: int
    """From 1."""
    height: float = 0.0
    lines: Sequence[Line] = ()
    figures: int = 0
    """Images in its text."""
    is_picture: bool = False
    """Whether its text, or most of it, can be had by OCR only."""
    stamped: bool = False
    """Whether turned letters at its margin were left out."""


def read_page(document: Any, at: int, name: str) -> Page:
    """The page with this index. A broken page costs itself, not the document: it is one without text."""
    try:
        page = document[at]
    except pypdfium2.PdfiumError:
        return Page(at + 1)
    with closing(page), closing(page.get_textpage()) as textpage:
        count = textpage.count_chars()
        if count > _MAX_CHARACTERS:
            raise DocumentTooLarge(f"{name} has a page of {count:,} characters; at most {_MAX_CHARACTERS:,} are read.")
        return _read(page, TextLayer(textpage, page.get_height()), at + 1)


def _read(page: Any, layer: TextLayer, number: int) -> Page:
    letters = sum(map(str.isalnum, layer.text))
    objects = pdfium.FPDFPage_CountObjects(page)
    if not letters or layer.without_meaning() > _WITHOUT_MEANING:
        return Page(number, page.get_height(), is_picture=objects > 0)
    printed = layer.lines()
    if len(printed) > _MAX_LINES:
        return Page(number, page.get_height(), printed)
    lines = layer.without_stamps(printed)
    look = objects <= (_MAX_OBJECTS if _may_hold_tables(lines) else _CHEAP_OBJECTS)
    shapes = page_shapes(page) if look else Shapes()
    covered = max(shapes.images, default=0.0) >= _COVERED
    return Page(
        number,
        page.get_height(),
        aligned_tables(reading_order(ruled_tables(lines, shapes.rules, layer.words))),
        figures=0 if covered else sum(area >= _FIGURE for area in shapes.images),
        is_picture=covered and letters < _STRAY_LETTERS,
        stamped=len(lines) < len(printed),
    )


def _may_hold_tables(lines: Sequence[Line]) -> bool:
    beside = sum(abs(one.middle - other.middle) < 0.3 * one.size for one, other in itertools.pairwise(lines))
    return beside >= _NEIGHBOURS


def recognise_page(document: Any, at: int, languages: str, name: str) -> Recognised:
    """What OCR reads on a page. Raises what `recognise` does."""
    with closing(document[at]) as page:
        width, height = page.get_size()
        dpi = min(_DPI, int(72 * (_MAX_PIXELS / max(width * height, 1.0)) ** 0.5))
        image = page.render(scale=dpi / 72, grayscale=True).to_pil()
    return recognise(image, dpi=dpi, languages=languages, name=name)
