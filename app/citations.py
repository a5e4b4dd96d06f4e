"""Footnotes: markers in a stream of text, and the passages that they stand for. Functions of text; no model is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.analysis import analyze
from retrieval.sentences import sentences
from retrieval.types import Chunk

MARKER = re.compile(r"\s?\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")
UNFINISHED = re.compile(r"\s?\[[\d\s,;]{0,20}$|\s$")
QUOTED = re.compile(r"[\"“«「]([^\"”»」]{12,})[\"”»」]")
SUPPORT = 0.6
"""Share of a claim's terms that one sentence of the source must hold to be its footnote."""


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
        cut = UNFINISHED.search(buffer)
        self._held = buffer[cut.start() :] if cut else ""
        return self._rewrite(buffer[: cut.start()] if cut else buffer)

    def flush(self) -> str:
        held, self._held = self._held, ""
        return self._rewrite(held)

    def _rewrite(self, text: str) -> str:
        shown, last = [], 0
        for match in MARKER.finditer(text):
            shown.append(text[last : match.start()])
            last = match.end()
            for number in re.findall(r"\d+", match[1]):
                if 1 <= int(number) <= self.known:
                    self.sources.append(int(number) - 1)
                    self.ends.append(len(self.text) + sum(map(len, shown)))
                    shown.append(f" [{len(self.sources)}]")
                else:
                    self.dropped += 1
        shown.append(text[last:])
        rewritten = "".join(shown)
        self.text += rewritten
        return rewritten


def claims(text: str, ends: Sequence[int]) -> list[str]:
    """The sentence that each footnote stands behind: what precedes its marker, without markers."""
    found = []
    for end in ends:
        before = MARKER.sub("", text[:end]).rstrip()
        spans = sentences(before)
        found.append(before[spans[-1][0] : spans[-1][1]].strip() if spans else "")
    return found


def unsupported(text: str) -> list[str]:
    """Sentences of an answer that no footnote follows."""
    marked = re.sub(r"([.!?。！？]+)((?:\s?\[\d+\])+)", r"\2\1", text)  # "Fact. [1]" belongs to the fact
    return [part for start, end in sentences(marked) if len(part := marked[start:end].strip()) > 2 and not MARKER.search(part)]


def locate(claim: str, chunk: Chunk) -> Located:
    """Find what a claim rests on in its source: its own quotation, itself word for word, or the sentence that holds its terms.

    Without any, the claim itself comes back as the quote, unverified, with the chunk's offsets.
    """
    for wanted in (*QUOTED.findall(claim), claim):
        if (span := _find(wanted, chunk.text)) is not None:
            return _at(chunk, *span)
    terms = set(analyze(claim, chunk.language))
    best = max(sentences(chunk.text), key=lambda span: len(terms & _terms(chunk, span)), default=None)
    if best is not None and terms and len(terms & _terms(chunk, best)) >= SUPPORT * len(terms):
        return _at(chunk, *best)
    return Located(claim, chunk.start, chunk.end, verified=False)


def _terms(chunk: Chunk, span: tuple[int, int]) -> set[str]:
    return set(analyze(chunk.text[span[0] : span[1]], chunk.language))


def _find(wanted: str, text: str) -> tuple[int, int] | None:
    """Where `wanted` stands in `text`, white space and case aside."""
    words = wanted.strip().rstrip(".").split()
    if not words:
        return None
    match = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
    return match.span() if match else None


def _at(chunk: Chunk, start: int, end: int) -> Located:
    quote = chunk.text[start:end]
    lead = len(quote) - len(quote.lstrip())
    quote = quote.strip()
    begin = chunk.start + start + lead
    return Located(quote, begin, begin + len(quote), verified=True)
