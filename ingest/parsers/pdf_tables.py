"""Tables that are drawn with rules on a PDF's page."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ingest.parsers.parsed import Box, table_text
from ingest.parsers.pdf_layout import Line, box, join_lines, rows_of
from ingest.parsers.pdf_shapes import THIN

Words = Callable[[Line], Iterable[Line]]

_SNAP = 3.0
"""Points within which edges are the same edge."""
_FILLED = 0.3
"""Share of a grid's cells that hold text, at least; charts and forms have fewer."""
_SHORTEST, _LONGEST = 2.5, 400
"""Mean length of cells; in drawings they are shorter, in columns of prose longer."""
_LONGEST_AMOUNT = 40

_AMOUNT = re.compile(
    r"(?:[(\[+~<>≤≥±−–-]|[$€£¥₩]|US\$|\s)*\d[\d,.'’ ]*(?:[)\]%x×*†‡]|pts?|bps|[KMB]n?|\s)*(?:\([a-z\d]{1,2}\))?"
    r"|[—–−-]{1,3}|[$€£¥]?\s*[—–-]\s*[%)]?|n/?[am]\.?|N/?[AM]\.?|\*+"
)


def is_amount(text: str) -> bool:
    """Whether a cell holds a number, a share, a sum of money, or a sign that there is none."""
    return len(text) <= _LONGEST_AMOUNT and _AMOUNT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _Grid:
    """The edges of columns and rows, and for each row the columns that have a rule at their left."""

    columns: Sequence[float]
    rows: Sequence[float]
    ruled: Sequence[Sequence[int]]

    def holds(self, line: Line) -> bool:
        center = (line.left + line.right) / 2
        return (
            self.columns[0] - _SNAP <= center <= self.columns[-1] + _SNAP
            and self.rows[0] - _SNAP <= line.middle <= self.rows[-1]
        )

    def cell(self, piece: Line) -> tuple[int, int]:
        """Row and column in which a piece of text stands; what spans columns is in their first."""
        row = _interval(self.rows, piece.middle)
        column = _interval(self.columns, (piece.left + piece.right) / 2)
        ruled = self.ruled[row]
        return row, ruled[bisect_right(ruled, column) - 1]


def _ruled_columns(columns: Sequence[float], rows: Sequence[float], verticals: Iterable[Box]) -> list[list[int]]:
    """For each row the columns, in order, that have a rule at their left; the first is one in any case."""
    middles = [(above + below) / 2 for above, below in itertools.pairwise(rows)]
    ruled: list[set[int]] = [{0} for _ in middles]
    for rule in verticals:
        near = range(bisect_left(columns, rule[0] - _SNAP), min(bisect_right(columns, rule[0] + _SNAP), len(columns) - 1))
        for row in range(bisect_left(middles, rule[1] - _SNAP), bisect_right(middles, rule[3] + _SNAP)):
            ruled[row].update(near)
    return [sorted(each) for each in ruled]


def _interval(edges: Sequence[float], value: float) -> int:
    return min(max(bisect_left(edges, value) - 1, 0), len(edges) - 2)


def _grids(rules: Sequence[Box]) -> Iterator[_Grid]:
    """Groups of rules that touch and make at least two rows and two columns."""
    for group in _touching(rules):
        horizontal = [rule for rule in group if rule[3] - rule[1] <= THIN]
        vertical = [rule for rule in group if rule[2] - rule[0] <= THIN]
        if horizontal and vertical:  # a grid may be open at its sides, where its rules end
            left, right = min(rule[0] for rule in horizontal), max(rule[2] for rule in horizontal)
            top, bottom = min(rule[1] for rule in vertical), max(rule[3] for rule in vertical)
            columns = _snapped([left, *(rule[0] for rule in vertical), right])
            rows = _snapped([top, *(rule[1] for rule in horizontal), bottom])
            if _are_drawn(columns, vertical, 0, rows[-1] - rows[0]) and _are_drawn(
                rows, horizontal, 1, columns[-1] - columns[0]
            ):
                yield _Grid(columns, rows, _ruled_columns(columns, rows, vertical))


