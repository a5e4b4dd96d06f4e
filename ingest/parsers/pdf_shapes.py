"""What is drawn on a PDF's page beside its text: rules, rectangles and images."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pypdfium2.raw as pdfium

from ingest.parsers.parsed import Box
from ingest.parsers.pdf_layout import View

THIN = 2.5
"""Points up to which a drawn shape is a line and not an area."""
_LEAST = 6.0
"""Length of a rule: shorter ones are dashes and letters drawn as shapes."""
_MAX_RULES = 2_000
"""More are a drawing or a map, no table."""
_MAX_DEPTH, _MAX_WITHIN = 3, 1_000
"""Of forms in forms, and of objects in all forms of a page: scanners and stamps wrap a page's image once or twice."""


@dataclass(slots=True)
class Shapes:
    rules: list[Box] = field(default_factory=list)
    """Lines, and the sides of outlined rectangles, as boxes; y downward."""
    images: list[float] = field(default_factory=list)
    """The share of the page that each image takes."""


def page_shapes(page: Any, view: View) -> Shapes:
    """Look at each object on a page, and for images in its forms."""
    whole = max(view.width * view.height, 1.0)
    shapes = Shapes()
    forms: list[Any] = []
    edges = [ctypes.c_float() for _ in range(4)]
    pointers = [ctypes.byref(edge) for edge in edges]
    raw, get, kind_of = page.raw, pdfium.FPDFPage_GetObject, pdfium.FPDFPageObj_GetType  # there may be thousands
    for at in range(pdfium.FPDFPage_CountObjects(page)):
        shape = get(raw, at)
        kind = kind_of(shape)
        if kind == pdfium.FPDF_PAGEOBJ_TEXT or not pdfium.FPDFPageObj_GetBounds(shape, *pointers):
            continue
        left, bottom, right, top = (edge.value for edge in edges)
        if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
            shapes.images.append((right - left) * (top - bottom) / whole)
        elif kind == pdfium.FPDF_PAGEOBJ_PATH:
            shapes.rules += _rules(view.box(left, bottom, right, top), shape)
        elif kind == pdfium.FPDF_PAGEOBJ_FORM:
            forms.append(shape)
    shapes.images += (area / whole for area in _areas_within(forms))
    if len(shapes.rules) > _MAX_RULES:
        shapes.rules.clear()
    return shapes


def _areas_within(forms: Iterable[Any]) -> Iterator[float]:
    """The areas of the images in forms, in square points of the page."""
    edges = [ctypes.c_float() for _ in range(4)]
    matrix = pdfium.FS_MATRIX()
    pending, looked = [(form, 1.0, 1) for form in forms], 0
    while pending and looked < _MAX_WITHIN:
        form, scale, depth = pending.pop()
        if pdfium.FPDFPageObj_GetMatrix(form, matrix):
            scale *= abs(matrix.a * matrix.d - matrix.b * matrix.c)
        count = min(pdfium.FPDFFormObj_CountObjects(form), _MAX_WITHIN - looked)
        looked += 1 + max(count, 0)
        for shape in (pdfium.FPDFFormObj_GetObject(form, at) for at in range(count)):
            kind = pdfium.FPDFPageObj_GetType(shape)
            if kind == pdfium.FPDF_PAGEOBJ_FORM and depth < _MAX_DEPTH:
                pending.append((shape, scale, depth + 1))
            elif kind == pdfium.FPDF_PAGEOBJ_IMAGE and pdfium.FPDFPageObj_GetBounds(shape, *edges):
                left, bottom, right, top = (edge.value for edge in edges)
                yield (right - left) * (top - bottom) * scale


def _rules(bounds: Box, shape: Any) -> Iterator[Box]:
    left, top, right, bottom = bounds
    if bottom - top <= THIN or right - left <= THIN:
        if max(right - left, bottom - top) >= _LEAST:
            yield bounds
    elif right - left >= _LEAST and bottom - top >= _LEAST and _has_outline(shape):
        yield from ((left, top, right, top), (left, bottom, right, bottom))
        yield from ((left, top, left, bottom), (right, top, right, bottom))


def _has_outline(shape: Any) -> bool:
    """Whether a shape is drawn with a line; backgrounds of cells and rows are not."""
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    return bool(pdfium.FPDFPath_GetDrawMode(shape, ctypes.byref(fill), ctypes.byref(stroke)) and stroke.value)
