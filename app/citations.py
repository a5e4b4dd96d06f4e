"""Footnotes: markers in a stream of text, and the passages that they stand for. Functions of text; no model is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval.analysis import STOP_WORDS, analyze
from retrieval.sentences import sentences
from retrieval.types import Chunk

# [1], [1, 2], [2-4]. A number of four digits is a year or the like, and stays in the text.
_NUMBERS = r"\d{1,3}(?:\s*[-,;–]\s*\d{1,3})*"
MARKER = re.compile(rf"[ \t]?\[\s*({_NUMBERS})\s*\]")
_UNFINISHED = re.compile(r"[ \t]?(?:\[\s*(?:\d{1,3}\s*[-,;–]\s*)*(?:\d{1,3}\s*)?)?$")
_AFTER_THE_STOP = re.compile(r"([.!?。！？]+[\"'”’»」)]*)((?:[ \t]?\[\d{1,3}\])+)")
_QUOTED = re.compile(r"[\"“«「]([^\"“”«»「」]{12,})[\"”»」]")
_EDGES = " \t\n.,;:!?。！？、，\"'“”‘’«»「」*_"
_PLAIN = str.maketrans("‘’“”–—\u00a0", "''\"\"-- ")
"""What language models like to change when they copy; one character for one, so that offsets stay."""
SUPPORT = 0.6
"""Share of a claim's terms that a passage of the source must hold to be its footnote."""
LONGEST = 600
"""Characters of a passage."""


@dataclass(frozen=True, slots=True)
class Located:
    """The passage of a chunk that a claim rests on; offsets are those of the document's canonical text."""

    quote: str
    start: int
    end: int
    verified: bool