def _are_drawn(edges: Sequence[float], rules: Sequence[Box], axis: int, length: float) -> bool:
    """Whether most edges between columns, or rows, run through the grid; those of drawings do not."""
    inner = edges[1:-1]
    drawn = [sum(rule[3 - axis] - rule[1 - axis] for rule in rules if abs(rule[axis] - edge) <= _SNAP) for edge in inner]
    return bool(inner) and sum(each >= length / 2 for each in drawn) * 2 >= len(inner)


def _touching(rules: Sequence[Box]) -> list[list[Box]]:
    """Rules in groups, each of which hangs together."""
    parents = list(range(len(rules)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    order = sorted(range(len(rules)), key=lambda at: rules[at][1])
    open_rules: list[int] = []
    for at in order:
        rule = rules[at]
        open_rules = [other for other in open_rules if rules[other][3] >= rule[1] - _SNAP]
        for other in open_rules:
            if rules[other][0] <= rule[2] + _SNAP and rules[other][2] >= rule[0] - _SNAP:
                parents[root(at)] = root(other)
        open_rules.append(at)
    groups: dict[int, list[Box]] = defaultdict(list)
    for at, rule in enumerate(rules):
        groups[root(at)].append(rule)
    return list(groups.values())


def _snapped(values: Iterable[float]) -> list[float]:
    """Values in order, those that are nearly the same as one."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > _SNAP:
            found.append(value)
    return found


def ruled_tables(lines: list[Line], rules: Sequence[Box], words: Words) -> list[Line]:
    """The lines of a page, those inside drawn grids replaced by one that holds the table."""
    for grid in _grids(rules):
        inside = [line for line in lines if not line.table and grid.holds(line)]  # a table may stand in a cell of another
        table = None if _goes_on_beside(grid, lines) else _ruled_table(grid, inside, words)
        if table is not None:
            at = lines.index(inside[0])
            held = {id(line) for line in inside}
            lines = [*lines[:at], table, *(line for line in lines[at:] if id(line) not in held)]
    return lines


def _goes_on_beside(grid: _Grid, lines: Sequence[Line]) -> bool:
    """Whether numbers stand beside a grid in its rows: it is a frame within a larger table."""
    beside = [line for line in lines if grid.rows[0] <= line.middle <= grid.rows[-1] and is_amount(line.text)]
    return any(not grid.holds(line) for line in beside)


def _ruled_table(grid: _Grid, inside: Sequence[Line], words: Words) -> Line | None:
    cells: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for line in inside:
        for piece in _pieces(grid, line, words):
            cells[grid.cell(piece)].append(piece)
    rows, columns = sorted({row for row, _ in cells}), sorted({column for _, column in cells})
    if len(rows) < 2 or len(columns) < 2 or len(cells) < _FILLED * len(rows) * len(columns):
        return None
    texts = {place: _cell_text(pieces) for place, pieces in cells.items()}
    coarse = sum(_stand_side_by_side(pieces) for pieces in cells.values()) * 4 > len(cells)
    if coarse or not _SHORTEST <= fmean(map(len, texts.values())) <= _LONGEST:
        return None
    return table_line(table_text([texts.get((row, column)) for column in columns] for row in rows), inside)


def _pieces(grid: _Grid, line: Line, words: Words) -> Iterator[Line]:
    """A line as a whole if it stands in one column, else the words of each."""
    if any(line.left + _SNAP < edge < line.right - _SNAP for edge in grid.columns):
        for _, group in itertools.groupby(words(line), grid.cell):
            pieces = list(group)
            yield replace(around(pieces), text=" ".join(piece.text for piece in pieces))
    else:
        yield line


def around(pieces: Sequence[Line]) -> Line:
    left, top, right, bottom = box(pieces)
    return replace(pieces[0], left=left, top=top, right=right, bottom=bottom)


def _stand_side_by_side(pieces: Sequence[Line]) -> bool:
    """Whether a cell of the grid holds cells of its own."""
    return any(len(row) > 1 for row in rows_of(sorted(pieces, key=lambda piece: piece.middle)))


def _cell_text(pieces: Sequence[Line]) -> str:
    return join_lines(sorted(pieces, key=lambda piece: (round(piece.middle / _SNAP), piece.left)))


def table_line(text: str, lines: Sequence[Line]) -> Line:
    return replace(around(lines), text=text, table=True)
