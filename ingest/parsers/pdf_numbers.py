"""Tables without rules on a PDF's page: rows whose numbers stand below each other, as financial statements have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ingest.parsers.parsed import table_text
from ingest.parsers.pdf_layout import Line
from ingest.parsers.pdf_tables import is_amount, table_line

_YEAR = re.compile(r"(?:(?:FY|Q[1-4]|H[12])\s*'?)?(?:19|20)\d\d[AEa-e*]?|\d{1,2}/\d{1,2}/\d{2,4}")
_PREFIX = re.compile(r"(?:US)?[$€£¥(]+")
_SPACED_SIGN = re.compile(r"^([$€£¥])\s+(?=[\d(—–-])")
_NEXT_SIGN = re.compile(r"(?<=[\d)%—–-])\s+([$€£¥])$")
_SUFFIX = re.compile(r"[)%]+(?:\s*pts)?|\)%")
_DIGIT = 0.55
"""Width of a digit in units of the letters' size."""
_LEAST_ROWS, _MOST_ROWS = 3, 300
_LABEL_CHARACTERS = 110
_HEADER_ROWS, _HEADER_CHARACTERS = 6, 60
_HANG = 60.0
"""Points by which a heading may begin left of the numbers below it."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What is printed at one height, its cells from left to right."""

    cells: tuple[Line, ...]
    lines: tuple[Line, ...]
    amounts: tuple[Line, ...]
    is_data: bool
    """Whether it is a label with amounts beside it, or amounts alone."""


def aligned_tables(lines: Sequence[Line]) -> list[Line]:
    """The lines of a page, rows of numbers that stand below each other replaced by one that holds the table."""
    rows = [_row(group) for group in _printed_rows(lines)]
    result: list[Line] = []
    at = done = 0
    while at < len(rows):
        end = _run_end(rows, at)
        bands = _bands(rows[at:end])
        if not bands:
            result += rows[at].lines
            at += 1
            continue
        first = _header_start(rows, at, done, bands)
        for row in rows[first:at]:
            del result[len(result) - len(row.lines) :]
        result.append(_aligned_table(rows[first:end], bands))
        at = done = end
    return result


