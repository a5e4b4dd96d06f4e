"""PDF by pypdfium2: lines, reading order, paragraphs, and titles told by the size and weight of their letters."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from ingest.parsers.parsed import Box, Draft, File, Parsed, Receipt, assemble
from retrieval.errors import DocumentTooLarge, EmptyDocument, EncryptedDocument, UnreadableDocument

_MAX_PAGES = 20_000
_MAX_PAGE_CHARACTERS = 5_000_000
_PASSWORD_ERROR = 4
_WIDE = 0.55
"""Width of a character in units of the letters' size that a line exceeds only if it has gaps."""
_COLUMN_CHARACTERS = 20
"""Median length of lines that are columns of prose, not cells of a table, which are read row by row."""
_HYPHENS = "\ufffe\x02\xad"
"""How PDFium marks a hyphen that parts a word at the end of a line."""
_BULLET = re.compile(r"(?:[•▪●■◦‣·○–*-]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_BOLD_FONT = re.compile(rb"bold|black|heavy|cmbx|-bd|,bd", re.IGNORECASE)
_LINE = re.compile("[^\r\n\ufffe\x02]+[\ufffe\x02]?")
"""Up to the end of a printed line, or to the hyphen that PDFium puts in its place."""
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60]")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a page; coordinates in points, y downward from the top."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    """Height of the letters with room for descenders, close to the font size."""
    bold: bool


@dataclass(slots=True)
class _Paragraph:
    lines: list[Line]
    page: int

    @property
    def size(self) -> float:
        return round(max(self.lines, key=lambda line: len(line.text)).size * 2) / 2


def parse_pdf(file: File) -> Parsed:
    """A PDF's text layer; pages without one are counted."""
    document = _open(file.data, file.name)
    try:
        pages = len(document)
        if not pages:
            raise EmptyDocument(f"{file.name} has no pages.")
        if pages > _MAX_PAGES:
            raise DocumentTooLarge(
                f"{file.name} has {pages:,} pages; at most {_MAX_PAGES:,} are read. Split it and upload the parts."
            )
        paragraphs: list[_Paragraph] = []
        empty = 0
        for number in range(pages):
            found = _page_paragraphs(document, number, file.name)
            empty += not found
            paragraphs += found
    finally:
        document.close()
    receipt = Receipt(f"pypdfium2 {version('pypdfium2')}", pages=pages, pages_without_text=empty)
    return assemble(_drafts(paragraphs), receipt)


def _open(data: bytes, name: str) -> Any:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # PDFium keeps its last error: of a file without pages it tells what was wrong with the one before.
        if getattr(error, "err_code", None) == _PASSWORD_ERROR and b"/Encrypt" in data:
            raise EncryptedDocument(f"{name} is protected by a password. Save it without one and upload it again.") from error
        raise UnreadableDocument(f"{name} is a damaged PDF ({error}). Open and save it again, then upload it.") from error


def _page_paragraphs(document: Any, number: int, name: str) -> list[_Paragraph]:
    try:
        page = document[number]
    except pypdfium2.PdfiumError:  # a broken page costs itself, not the document; it counts as one without text
        return []
    try:
        lines = reading_order(_lines(page, name))
    finally:
        page.close()
    return [_Paragraph(group, number + 1) for group in paragraphs_of(lines)]


def _lines(page: Any, name: str) -> list[Line]:
    textpage = page.get_textpage()
    try:
        count = textpage.count_chars()
        if count > _MAX_PAGE_CHARACTERS:
            raise DocumentTooLarge(f"{name} has a page of {count:,} characters; at most {_MAX_PAGE_CHARACTERS:,} are read.")
        text = textpage.get_text_range() if count else ""
        if len(text) != count:  # characters beyond the basic plane, or without a meaning, shift the offsets
            text = "".join(chr(pdfium.FPDFText_GetUnicode(textpage, at) or 0x20) for at in range(count))
        measure = _Measure(textpage, page.get_height())
        return [line for start, end in _line_spans(text) for line in measure.lines(text, start, end)]
    finally:
        textpage.close()


