"""Seeded chunks for the store contract, and the plain definitions that the stores are measured against."""

from __future__ import annotations

import math
import operator
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from retrieval.digest import digest_of
from retrieval.types import (
    BUILT_IN_FIELDS,
    And,
    Chunk,
    Compare,
    EmbeddedChunk,
    Filter,
    Holding,
    Metadata,
    MetadataValue,
    Not,
    Or,
    Vector,
    chunk_id,
)

DIMENSION = 8
WORDS = [f"w{number}" for number in range(40)]


def unit_vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> list[Vector]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return list((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def embedded(
    document_id: str,
    text: str = "some words",
    *,
    position: int = 0,
    version: int = 1,
    vector: Vector | None = None,
    terms: str | None = None,
    name: str = "a.txt",
    page: int | None = None,
    headings: tuple[str, ...] = (),
    language: str | None = None,
    metadata: Metadata | None = None,
) -> EmbeddedChunk:
    start = 10 * position
    chunk = Chunk(
        id=chunk_id(document_id, version, start, start + len(text), text),
        document_id=document_id,
        document_name=name,
        position=position,
        text=text,
        start=start,
        end=start + len(text),
        page=page,
        headings=headings,
        language=language,
        metadata=metadata or {},
    )
    given = unit_vectors(1, seed=zlib.crc32(f"{document_id} {position} {version}".encode()))[0] if vector is None else vector
    return EmbeddedChunk(chunk, given, text if terms is None else terms)


def document(
    document_id: str, count: int, *, version: int = 1, seed: int = 0, metadata: Metadata | None = None
) -> list[EmbeddedChunk]:
    """A document of `count` chunks of random words, each with the word `every`."""
    random = np.random.default_rng([seed, version])
    vectors = unit_vectors(count, seed=seed * 7919 + version)
    return [
        embedded(
            document_id,
            " ".join(["every", *random.choice(WORDS, size=random.integers(1, 20))]),
            position=position,
            version=version,
            vector=vectors[position],
            metadata=metadata,
        )
        for position in range(count)
    ]


def holding(rows: Sequence[EmbeddedChunk], *, left_over: int = 0) -> Holding:
    """What a store holds of a document that it holds whole."""
    return Holding(len(rows), len(rows), digest_of(rows), left_over)


def bm25(corpus: Sequence[str], question: Sequence[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Lucene's BM25 with the factor k1 + 1, of every text (terms joined by spaces)."""
    texts = [Counter(text.split()) for text in corpus]
    average = sum(text.total() for text in texts) / len(texts)
    scores = [0.0] * len(texts)
    for term in question:
        holding = sum(term in text for text in texts)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for position, text in enumerate(texts):
            if text[term]:
                norm = k1 * (1 - b + b * text.total() / average)
                scores[position] += (k1 + 1) * idf * text[term] / (text[term] + norm)
    return scores


ORDERS: dict[str, Callable[[object, object], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def passes(filter_: Filter, chunk: Chunk) -> bool:
    """The meaning of a filter, in plain Python."""
    match filter_:
        case And(parts):
            return all(passes(part, chunk) for part in parts)
        case Or(parts):
            return any(passes(part, chunk) for part in parts)
        case Not(part):
            return not passes(part, chunk)
        case Compare(key, op, value):
            held = getattr(chunk, key) if key in BUILT_IN_FIELDS else chunk.metadata.get(key)
            return compare(held, op, value)


def compare(held: MetadataValue | None, op: str, value: object) -> bool:
    match op:
        case "eq":
            return same(held, value)
        case "ne":
            return not same(held, value)
        case "in" | "nin":
            assert isinstance(value, tuple)
            return any(same(held, each) for each in value) == (op == "in")
        case "exists":
            return (held is not None) == value
        case "contains":
            return isinstance(held, tuple) and value in held
    return held is not None and kind(held) == kind(value) and ORDERS[op](held, value)


def same(held: object, value: object) -> bool:
    return held is not None and kind(held) == kind(value) and held == value


def kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__


def ids(found: Iterable[object]) -> list[str]:
    """Ids of candidates or chunks, in their order."""
    return [getattr(each, "chunk", each).id for each in found]  # type: ignore[attr-defined]
