"""The lines of a PDF's page: where they stand, in which order they are read, and which of them make a paragraph."""

from __future__ import annotations

import ctypes
import itertools
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pypdfium2.raw as pdfium

from ingest.parsers.parsed import Box

BULLET = re.compile(r"(?:[•▪●■◦‣·○–*-]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")

_WIDE = 0.55
"""Width of a character in units of the letters' size that a line exceeds only if it has gaps."""
_COLUMN_CHARACTERS = 20
"""Median length of lines that are columns of prose, not cells of a table, which are read row by row."""
_CELL_CHARACTERS = 25
"""Median length of lines that are the cells of a column."""
_AMOUNTS = re.compile(r"(?:\s[$€£(]*(?:\d[\d,.]*|[—–])[)%]*){2}$")
"""The end of a line that is probably a row of a table, however long its label is."""
_END_HYPHEN = re.compile("[\ufffe\x02\xad]$")
"""What PDFium puts in the place of a hyphen or minus at the end of a line."""
_MOST_RUNS = 50
"""Columns that are put together to rows; each costs as much as all before it."""
_BOLD_FONT = re.compile(rb"bold|black|heavy|cmbx|-bd|,bd", re.IGNORECASE)
_LINE = re.compile("[^\r\n\ufffe\x02]+[\ufffe\x02]?")
"""Up to the end of a printed line, or to the hyphen that PDFium puts in its place."""
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60]")
_LONGEST_WORD = 60
_OPTION = re.compile(r"(?:^|\s)--[\w-]+$")
"""Of a command, as `--no-` of `--no-verify`."""
_LAST_WORD, _FIRST_WORD = re.compile(r"[^\W_]+$"), re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a page, or a table in the place of its lines; coordinates in points, y downward from the top."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    """Height of the letters with room for descenders, close to the font size."""
    bold: bool = False
    start: int = 0
    """The position of its first character among those of the page."""
    table: bool = False

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


class View:
    """A page as a reader sees it: cut to its box, which may begin anywhere, and turned."""

    def __init__(self, page: Any) -> None:
        self._left, self._bottom, self._right, self._top = page.get_bbox()
        self._turned: int = page.get_rotation()
        self.width: float = page.get_width()
        self.height: float = page.get_height()

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        """A box in the coordinates of PDF as one from the page's top left, y downward."""
        match self._turned:
            case 90:
                return bottom - self._bottom, left - self._left, top - self._bottom, right - self._left
            case 180:
                return self._right - right, bottom - self._bottom, self._right - left, top - self._bottom
            case 270:
                return self._top - top, self._right - right, self._top - bottom, self._right - left
            case _:
                return left - self._left, self._top - top, right - self._left, self._top - bottom