def _line_spans(text: str) -> Iterator[tuple[int, int]]:
    for match in _LINE.finditer(text):
        body = match[0]
        start, end = match.start() + len(body) - len(body.lstrip()), match.start() + len(body.rstrip())
        if start < end:
            yield start, end


class _Measure:
    """Asks PDFium where characters stand: two characters a line are enough, and calls are what costs."""

    def __init__(self, textpage: Any, height: float) -> None:
        self._page = textpage
        self._height = height
        self._rect = pdfium.FS_RECTF()
        self._font = ctypes.create_string_buffer(128)

    def lines(self, text: str, start: int, end: int) -> Iterator[Line]:
        """A printed line, parted where a wide gap shows that columns stand side by side."""
        whole = self.line(text, start, end)
        if whole.right - whole.left <= _WIDE * whole.size * (end - start):
            yield whole
            return
        begin = start
        for gap in re.finditer(r"(?<=\S)\s+(?=\S)", text[start:end]):
            before, after = start + gap.start(), start + gap.end()
            if self._box(after)[0] - self._box(before - 1)[2] > 1.5 * whole.size:
                yield self.line(text, begin, before)
                begin = after
        yield self.line(text, begin, end) if begin > start else whole

    def line(self, text: str, start: int, end: int) -> Line:
        first, last = self._box(start), self._box(end - 1)
        left, top, right, bottom = first
        size = bottom - top
        edges = (min(left, last[0]), min(top, last[1]), max(right, last[2]), max(bottom, last[3]))
        return Line(text[start:end], *edges, size, self._bold(start))

    def _bold(self, at: int) -> bool:
        if pdfium.FPDFText_GetFontWeight(self._page, at) >= 600:
            return True
        length = pdfium.FPDFText_GetFontInfo(self._page, at, self._font, len(self._font), None)
        return bool(_BOLD_FONT.search(self._font.raw[: max(length - 1, 0)]))

    def _box(self, at: int) -> Box:
        rect = self._rect
        if not pdfium.FPDFText_GetLooseCharBox(self._page, at, ctypes.byref(rect)):
            return (0.0, 0.0, 0.0, 0.0)
        return rect.left, self._height - rect.top, rect.right, self._height - rect.bottom


def reading_order(lines: list[Line]) -> list[Line]:
    """Lines as they are read. The file's own order is mostly right; only columns that it interleaves are put in order."""
    if len(lines) < 6:  # too few to tell columns
        return lines
    left_edge, right_edge = min(line.left for line in lines), max(line.right for line in lines)
    middle = (left_edge + right_edge) / 2
    slack = (right_edge - left_edge) * 0.02
    sides = [_side(line, middle, slack) for line in lines]
    left, right = sides.count(-1), sides.count(1)
    if min(left, right) < len(lines) * 0.25 or sides.count(0) > len(lines) * 0.3:
        return lines
    changes = sum(a != b for a, b in itertools.pairwise(sides) if a and b)
    lengths = [median(len(line.text) for line, each in zip(lines, sides, strict=True) if each == side) for side in (-1, 1)]
    if changes <= 2 + len(lines) // 15 or min(lengths) < _COLUMN_CHARACTERS:
        return lines
    return _by_column(lines, sides)


def _side(line: Line, middle: float, slack: float) -> int:
    if line.right <= middle + slack:
        return -1
    return 1 if line.left >= middle - slack else 0


def _by_column(lines: Sequence[Line], sides: Sequence[int]) -> list[Line]:
    """Bands between the lines that cross the middle; in each the left column comes first."""
    ordered: list[Line] = []
    band: list[tuple[int, Line]] = []
    for line, side in sorted(zip(lines, sides, strict=True), key=lambda pair: pair[0].top):
        if side == 0:
            ordered += [each for _, each in sorted(band, key=lambda pair: pair[0])]
            ordered.append(line)
            band = []
        else:
            band.append((side, line))
    return ordered + [each for _, each in sorted(band, key=lambda pair: pair[0])]


