"""One page of a PDF: its lines and tables by its text layer, and, where it is a picture of text, its words by OCR."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from ingest.parsers.ocr import Recognised, recognise
from ingest.parsers.pdf_layout import Line, TextLayer, View, reading_order
from ingest.parsers.pdf_numbers import aligned_tables
from ingest.parsers.pdf_shapes import Shapes, page_shapes
from ingest.parsers.pdf_tables import ruled_tables
from retrieval.errors import DocumentTooLarge, UnreadableDocument

_MAX_CHARACTERS = 5_000_000
_STRAY_LETTERS = 100
"""Below so many letters on a page that images cover, the text layer may be a stamp or a page number, not its text."""
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
_TYPED = {pdfium.FPDF_ANNOT_WIDGET: b"V", pdfium.FPDF_ANNOT_FREETEXT: b"Contents"}
"""Annotations that a reader takes for text, and where each holds it."""
_EMPTY_BYTES = 2
"""Of an empty text: PDFium counts the zero at its end."""
_MAX_ANNOTATIONS = 1_000
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
    filled: int = 0
    """Form fields and free text that were typed onto it, which are no part of its text layer."""


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
        view = View(page)
        return replace(_read(page, view, TextLayer(textpage, view), at + 1), filled=_filled(page))


def _filled(page: Any) -> int:
    count = 0
    for at in range(min(pdfium.FPDFPage_GetAnnotCount(page), _MAX_ANNOTATIONS)):
        note = pdfium.FPDFPage_GetAnnot(page, at)
        key = _TYPED.get(pdfium.FPDFAnnot_GetSubtype(note))
        count += key is not None and pdfium.FPDFAnnot_GetStringValue(note, key, None, 0) > _EMPTY_BYTES
        pdfium.FPDFPage_CloseAnnot(note)
    return count


def _read(page: Any, view: View, layer: TextLayer, number: int) -> Page:
    letters = sum(map(str.isalnum, layer.text))
    objects = pdfium.FPDFPage_CountObjects(page)
    if not letters or layer.without_meaning() > _WITHOUT_MEANING:
        return Page(number, view.height, is_picture=objects > 0)
    lines = layer.lines()
    if len(lines) > _MAX_LINES:
        return Page(number, view.height, lines)
    look = objects <= (_MAX_OBJECTS if _may_hold_tables(lines) else _CHEAP_OBJECTS)
    shapes = page_shapes(page, view) if look else Shapes()
    is_picture = letters < _STRAY_LETTERS and sum(shapes.images) >= _COVERED
    is_scan = is_picture or max(shapes.images, default=0.0) >= _COVERED
    return Page(
        number,
        view.height,
        aligned_tables(reading_order(ruled_tables(lines, shapes.rules, layer.words))),
        figures=0 if is_scan else sum(area >= _FIGURE for area in shapes.images),
        is_picture=is_picture,
    )


def _may_hold_tables(lines: Sequence[Line]) -> bool:
    beside = sum(abs(one.middle - other.middle) < 0.3 * one.size for one, other in itertools.pairwise(lines))
    return beside >= _NEIGHBOURS


def recognise_page(document: Any, at: int, languages: str, name: str) -> Recognised:
    """What OCR reads on a page. Raises what `recognise` does, and PdfiumError or ValueError if it cannot be drawn."""
    with closing(document[at]) as page:
        width, height = page.get_size()
        dpi = min(_DPI, int(72 * (_MAX_PIXELS / max(width * height, 1.0)) ** 0.5))
        if not dpi:
            raise UnreadableDocument(f"{name} has a page that is too large to be drawn.")
        image = page.render(scale=dpi / 72, grayscale=True).to_pil()
    return recognise(image, dpi=dpi, languages=languages, name=name)