class TextLayer:
    """The characters of a page. PDFium is asked where two of a line stand, which is enough: calls are what costs."""

    def __init__(self, textpage: Any, view: View) -> None:
        self._page = textpage
        self._view = view
        self._rect = pdfium.FS_RECTF()
        self._font = ctypes.create_string_buffer(128)
        count = textpage.count_chars()
        text = textpage.get_text_range() if count else ""
        if len(text) != count:  # characters beyond the basic plane, or without a meaning, shift the offsets
            text = "".join(chr(pdfium.FPDFText_GetUnicode(textpage, at) or 0x20) for at in range(count))
        self.text: str = text

    def lines(self) -> list[Line]:
        """The printed lines in the file's order."""
        return [line for match in _LINE.finditer(self.text) for line in self._parted(*_trimmed(match))]

    def without_meaning(self, samples: int = 40) -> float:
        """The share of characters, by a sample, of which the font does not say what they mean."""
        places = range(0, len(self.text), max(len(self.text) // samples, 1))
        bad: int = sum(pdfium.FPDFText_HasUnicodeMapError(self._page, at) == 1 for at in places)
        return bad / max(len(places), 1)

    def words(self, line: Line) -> Iterator[Line]:
        for word in re.finditer(r"\S+", line.text):
            yield self._line(line.start + word.start(), line.start + word.end())

    def _parted(self, start: int, end: int) -> Iterator[Line]:
        """A printed line, parted where a wide gap shows that columns stand side by side."""
        if start >= end:
            return
        whole = self._line(start, end)
        if whole.right - whole.left <= _WIDE * whole.size * (end - start) and not _AMOUNTS.search(whole.text):
            yield whole
            return
        begin = start
        for gap in re.finditer(r"(?<=\S)\s+(?=\S)", self.text[start:end]):
            before, after = start + gap.start(), start + gap.end()
            next_sum = self.text[after] in "$€£¥" and self.text[before - 1] in ")%0123456789"
            if next_sum or self._box(after)[0] - self._box(before - 1)[2] > 1.5 * whole.size:
                yield self._line(begin, before)
                begin = after
        yield self._line(begin, end) if begin > start else whole

    def _line(self, start: int, end: int) -> Line:
        first, last = self._box(start), self._box(end - 1)
        left, top, right, bottom = first
        edges = (min(left, last[0]), min(top, last[1]), max(right, last[2]), max(bottom, last[3]))
        return Line(_END_HYPHEN.sub("-", self.text[start:end]), *edges, bottom - top, self._bold(start), start)

    def _bold(self, at: int) -> bool:
        if pdfium.FPDFText_GetFontWeight(self._page, at) >= 600:
            return True
        length = pdfium.FPDFText_GetFontInfo(self._page, at, self._font, len(self._font), None)
        return bool(_BOLD_FONT.search(self._font.raw[: max(length - 1, 0)]))

    def _box(self, at: int) -> Box:
        rect = self._rect
        if not pdfium.FPDFText_GetLooseCharBox(self._page, at, ctypes.byref(rect)):
            return (0.0, 0.0, 0.0, 0.0)
        return self._view.box(rect.left, rect.bottom, rect.right, rect.top)


def _trimmed(match: re.Match[str]) -> tuple[int, int]:
    body = match[0]
    return match.start() + len(body) - len(body.lstrip()), match.start() + len(body.rstrip())


def reading_order(lines: list[Line]) -> list[Line]:
    """Lines as they are read. The file's own order is mostly right; some interleave columns, some part rows of cells."""
    if len(lines) < 6:  # too few to tell columns
        return lines
    left_edge, right_edge = min(line.left for line in lines), max(line.right for line in lines)
    middle = (left_edge + right_edge) / 2
    slack = (right_edge - left_edge) * 0.02
    sides = [_side(line, middle, slack) for line in lines]
    left, right = sides.count(-1), sides.count(1)
    if min(left, right) < len(lines) * 0.25 or sides.count(0) > len(lines) * 0.3:
        return _by_row(lines)
    lengths = [median(len(line.text) for line, each in zip(lines, sides, strict=True) if each == side) for side in (-1, 1)]
    if min(lengths) < _COLUMN_CHARACTERS:
        return _by_row(lines)
    changes = sum(a != b for a, b in itertools.pairwise(sides) if a and b)
    return lines if changes <= 2 + len(lines) // 15 else _by_column(lines, sides)


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


def _by_row(lines: Sequence[Line]) -> list[Line]:
    """Columns of cells, which some files hold one after the other, put together to rows."""
    ordered: list[Line] = []
    block: list[Line] = []
    merged = 0
    for run in _downward(lines):
        if block and merged < _MOST_RUNS and _is_column_beside(block, run):
            merged += 1
            block = [line for row in rows_of(sorted([*block, *run], key=lambda line: line.middle)) for line in row]
        else:
            ordered += block
            block, merged = run, 0
    return ordered + block


def _downward(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The lines in runs, within which none stands higher than the one before."""
    run: list[Line] = []
    for line in lines:
        if run and line.middle < run[-1].middle - 0.6 * run[-1].size:
            yield run
            run = []
        run.append(line)
    if run:
        yield run


def _is_column_beside(block: Sequence[Line], run: Sequence[Line]) -> bool:
    """Whether most of a run are cells at the height of a row of the block, to the right of what stands there."""
    if median(len(line.text) for line in run) > _CELL_CHARACTERS or any(line.table for line in run):
        return False
    heights = [line.middle for line in block]
    beside = 0
    for line in run:
        first = bisect_left(heights, line.middle - 0.3 * line.size)
        row = list(itertools.takewhile(lambda other: other.middle <= line.middle + 0.3 * line.size, block[first:]))  # noqa: B023
        beside += any(other.right <= line.left + 1 for other in row)
    return beside * 2 > len(run)


def rows_of(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Neighbours that stand at the same height, each row from left to right."""
    row: list[Line] = []
    for line in lines:
        if row and (line.table or row[0].table or abs(line.middle - row[0].middle) > 0.45 * max(line.size, row[0].size)):
            yield sorted(row, key=lambda each: each.left)
            row = []
        row.append(line)
    if row:
        yield sorted(row, key=lambda each: each.left)


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
    if above.table or line.table:
        return False
    size = max(above.size, 1.0)
    if abs(line.size - above.size) > 0.15 * size or (line.bold != above.bold and len(group) == 1 and len(above.text) < 100):
        return abs(line.top - above.top) < 0.5 * size and not above.bold  # a change within one printed line
    distance = (line.top - above.top) / size
    if distance < -0.5 or distance > usual + 0.35:
        return False
    if (line.left > above.right and distance > 0.3) or line.right < group[0].left:
        return False
    return not (BULLET.match(line.text) and distance > 0.3)


def box(lines: Sequence[Line]) -> Box:
    """Around all of them."""
    left, top = min(line.left for line in lines), min(line.top for line in lines)
    right, bottom = max(line.right for line in lines), max(line.bottom for line in lines)
    return round(left, 1), round(top, 1), round(right, 1), round(bottom, 1)


def join_lines(lines: Sequence[Line], compounds: Collection[str] = ()) -> str:
    """Lines as running text: words parted by a hyphen whole again; a line that ends early keeps its end.

    `compounds` are the words, in lower case, that are written with a hyphen elsewhere.
    """
    margin = max(line.right for line in lines)
    width = margin - min(line.left for line in lines)
    text = lines[0].text
    for above, line in itertools.pairwise(lines):
        if text.endswith("-") and text[-2:-1].isalnum() and line.text[:1].isalnum():
            text = text[:-1] + _hyphen(text[:-1], line.text, compounds)
        elif _CJK.match(text[-1:]) and _CJK.match(line.text):
            pass
        elif abs(line.top - above.top) < 0.5 * above.size or above.right > margin - 0.2 * width:
            text += " "
        else:
            text += "\n"
        text += line.text
    return text.replace("\xad", "")


def _hyphen(before: str, after: str, compounds: Collection[str]) -> str:
    """What stood at the end of a line: nothing if it parted a word, a hyphen if the word has one."""
    first, second = _LAST_WORD.search(before[-_LONGEST_WORD:]), _FIRST_WORD.match(after)
    if first is None or second is None or f"{first[0]}-{second[0]}".lower() in compounds:
        return "-"
    if len(first[0]) == 1 or first[0][-1].isdigit() or second[0][0].isdigit() or _OPTION.search(before[-_LONGEST_WORD:]):
        return "-"
    if first[0][-1].isupper() or second[0][0].isupper():  # a word parted in capitals, or `non-GAAP` and the rating `BBB-`
        return "" if first[0].isupper() and second[0].isupper() else "-"
    return ""
