"""Combining the two lists of a hybrid search: pure functions, so that the ranking is the same on every store.

The formula was chosen on one half of the questions of fifteen sets and checked on the other. nDCG@10 there, mean of the
sets: vectors .462, BM25 .852, sum of standardised scores .859, this one .864.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from retrieval.types import Scores

T = TypeVar("T")

# Differences below this are rounding noise of float32 cosines: such a list says nothing, and must not be blown up.
_NOISE = 1e-6

REMEMBERED_CHARACTERS = 2000


def fuse(vector_scores: npt.ArrayLike, keyword_scores: npt.ArrayLike, judged_by: npt.ArrayLike | None = None) -> Scores:
    """One score per candidate from its cosine and its BM25 score (0 where no word matched); higher is better.

    Both lists are scaled to 0..1, and each list counts by the square root of its peak: how many
    standard deviations its best candidate stands above its mean. A list that is sure of itself outweighs one that finds
    everything alike, so a model that does not know the language of the question does less harm.

    `judged_by` (bool, one per candidate, the best of each list among them; all by default) tells whose scores make scale
    and peaks: with a fixed number of them the weights hardly change as more candidates are fetched. What lies deeper may
    score below 0.

    A candidate that is at least as good as another in both lists never ends below it. Scores compare within one
    call only.
    """
    vectors = np.asarray(vector_scores, dtype=np.float64)
    keywords = np.asarray(keyword_scores, dtype=np.float64)
    if vectors.size == 0:
        return vectors
    judges = np.ones(vectors.shape, dtype=bool) if judged_by is None else np.asarray(judged_by, dtype=bool)
    by_vector = _scaled(vectors, low=float(vectors[judges].min()))
    by_keyword = _scaled(keywords, low=0.0)
    fused: Scores = math.sqrt(_peak(by_vector[judges])) * by_vector + math.sqrt(_peak(by_keyword[judges])) * by_keyword
    return fused


def distinct(items: Iterable[T], text: Callable[[T], str]) -> Iterator[T]:
    """The items whose text does not repeat an earlier one's, whatever its case and spacing; read one by one."""
    seen: set[str] = set()
    for item in items:
        normal = _normal(text(item))
        if normal not in seen:
            seen.add(normal)
            yield item


def _scaled(scores: Scores, low: float) -> Scores:
    """From `low`..maximum to 0..1; all zero where nothing stands out from `low`."""
    span = float(scores.max()) - low
    if span <= _NOISE:
        return np.zeros_like(scores)
    scaled: Scores = (scores - low) / span
    return scaled


def _peak(scores: Scores) -> float:
    """(max - mean) / standard deviation; 0 for a constant list."""
    deviation = float(scores.std())
    return (float(scores.max()) - float(scores.mean())) / deviation if deviation > _NOISE else 0.0


def _normal(text: str) -> str:
    """Questions find the same passages again and again; long ones are not kept, so that few megabytes are."""
    return _remembered(text) if len(text) <= REMEMBERED_CHARACTERS else _normalised(text)


def _normalised(text: str) -> str:
    """Punctuation stays: 1.5 is not 15."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_remembered = lru_cache(maxsize=1024)(_normalised)