def _printed_rows(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Neighbours in the file that stand at the same height."""
    group: list[Line] = []
    for line in lines:
        if group and not (_beside(group[-1], line) and not line.table and not group[-1].table):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _beside(left: Line, right: Line) -> bool:
    return abs(left.middle - right.middle) < 0.45 * max(left.size, right.size) and right.left >= left.right - 1


def _row(lines: Sequence[Line]) -> _Row:
    """Lines as cells: a currency's sign belongs to the number after it, brackets and units to the one before.

    The place of a cell is that of its number alone, so that columns stay apart.
    """
    cells: list[Line] = []
    sign = ""
    for line, following in itertools.zip_longest(lines, lines[1:]):
        cell, next_sign = _without_sign(line) if cells and following else (line, "")
        if cells and not sign and _SUFFIX.fullmatch(cell.text) and is_amount(cells[-1].text):
            cells[-1] = replace(cells[-1], text=cells[-1].text + cell.text)
        elif following and _PREFIX.fullmatch(cell.text) and is_amount(following.text):
            next_sign = sign + cell.text
        else:
            cells.append(replace(cell, text=sign + _SPACED_SIGN.sub(r"\1", cell.text)))
        sign = next_sign
    amounts = tuple(cell for cell in cells if is_amount(cell.text))
    return _Row(tuple(cells), tuple(lines), amounts, _is_data(cells, amounts))


def _is_data(cells: Sequence[Line], amounts: Sequence[Line]) -> bool:
    first = cells[0]
    others = cells if is_amount(first.text) else cells[1:]
    return (
        bool(amounts)
        and len(cells) > 1
        and len(first.text) <= _LABEL_CHARACTERS
        and len(others) <= 2 * len(amounts)
        and all(len(cell.text) <= 30 for cell in others)
    )


def _without_sign(line: Line) -> tuple[Line, str]:
    """A number without the currency's sign of the next one, and that sign."""
    match = _NEXT_SIGN.search(line.text)
    if match is None:
        return line, ""
    number = line.text[: match.start()]
    return replace(line, text=number, right=min(line.right, line.left + _DIGIT * line.size * len(number))), match[1]


def _run_end(rows: Sequence[_Row], start: int) -> int:
    """Where the table that begins at a row ends: labels without amounts may stand between its rows."""
    if not rows[start].is_data:
        return start
    end, at = start + 1, start + 1
    while at < min(len(rows), start + _MOST_ROWS) and at - end < _LEAST_ROWS and _follows(rows[at - 1], rows[at]):
        at += 1
        if rows[at - 1].is_data:
            end = at
    return end


def _follows(above: _Row, row: _Row) -> bool:
    first, before = row.cells[0], above.cells[0]
    near = 0 < first.middle - before.middle < 4 * max(before.size, first.size)
    return near and not first.table and (row.is_data or (len(row.cells) == 1 and len(first.text) <= _LABEL_CHARACTERS))


def _bands(rows: Sequence[_Row]) -> list[tuple[float, float]]:
    """The columns of amounts, from left to right; none if the amounts do not stand below each other."""
    data = [[cell for cell in row.amounts if cell is not row.cells[0]] for row in rows if row.is_data]
    cells = [cell for row in data for cell in row if not _YEAR.fullmatch(cell.text)]
    bands: list[tuple[float, float]] = []
    for cell in sorted(cells, key=lambda cell: cell.left):
        if bands and cell.left < bands[-1][1]:
            bands[-1] = (bands[-1][0], max(bands[-1][1], cell.right))
        else:
            bands.append((cell.left, cell.right))
    return bands if _are_columns(data, bands) else []


def _are_columns(data: Sequence[Sequence[Line]], bands: Sequence[tuple[float, float]]) -> bool:
    """Whether the amounts of these rows stand below each other, and are enough to be no chance."""
    counts = [sum(_overlaps(cell, band) for row in data for cell in row) for band in bands]
    full = sum(len(row) == len(bands) for row in data)
    if len(bands) > 1 and full == len(data) > 1:
        return True
    alone = counts.count(1)
    return len(data) >= _LEAST_ROWS and alone * 2 <= len(bands) and sum(counts) >= 2 * len(bands) > 0


def _overlaps(cell: Line, band: tuple[float, float]) -> bool:
    return cell.left < band[1] and cell.right > band[0]


def _header_start(rows: Sequence[_Row], start: int, least: int, bands: Sequence[tuple[float, float]]) -> int:
    """Where the lines above the first row of amounts begin that stand over its columns, not before `least`."""
    first = start
    for at in range(start - 1, max(start - 1 - _HEADER_ROWS, least - 1), -1):
        if not _may_head(rows[at], rows[at + 1]):
            break
        if _is_over(rows[at], bands):
            first = at
    return first


def _may_head(row: _Row, below: _Row) -> bool:
    near = 0 < below.cells[0].middle - row.cells[0].middle < 3 * max(below.cells[0].size, row.cells[0].size)
    return near and not _holds_amounts(row) and not any(cell.table or len(cell.text) > _HEADER_CHARACTERS for cell in row.cells)


def _is_over(row: _Row, bands: Sequence[tuple[float, float]]) -> bool:
    """Whether a row stands over the columns of amounts, not only over their labels."""
    last = row.cells[-1]
    return last.right > bands[0][0] and (len(row.cells) > 1 or last.left > bands[0][0] - _HANG)


def _aligned_table(rows: Sequence[_Row], bands: Sequence[tuple[float, float]]) -> Line:
    body = next((at for at, row in enumerate(rows) if _holds_amounts(row)), 0)
    head = max((at + 1 for at in range(body) if _is_over(rows[at], bands)), default=0)
    titles = [_headings(row, bands) for row in rows[:head]]
    header = [" ".join(filter(None, column)) for column in zip(*titles, strict=True)]
    grid = _whole_labels([_placed(row, bands) for row in rows[head:]])
    return table_line(table_text([header, *grid]), [line for row in rows for line in row.lines])


def _holds_amounts(row: _Row) -> bool:
    """Years and dates are amounts by their form, but head columns."""
    return row.is_data and any(not _YEAR.fullmatch(cell.text) for cell in row.amounts)


def _headings(row: _Row, bands: Sequence[tuple[float, float]]) -> list[str]:
    """What stands over each column, the labels' first; what stands over several is in each of them."""
    over = list(row.cells if row.cells[0].left > bands[0][0] - _HANG else row.cells[1:])
    label = row.cells[0].text if len(over) < len(row.cells) else ""
    if len(over) == len(bands):
        return [label, *(cell.text for cell in over)]
    centers = [sum(band) / 2 for band in bands]
    columns: list[list[Line]] = [[cell for cell in over if cell is _nearest(over, center)] for center in centers]
    for cell in over:
        if not any(cell in column for column in columns):
            columns[min(range(len(bands)), key=lambda at: _distance(cell, centers[at]))].append(cell)
    return [label, *(" ".join(cell.text for cell in column) for column in columns)]


def _nearest(over: Sequence[Line], center: float) -> Line | None:
    """The heading to which a column belongs, if it is near enough."""
    cell = min(over, key=lambda cell: _distance(cell, center), default=None)
    return cell if cell and _distance(cell, center) <= max((cell.right - cell.left) / 2, 2 * cell.size) else None


def _distance(cell: Line, x: float) -> float:
    return max(cell.left - x, x - cell.right, 0.0)


def _placed(row: _Row, bands: Sequence[tuple[float, float]]) -> list[str]:
    """The texts of a row, its label first."""
    columns: list[list[str]] = [[] for _ in range(len(bands) + 1)]
    for cell in row.cells:
        columns[_column(cell, bands)].append(cell.text)
    return [" ".join(column) for column in columns]


def _column(cell: Line, bands: Sequence[tuple[float, float]]) -> int:
    if cell.right <= bands[0][0] or (cell.left < bands[0][0] - _HANG and not is_amount(cell.text)):
        return 0
    return min(range(1, len(bands) + 1), key=lambda at: _distance(cell, sum(bands[at - 1]) / 2))


def _whole_labels(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows, a label that goes on in the next one put together."""
    label = ""
    for row in rows:
        if label and not row[0][:1].islower():
            yield [label]
            label = ""
        whole = [f"{label} {row[0]}".strip(), *row[1:]]
        if any(row[1:]):
            yield whole
            label = ""
        else:
            label = whole[0]
    if label:
        yield [label]