def paragraphs_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that belong together: the same size, the same column, no more apart than is usual on this page."""
    if not lines:
        return []
    usual = _usual_gap(lines)
    groups = [[lines[0]]]
    for above, line in itertools.pairwise(lines):
        if _same_paragraph(above, line, groups[-1], usual):
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _usual_gap(lines: Sequence[Line]) -> float:
    """Distance from line to line, in units of the letters' size, that is most common."""
    gaps = Counter(
        round((line.top - above.top) / above.size, 1)
        for above, line in itertools.pairwise(lines)
        if above.size > 0 and 0.5 < (line.top - above.top) / above.size < 2.5
    )
    return gaps.most_common(1)[0][0] if gaps else 1.2


def _same_paragraph(above: Line, line: Line, group: Sequence[Line], usual: float) -> bool:
    size = max(above.size, 1.0)
    if abs(line.size - above.size) > 0.15 * size or (line.bold != above.bold and len(group) == 1 and len(above.text) < 100):
        return abs(line.top - above.top) < 0.5 * size and not above.bold  # a change within one printed line
    distance = (line.top - above.top) / size
    if distance < -0.5 or distance > usual + 0.35:
        return False
    if (line.left > above.right and distance > 0.3) or line.right < group[0].left:
        return False
    return not (_BULLET.match(line.text) and distance > 0.3)


def _drafts(paragraphs: Sequence[_Paragraph]) -> Iterator[Draft]:
    body = _body_size(paragraphs)
    sizes = sorted({p.size for p in paragraphs if _is_title_like(p) and p.size >= body * 1.15}, reverse=True)
    depths = {size: min(rank, 6) for rank, size in enumerate(sizes, 1)}
    for paragraph in paragraphs:
        depth = 0
        if _is_title_like(paragraph):
            depth = depths.get(paragraph.size, 0)
            if not depth and _stands_out(paragraph, body):
                depth = min(len(sizes) + 1, 6)
        text = join_lines(paragraph.lines)
        if depth:
            yield Draft("title", " ".join(text.split()), paragraph.page, depth, _box(paragraph.lines))
        else:
            kind = "list" if _BULLET.match(text) else "text"
            yield Draft(kind, text, paragraph.page, 0, _box(paragraph.lines))  # type: ignore[arg-type]


def _body_size(paragraphs: Sequence[_Paragraph]) -> float:
    sizes: Counter[float] = Counter()
    for paragraph in paragraphs:
        sizes[paragraph.size] += sum(len(line.text) for line in paragraph.lines)
    return sizes.most_common(1)[0][0] if sizes else 0.0


def _is_title_like(paragraph: _Paragraph) -> bool:
    characters = sum(len(line.text) for line in paragraph.lines)
    text = paragraph.lines[-1].text
    return (
        len(paragraph.lines) <= 3
        and characters <= 200
        and sum(map(str.isalpha, text)) * 2 > len(text)
        and text[-1] not in ".,;:"
    )


def _stands_out(paragraph: _Paragraph, body: float) -> bool:
    """Bold, on one line of its own, in the size of the text."""
    line = paragraph.lines[0]
    return len(paragraph.lines) == 1 and line.bold and paragraph.size >= body * 0.95 and len(line.text) <= 100


def _box(lines: Sequence[Line]) -> Box:
    left, top = min(line.left for line in lines), min(line.top for line in lines)
    right, bottom = max(line.right for line in lines), max(line.bottom for line in lines)
    return round(left, 1), round(top, 1), round(right, 1), round(bottom, 1)


def join_lines(lines: Sequence[Line]) -> str:
    """Lines as running text: words parted by a hyphen whole again; a line that ends early keeps its end."""
    margin = max(line.right for line in lines)
    width = margin - min(line.left for line in lines)
    text = lines[0].text
    for above, line in itertools.pairwise(lines):
        if (text[-1:] in _HYPHENS and text[-1:]) or (text.endswith("-") and text[-2:-1].isalpha() and line.text[:1].islower()):
            text = text[:-1]
        elif _CJK.match(text[-1:]) and _CJK.match(line.text):
            pass
        elif abs(line.top - above.top) < 0.5 * above.size or above.right > margin - 0.2 * width:
            text += " "
        else:
            text += "\n"
        text += line.text
    return text.rstrip(_HYPHENS)
