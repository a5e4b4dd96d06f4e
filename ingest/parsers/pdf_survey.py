"""What holds for a whole PDF and is learnt from a sample of its pages, so that every part of it is read the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from ingest.parsers.pdf_layout import Line
from ingest.parsers.pdf_page import Page

_SAMPLE = 24
"""Pages read; in pairs, because left and right pages have headers of their own."""
_EDGE = 0.12
"""The part of a page's height, at the top and at the bottom, where running lines stand."""
_SAME_HEIGHT = 4.0
_REPEATED = 0.4
"""Share of pages on which a line runs; left and right pages may take turns."""
_LEAST_PAGES = 4
_NUMBER = re.compile(r"(?<!\d)(?<!\d[-.,/])[1-9]\d{0,4}(?![.,]?\d)")
"""What may be a page's number; parts of longer numbers and what begins with a zero are not."""
_MOST_NUMBERS = 8
"""In a line; one with more is a row of data."""
_ROMAN = re.compile(r"(?:page |p\. |[-–—(\[ ])*[ivxlc]+[-–—)\] .]*", re.IGNORECASE)
_LINE = 300
"""Characters of a line that are looked at."""
_COMPOUND = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)+")
_MOST_COMPOUNDS = 2000
_TITLE_RATIO = 1.15

_Pattern: TypeAlias = tuple[str, int]


def sample(pages: int) -> Sequence[int]:
    """The numbers, from 0, of the pages that are looked at first."""
    if pages <= _SAMPLE:
        return range(pages)
    pairs = _SAMPLE // 2
    starts = [at * (pages - 2) // (pairs - 1) for at in range(pairs)]
    return sorted({number for start in starts for number in (start, start + 1)})


@dataclass(frozen=True, slots=True)
class Survey:
    """What the pages of a document have in common."""

    body: float
    """Size of most of the text."""
    titles: tuple[float, ...]
    """Sizes of titles that are larger than the text, the largest first."""
    running: dict[_Pattern, tuple[float, ...]]
    """Headers and footers as `_patterns` has them, and their distances from the page's top, or negative from its bottom."""
    compounds: frozenset[str]
    """Words written with a hyphen."""

    @property
    def examples(self) -> str:
        """A few of the running lines, as a person may know them."""
        return ", ".join(f"“{pattern[:60]}”" for pattern, _ in list(self.running)[:3])

    def depth(self, paragraph: Sequence[Line]) -> int:
        """1 for the outermost titles and growing; 0 for what is no title."""
        size = paragraph_size(paragraph)
        if not is_title_like(paragraph):
            return 0
        if size >= self.body * _TITLE_RATIO:
            return min(1 + sum(larger > size for larger in self.titles), 6)
        return min(len(self.titles) + 1, 6) if _stands_out(paragraph, size, self.body) else 0

    def is_running(self, line: Line, page: Page) -> bool:
        """Whether a line of a page is a header, a footer or a page number."""
        place = _place(line, page.height)
        return place is not None and any(
            abs(place - known) <= _SAME_HEIGHT
            for pattern in _patterns(line.text, page.number)
            for known in self.running.get(pattern, ())
        )


def survey(pages: Sequence[Page], paragraphs: Iterable[Sequence[Line]]) -> Survey:
    """Of the pages of a sample and the paragraphs on them."""
    characters: Counter[float] = Counter()
    candidates: set[float] = set()
    for paragraph in paragraphs:
        size = paragraph_size(paragraph)
        characters[size] += sum(len(line.text) for line in paragraph)
        if is_title_like(paragraph):
            candidates.add(size)
    body = characters.most_common(1)[0][0] if characters else 0.0
    titles = tuple(sorted((size for size in candidates if size >= body * _TITLE_RATIO), reverse=True))
    words = Counter(word.lower() for page in pages for line in page.lines for word in _COMPOUND.findall(line.text[:_LINE]))
    compounds = frozenset(word for word, _ in words.most_common(_MOST_COMPOUNDS))
    return Survey(body, titles, _running(pages, body * _TITLE_RATIO), compounds)


def _running(pages: Sequence[Page], largest: float) -> dict[_Pattern, tuple[float, ...]]:
    """Lines that stand on many pages at the same height, and are no larger than this, as titles are."""
    if len(pages) < _LEAST_PAGES:
        return {}
    places: dict[_Pattern, list[float]] = defaultdict(list)
    for page in pages:
        small = [(line.text, _place(line, page.height)) for line in page.lines if line.size < largest]
        for text, place in dict.fromkeys(small):
            if place is not None:
                for pattern in _patterns(text, page.number):
                    places[pattern].append(place)
    least = max(3, _REPEATED * len(pages))
    found = {pattern: _heights(each, least) for pattern, each in places.items() if len(each) >= least}
    return {pattern: heights for pattern, heights in found.items() if heights}


def _heights(places: Sequence[float], least: float) -> tuple[float, ...]:
    """The heights at which enough of the places lie."""
    found = []
    for upper in (True, False):
        side = [place for place in places if (place >= 0) is upper]
        if side:
            height = median(side)
            if sum(abs(place - height) <= _SAME_HEIGHT for place in side) >= least:
                found.append(height)
    return tuple(found)


def _place(line: Line, height: float) -> float | None:
    """Distance of a line's middle from the nearer edge of the page, negative from the bottom; None in the page's middle."""
    if line.middle <= _EDGE * height:
        return max(line.middle, 0.0)
    return min(line.middle - height, -0.01) if line.middle >= (1 - _EDGE) * height else None


def _patterns(text: str, page: int) -> Iterator[_Pattern]:
    """The line, and the line with each number that may be its page's as `#`, and how far that is ahead of `page`.

    One of them is the same for the same running line on all pages. Lines that differ in other numbers are data.
    """
    line = " ".join(text[:_LINE].split())
    yield ("#" if _ROMAN.fullmatch(line) else line), 0
    numbers = list(_NUMBER.finditer(line))
    if len(numbers) <= _MOST_NUMBERS:
        for number in numbers:
            yield f"{line[: number.start()]}#{line[number.end() :]}", int(number[0]) - page


def paragraph_size(paragraph: Sequence[Line]) -> float:
    """The size of its longest line, to half a point."""
    return round(max(paragraph, key=lambda line: len(line.text)).size * 2) / 2


def is_title_like(paragraph: Sequence[Line]) -> bool:
    """Whether it may be a title by its wording."""
    text = paragraph[-1].text
    return (
        not paragraph[0].table
        and len(paragraph) <= 3
        and sum(len(line.text) for line in paragraph) <= 200
        and sum(map(str.isalpha, text)) * 2 > len(text)
        and text[-1] not in ".,;:"
    )


def _stands_out(paragraph: Sequence[Line], size: float, body: float) -> bool:
    """Bold, on one line of its own, in the size of the text."""
    line = paragraph[0]
    return len(paragraph) == 1 and line.bold and size >= body * 0.95 and len(line.text) <= 100
