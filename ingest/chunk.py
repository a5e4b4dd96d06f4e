"""Cuts a parsed document into passages of the embedding model's size, at its titles, blocks, rows and sentences.

Each section is tokenised once; the size of any span is then the difference of two positions in that list. A passage
is an exact slice of the canonical text. What it needs to be understood alone (the titles above it, the header of its
table) goes in front of the embedded text as `context`, never into the slice.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ingest.parsers import SEPARATOR, Block, Parsed
from retrieval.embedders import Tokenizer
from retrieval.sentences import sentences

BEST_SIZE = 160
"""Tokens: longer passages show a reader more that does not answer, shorter ones part what belongs together (decision 0006)."""
_RUN = 200_000
"""Characters tokenised at once: enough to be fast, little enough to be cheap in memory."""
_LONG_SECTION = 20_000
"""Characters after which a section ends with a block: a long document without titles can be cut before all of it is read."""
_CHARACTERS_PER_TOKEN = 12
"""A passage has at most this many characters for each token: some tokenizers call any endless word one unknown token."""
_ABOVE_OPENING = re.compile(r"\W*$|\s*(?:@|#|//|/\*|\*|--)")
"""A line above the first of a function: a brace, a comment, a decorator."""
_HEADING_CHARACTERS = 200
"""A longer title is shortened in `Piece.headings`, which every passage below it carries."""
_BLANK = re.compile(r"\n[ \t]*(?=\n)")


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut: a setting of a collection, part of its generation's identity."""

    size: int = 0
    """Tokens of a passage, its context not counted: together they fit the model's window; 0 for `BEST_SIZE`."""
    overlap: int = 0
    """Tokens that a passage may repeat from the one before where a section had to be cut, in whole sentences."""
    context: bool = True
    """Whether titles and table headers are embedded with the passage."""

    def __str__(self) -> str:
        """For people."""
        size = f"{self.size} tokens" if self.size else f"{BEST_SIZE} tokens (the default)"
        overlap = f", {self.overlap} of them again" if self.overlap else ""
        return f"{size}{overlap}{'' if self.context else ', without titles'}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage: `parsed.text[start:end]`, embedded as `context`, a newline, and that text."""

    start: int
    end: int
    text: str
    page: int | None
    headings: tuple[str, ...]
    """Titles above the text, outermost first, its own included, each shortened if it is very long."""
    context: str


def chunk(parsed: Parsed, tokenizer: Tokenizer, chunking: Chunking) -> list[Piece]:
    """Passages in order; every visible character is in one, none is empty, none exceeds the tokenizer's window."""
    chunker = Chunker(tokenizer, chunking)
    return [*chunker.cut(parsed), *chunker.rest()]


class Chunker:
    """Cuts a document while it is read. Sections are cut one by one, so the passages are those of the whole document."""

    def __init__(self, tokenizer: Tokenizer, chunking: Chunking) -> None:
        self._tokenizer = tokenizer
        self._chunking = chunking
        self._open: Sequence[Block] = ()
        """The last section, which may go on."""
        self._path: tuple[Block, ...] = ()
        """The titles in force at its text."""

    def cut(self, portion: Parsed) -> Iterator[Piece]:
        """Passages of the sections that are complete with the next portion of the document."""
        shift = self._open[-1].end + len(SEPARATOR) if self._open else 0
        blocks = (*self._open, *(block.moved(shift) for block in portion.blocks))
        sections = list(_sections(blocks, self._path))
        for section in sections[:-1]:
            yield from self._section(blocks[section.first : section.last], section.path)
        for section in sections[-1:]:
            self._open, self._path = blocks[section.first :], section.path

    def rest(self) -> Iterator[Piece]:
        """Passages of the last section: the document ends here."""
        if self._open:
            yield from self._section(self._open, self._path)
        self._open = ()

    def _section(self, blocks: Sequence[Block], path: Sequence[Block]) -> Iterator[Piece]:
        start = blocks[0].start
        text = SEPARATOR.join(block.text for block in blocks)
        local = tuple(block.moved(-start) for block in blocks)
        titles = tuple(title.moved(-start) for title in path)
        for piece in _Cutter(text, local, titles, self._tokenizer, self._chunking).pieces():
            yield replace(piece, start=piece.start + start, end=piece.end + start)


@dataclass(frozen=True, slots=True)
class _Section:
    """Titles and the blocks below them, up to the next title: `blocks[first:last]`."""

    first: int
    last: int
    path: tuple[Block, ...]
    """The titles in force at its text, its own included."""


def _sections(blocks: Sequence[Block], above: Sequence[Block]) -> Iterator[_Section]:
    """The sections of these blocks, which follow the titles `above`."""
    path = list(above)
    first = 0
    for at, block in enumerate(blocks):
        long = block.start - blocks[first].start > _LONG_SECTION
        if (block.kind == "title" or long) and at > first and blocks[at - 1].kind != "title":
            yield _Section(first, at, tuple(path))
            first = at
        if block.kind != "title":
            continue
        path = [title for title in path if title.depth < block.depth]
        path.append(block)
    if first < len(blocks):
        yield _Section(first, len(blocks), tuple(path))