class Markers:
    """Rewrites the source numbers in a streamed answer to footnote numbers, one per occurrence, and drops unknown ones.

    `sources[n - 1]` is the 0-based source of footnote n; `ends[n - 1]` is where in the rewritten text its marker begins.
    How the text is cut into pieces changes nothing.
    """

    def __init__(self, known: int) -> None:
        self.known = known
        self.sources: list[int] = []
        self.ends: list[int] = []
        self.dropped = 0
        self.text = ""
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that can be shown now; a marker that is cut in two is held back until it is whole."""
        buffer = self._held + piece
        cut = _UNFINISHED.search(buffer)
        end = cut.start() if cut else len(buffer)
        self._held = buffer[end:]
        return self._rewrite(buffer[:end])

    def flush(self) -> str:
        held, self._held = self._held, ""
        return self._rewrite(held)

    def _rewrite(self, text: str) -> str:
        before, last = len(self.text), 0
        for match in MARKER.finditer(text):
            self.text += text[last : match.start()]
            last = match.end()
            for number in _listed(match[1]):
                self._note(number)
        self.text += text[last:]
        return self.text[before:]

    def _note(self, number: int) -> None:
        if not 1 <= number <= self.known:
            self.dropped += 1
            return
        self.sources.append(number - 1)
        self.ends.append(len(self.text))
        blank = " " if self.text and not self.text[-1].isspace() else ""
        self.text += f"{blank}[{len(self.sources)}]"


def _listed(numbers: str) -> Iterator[int]:
    """The numbers of a marker: "1, 3" as they are, and "2-4" from one to the other."""
    for first, last in re.findall(r"(\d+)(?:\s*[-–]\s*(\d+))?", numbers):
        yield from range(int(first), int(last) + 1) if last and int(first) < int(last) else [int(first)]


def claims(text: str, ends: Sequence[int]) -> list[str]:
    """The sentence that each footnote stands behind, without markers; of one that opens a line, the sentence that follows."""
    found = []
    for end in ends:
        before = MARKER.sub("", text[:end])
        opens = not before.strip() or before.endswith("\n")
        near = MARKER.sub("", text[end:]).strip() if opens else before.rstrip()
        spans = sentences(near)
        start, stop = (spans[0] if opens else spans[-1]) if spans else (0, 0)
        found.append(near[start:stop])
    return found


def unsupported(text: str) -> list[str]:
    """Sentences of an answer that no footnote follows; a line that only leads in to a list needs none."""
    marked = _AFTER_THE_STOP.sub(r"\2\1", text)  # "Fact. [1]" belongs to the fact
    parts = (marked[start:end] for start, end in sentences(marked))
    return [part for part in parts if len(part) > 2 and not part.endswith((":", "：")) and not MARKER.search(part)]


def locate(claim: str, chunk: Chunk) -> Located:
    """Find what a claim rests on in its source: its own quotations, itself word for word, or up to three sentences that hold
    most of its terms and all of its numbers.

    Without any, and if it quotes what its source does not say, the claim itself comes back as the quote, unverified, with
    the chunk's offsets.
    """
    quoted = [_find(quotation, chunk.text) for quotation in _QUOTED.findall(claim)]
    span = quoted[0] if quoted else _find(claim, chunk.text) or _supporting(claim, chunk)
    if span is None or None in quoted:
        return Located(claim, chunk.start, chunk.end, verified=False)
    start, end = span
    return Located(chunk.text[start:end], chunk.start + start, chunk.start + end, verified=True)


def passages(text: str, language: str | None) -> Iterator[tuple[int, int]]:
    """Offsets of what can be quoted on its own: sentences and rows of tables, in pieces where they exceed `LONGEST`."""
    for start, end in sentences(text, language or "en"):
        rows = _rows(text, start, end) if " | " in text[start:end] else [(start, end)]
        for row in rows:
            yield from _pieces(text, *row)


def _rows(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"\S(?:[^\n]*\S)?", text[start:end]):
        yield start + match.start(), start + match.end()


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut at the last line end in reach, else at the last blank, else in the middle of it all."""
    while end - start > LONGEST:
        reach = start + LONGEST
        cut = max(text.rfind("\n", start + LONGEST // 2, reach), 0) or max(text.rfind(" ", start + 1, reach), 0) or reach
        yield start, start + len(text[start:cut].rstrip())
        start = end - len(text[cut:end].lstrip())
    yield start, end


def _find(wanted: str, text: str) -> tuple[int, int] | None:
    """Where `wanted` stands in `text` as whole words, whatever the white space, the case and the kind of quotation marks."""
    words = wanted.translate(_PLAIN).strip(_EDGES).split()
    if not words:
        return None
    opening, closing = (r"\b" if _is_spaced(edge) else "" for edge in (words[0][0], words[-1][-1]))
    pattern = opening + r"\s+".join(map(re.escape, words)) + closing
    match = re.search(pattern, text.translate(_PLAIN), re.IGNORECASE)
    return match.span() if match else None


def _is_spaced(character: str) -> bool:
    """Whether it belongs to a word in a script that parts words by blanks (those below Thai and Chinese)."""
    return character.isalnum() and character < "\u0e00"


def _supporting(claim: str, chunk: Chunk) -> tuple[int, int] | None:
    """The passage, or two or three in a row, that holds the claim's numbers and the largest share of its terms, if enough."""
    asked = _terms(claim, chunk.language)
    numbers = {term for term in asked if any(map(str.isdigit, term))}
    spans = list(passages(chunk.text, chunk.language))
    held = [_terms(chunk.text[start:end], chunk.language) & asked for start, end in spans]
    for size in (1, 2, 3):
        runs = [(at, set().union(*held[at : at + size])) for at in range(len(spans) - size + 1)]
        at, terms = max(runs, key=lambda run: len(run[1]), default=(0, set()))
        if terms and numbers <= terms and len(terms) >= SUPPORT * len(asked):
            return spans[at][0], spans[at + size - 1][1]
    return None


def _terms(text: str, language: str | None) -> set[str]:
    """What a text speaks of: its terms without those of English stop words."""
    pairs = zip(analyze(text, None), analyze(text, language), strict=True)
    return {term for word, term in pairs if word not in STOP_WORDS}
