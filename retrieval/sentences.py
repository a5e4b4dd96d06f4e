"""Where sentences begin and end, in many languages, offline and in linear time."""

from __future__ import annotations

import itertools
import re

from sentencex import segment

_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT_WORD = re.compile(r"(?<!\w)\w{1,3}\. *$")
_ITEM = re.compile(r"\n(?=[ \t]*(?:[-*•‣◦·]|\d{1,3}[.)])[ \t])")
"""A new list item begins a new sentence, although nothing ends the one before."""


def sentences(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Offsets of the sentences of `text`, in order, without outer white space; every visible character is in one.

    `language` (ISO 639-1) chooses the abbreviations; English ones serve most languages, because a full stop between a
    short word and a lower-case letter never ends a sentence here.
    """
    # The segmenter is written in Rust and takes well-formed text only; one character stands in for one.
    whole = _SURROGATE.sub("\ufffd", text)
    spans: list[tuple[int, int]] = []
    position = 0
    for part in segment(language, whole):
        start, position = position, position + len(part)
        if spans and _continues(whole, spans[-1][1], start, position):
            start = spans.pop()[0]
        spans.append((start, position))
    if position != len(text):  # never seen; the promise is too important to rest on another's
        spans.append((position, len(text)))
    return [span for start, end in spans for span in _items(whole, start, end)]


def _continues(text: str, previous_end: int, start: int, end: int) -> bool:
    """Whether the part at `start` goes on with the sentence before: "т. е. пример", "5 ч. утра"."""
    if not _SHORT_WORD.search(text[max(0, previous_end - 8) : previous_end]):
        return False
    first = next((character for character in text[start : min(end, start + 8)] if character != " "), "")
    return first.islower()


def _items(text: str, start: int, end: int) -> list[tuple[int, int]]:
    cuts = [start, *(match.end() for match in _ITEM.finditer(text, start, end)), end]
    spans = (_trim(text, a, b) for a, b in itertools.pairwise(cuts))
    return [span for span in spans if span[0] < span[1]]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return end - len(part.lstrip()), start + len(part.rstrip())