class _Tokens:
    """Where the tokens of a text begin."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._starts: list[int] = []
        position = 0
        while position < len(text):
            end = _run_end(text, position)
            self._starts.extend(position + start for start in tokenizer.token_starts(text[position:end]))
            position = end

    def limit(self, start: int, count: int, end: int) -> int:
        """The offset up to which at most `count` tokens follow `start`, `end` at most."""
        index = bisect_left(self._starts, start) + count
        return min(end, self._starts[index]) if index < len(self._starts) else end

    def back(self, end: int, count: int) -> int:
        """The offset from which `count` tokens lead to `end`."""
        index = bisect_left(self._starts, end) - count
        return self._starts[index] if index > 0 else 0


def _run_end(text: str, start: int) -> int:
    """Up to `_RUN` characters on, at a paragraph or blank where there is one."""
    end = start + _RUN
    if end >= len(text):
        return len(text)
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, start + _RUN // 2, end)
        if at > 0:
            return at
    return whole_character(text, end, start)


class _Cutter:
    """Cuts one section, whose titles are `path`."""

    def __init__(
        self, text: str, blocks: Sequence[Block], path: Sequence[Block], tokenizer: Tokenizer, chunking: Chunking
    ) -> None:
        self._text = text
        self._blocks = blocks
        self._path = path
        self._starts = [block.start for block in blocks]
        self._tokenizer = tokenizer
        self._chunking = chunking
        self._size = min(chunking.size or BEST_SIZE, tokenizer.window)
        self._tokens = _Tokens(text, tokenizer)
        self._marks: tuple[int, list[list[int]]] = (-1, [])
        self._opening_line: Callable[[int], tuple[str, int]] = lru_cache(maxsize=1)(lambda at: _opening_line(blocks[at]))
        self._count: Callable[[str], int] = lru_cache(maxsize=1024)(lambda text: len(tokenizer.token_starts(text)))

    def pieces(self) -> Iterator[Piece]:
        start, stop = self._blocks[0].start, self._blocks[-1].end
        covered = start
        while covered < stop:
            context = self._context(start)
            end = self._end(start, covered, stop, context)
            if self._text[covered:end].strip():  # more than white space after what was repeated
                yield self._piece(start, end, context)
            covered = end
            start = self._next_start(start, end) if end < stop else stop

    def _piece(self, start: int, end: int, context: str) -> Piece:
        body = self._text[start:end]
        first, last = end - len(body.lstrip()), start + len(body.rstrip())
        block = self._block(first)
        headings = (*(_heading(title.text) for title in self._path), *block.within)
        return Piece(first, last, self._text[first:last], block.page, headings, context)

    # Where a piece ends

    def _end(self, start: int, covered: int, stop: int, context: str) -> int:
        """The best end after `covered` for a piece that begins at `start`, certain to fit the window."""
        room = self._room(context)
        while True:
            end = self._fitting_end(start, covered, stop, max(room, 1))
            body = self._text[start:end].strip()
            # A piece alone can take more tokens than in its place: words cut apart, an unknown word made known.
            excess = self._excess(body, context)
            if excess <= 0 or end - covered <= 1:
                return end
            room = min(room - excess, room * 7 // 8)
            if room < 1:
                stop = covered + max((end - covered) // 2, 1)

    def _room(self, context: str) -> int:
        """Tokens for the text of a piece with this context."""
        return min(self._size, self._tokenizer.window - (self._count(context) + 1 if context else 0))

    def _excess(self, body: str, context: str) -> int:
        """Tokens too many, of the text or of both together."""
        of_body = len(self._tokenizer.token_starts(body)) - self._size
        if not context:
            return of_body
        return max(of_body, len(self._tokenizer.token_starts(f"{context}\n{body}")) - self._tokenizer.window)

    def _fitting_end(self, start: int, covered: int, stop: int, room: int) -> int:
        limit = min(self._tokens.limit(start, room, stop), start + room * _CHARACTERS_PER_TOKEN)
        if limit >= stop:
            return stop
        least = covered + (limit - covered) // 2
        for mark in self._ends_before(limit, least, covered):
            return mark
        return max(whole_character(self._text, limit, covered), covered + 1)

    def _ends_before(self, limit: int, least: int, covered: int) -> Iterator[int]:
        """Ends not beyond `limit`, the best first: of a block, of a sentence or row, of a line, of a word.

        A piece is half full at least, unless its next block is a function or a list that fits whole into the next piece.
        """
        at = bisect_right(self._starts, limit) - 1
        block = self._blocks[at]
        if covered < block.end <= limit and block.kind != "title":
            yield block.end
        half = covered if block.kind in {"code", "list"} and self._fits(block) else max(least, covered)
        if block.start > half and self._blocks[at - 1].kind != "title":
            yield block.start
        marks = self._inner_ends(at)
        for ends in marks:
            index = bisect_right(ends, limit) - 1
            if index >= 0 and ends[index] > max(least, covered):
                yield ends[index]
        if block.start > covered and self._blocks[at - 1].kind != "title":
            yield block.start
        for ends in marks:
            index = bisect_right(ends, limit) - 1
            if index >= 0 and ends[index] > covered:
                yield ends[index]
        word = self._word_end(limit, covered)
        if word > covered:
            yield word

    def _fits(self, block: Block) -> bool:
        room = self._room(self._context(block.start))
        return self._tokens.limit(block.start, room, block.end) == block.end

    def _word_end(self, limit: int, covered: int) -> int:
        text = self._text
        if limit < len(text) and text[limit].isspace():
            return limit
        at = limit - 1
        while at > covered and not text[at].isspace():
            at -= 1
        return at

    def _inner_ends(self, at: int) -> list[list[int]]:
        """Ends inside a block, by rank: sentences and lines of text, rows of tables, blank lines and lines of code."""
        if self._marks[0] == at:  # blocks are cut one after the other: the last one is all that is asked for again
            return self._marks[1]
        block = self._blocks[at]
        lines = [block.start + match.start() for match in re.finditer("\n", block.text)]
        if block.kind == "code":
            ranks = [[block.start + match.start() for match in _BLANK.finditer(block.text)], lines]
        elif block.kind in {"table", "list"}:
            ranks = [lines, self._sentence_ends(block)]
        else:
            ranks = [self._sentence_ends(block), lines]
        self._marks = (at, ranks)
        return ranks

    def _sentence_ends(self, block: Block) -> list[int]:
        return [block.start + end for _, end in sentences(block.text)]

    def _next_start(self, start: int, end: int) -> int:
        """Where the piece after one that ends at `end` begins: there, or whole sentences before."""
        overlap = min(self._chunking.overlap, self._size // 4)
        if not overlap:
            return end
        earliest = self._tokens.back(end, overlap)
        at = bisect_right(self._starts, max(end - 1, 0)) - 1
        block = self._blocks[at]
        if block.kind in {"table", "code"}:
            return end
        ends = self._inner_ends(at)[0]
        index = bisect_left(ends, earliest)
        return ends[index] if index < len(ends) and start < ends[index] < end else end

    # What stands in front of a piece

    def _context(self, start: int) -> str:
        """Titles above that are not in the piece itself, and the first line of the table or function that it begins in."""
        if not self._chunking.context:
            return ""
        path = [title.text for title in self._path if title.start < start and title.end <= start]
        path += self._block(start).within
        most = self._size // 4
        while len(path) > 1 and self._count(" > ".join(path)) > most:
            path.pop(0)
        lines = [line for line in (" > ".join(path), self._opening(start)) if line]
        return self._shortened("\n".join(lines), most)

    def _opening(self, start: int) -> str:
        """The header of the table, or the first line of the function, that is cut at `start`."""
        at = self._index(start)
        block = self._blocks[at]
        if block.kind not in {"table", "code"} or not block.start < start < block.end:
            return ""
        line, end = self._opening_line(at)
        return line if end <= start else ""

    def _block(self, at: int) -> Block:
        return self._blocks[self._index(at)]

    def _index(self, at: int) -> int:
        return max(bisect_right(self._starts, at) - 1, 0)

    def _shortened(self, text: str, most: int) -> str:
        text = text[: most * _CHARACTERS_PER_TOKEN]
        while text and (starts := self._tokenizer.token_starts(text)) and len(starts) > most:
            cut = text[: starts[most]].rstrip()
            text = cut if len(cut) < len(text) else text[:-1]
        return text


def _opening_line(block: Block) -> tuple[str, int]:
    """The line that says what a table or a piece of code is, and where it ends."""
    end = block.start - 1
    for line in block.text.split("\n"):
        end += 1 + len(line)
        if block.kind == "table" or not _ABOVE_OPENING.match(line):
            return line.strip(), end
    return "", end


def _heading(title: str) -> str:
    if len(title) <= _HEADING_CHARACTERS:
        return title
    title = title.strip()
    return title[: whole_character(title, _HEADING_CHARACTERS, 0)].rsplit(None, 1)[0] + "…"


_JOINER, _SELECTORS = "\u200d", "\ufe0e\ufe0f"


def whole_character(text: str, at: int, least: int) -> int:
    """The nearest offset not after `at` that parts no accent from its letter and no emoji in two; `at` if none is near."""
    for offset in range(at, max(least, at - 64), -1):
        if not _inside_character(text, offset):
            return offset
    return at


def _inside_character(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return False
    after, before = text[at], text[at - 1]
    if _JOINER in (after, before) or after in _SELECTORS or "🏻" <= after <= "🏿":
        return True
    if unicodedata.category(after).startswith("M"):
        return True
    if _is_flag_letter(after) and _is_flag_letter(before):  # flags are pairs: an odd number before means a half
        return _flag_letters_before(text, at) % 2 == 1
    return False


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flag_letters_before(text: str, at: int) -> int:
    count = 0
    while count < at and count < 64 and _is_flag_letter(text[at - 1 - count]):
        count += 1
    return count
