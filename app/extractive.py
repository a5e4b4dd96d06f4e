"""Answers without a language model: the best sentences of the hits, word for word, each with its footnote."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.citations import passages
from retrieval.analysis import analyze, analyze_query
from retrieval.embedders import Embedder
from retrieval.types import Hit, Vector

CANDIDATES = 32
"""Sentences that are embedded for one answer: more cost more than they find."""
KEEP = 3
NEAR_BEST = 0.72
"""A further sentence must score this share of the best one's."""
ALIKE = 0.7
"""Two sentences that share this many of their terms say the same."""

_CELL = " | "
"""Between the cells of a table's row."""
_BULLET = re.compile(r"(?:[-*•‣◦·]|\d{1,3}[.)])\s+")

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a hit; offsets are within the hit's text."""

    hit: int
    start: int
    end: int
    text: str
    terms: frozenset[str]


async def choose(
    question: str, hits: Sequence[Hit], languages: Sequence[str], embedder: Embedder | None, vector: Vector | None
) -> list[Sentence]:
    """Up to `KEEP` sentences that answer best, in the order of their hits and places.

    A sentence scores the share of the question's terms that it holds, each weighted by its rarity among the candidates, plus
    its cosine with the question where there is an embedder.
    """
    asked = set(analyze_query(question, languages))
    found = [sentence for position, hit in enumerate(hits) for sentence in _sentences(position, hit)]
    if not found:
        return []
    lexical = _coverage(asked, found) + np.array([0.05 / (1 + sentence.hit) for sentence in found])
    order = np.argsort(-lexical, kind="stable")[:CANDIDATES]
    found, scores = [found[i] for i in order], lexical[order]
    if embedder is not None and vector is not None:
        vectors = await embedder.embed_documents([_in_context(hits[sentence.hit], sentence) for sentence in found])
        scores = scores + vectors @ vector
    return _pick(found, scores)


def with_marker(sentence: str, number: int) -> str:
    """The sentence on one line, its footnote before the final stop."""
    line = " ".join(sentence.split())
    body = line.rstrip(".!?。！？")
    return f"{body} [{number}]{line[len(body) :]}"


def _sentences(position: int, hit: Hit) -> list[Sentence]:
    """What the hit says; its headings and questions only if there is nothing else."""
    spans = list(_spans(hit))
    statements = [span for span in spans if not _says_nothing(*span, hit)]
    return [_sentence(position, hit, start, end) for start, end in statements or spans]


def _spans(hit: Hit) -> Iterator[tuple[int, int]]:
    """Passages without the bullet of a list item."""
    text = hit.chunk.text
    for start, end in passages(text, hit.chunk.language):
        bullet = _BULLET.match(text, start, end)
        yield (bullet.end() if bullet else start), end


def _sentence(position: int, hit: Hit, start: int, end: int) -> Sentence:
    text = hit.chunk.text[start:end]
    return Sentence(position, start, end, text, frozenset(analyze(text, hit.chunk.language)))


def _says_nothing(start: int, end: int, hit: Hit) -> bool:
    """Whether a passage is a question, a heading, or the header of a table."""
    text = hit.chunk.text[start:end]
    return text.endswith(("?", "？", "؟")) or text.strip("# ") in hit.chunk.headings or _is_header(start, end, hit.chunk.text)


def _is_header(start: int, end: int, text: str) -> bool:
    """Whether this is the first of several rows."""
    above = text[:start].rstrip("\n").rpartition("\n")[2]
    below = text[end:].removeprefix("\n").partition("\n")[0]
    return _CELL in text[start:end] and _CELL in below and _CELL not in above


def _coverage(asked: set[str], found: Sequence[Sentence]) -> Scores:
    frequency = Counter(term for sentence in found for term in sentence.terms & asked)
    weights = {term: math.log(1 + len(found) / (1 + frequency[term])) for term in asked}
    whole = sum(weights.values()) or 1.0
    return np.array([sum(weights[term] for term in sentence.terms & asked) / whole for sentence in found])


def _in_context(hit: Hit, sentence: Sentence) -> str:
    """A sentence says more under its headings: "It opens at nine" is about the thing that the heading names."""
    return " ".join((*hit.chunk.headings[-1:], sentence.text))


def _pick(found: Sequence[Sentence], scores: Scores) -> list[Sentence]:
    chosen: list[Sentence] = []
    least = NEAR_BEST * float(scores.max())
    for i in np.argsort(-scores, kind="stable"):
        sentence = found[i]
        if chosen and (len(chosen) == KEEP or scores[i] < least):
            break
        if all(_differ(sentence, other) for other in chosen):
            chosen.append(sentence)
    return sorted(chosen, key=lambda sentence: (sentence.hit, sentence.start))


def _differ(one: Sentence, other: Sentence) -> bool:
    """Whether two sentences say different things, as far as their words tell."""
    if one.text == other.text:
        return False
    union = one.terms | other.terms
    return not union or len(one.terms & other.terms) / len(union) < ALIKE
