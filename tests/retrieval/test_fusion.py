"""The formula's properties, whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import distinct, fuse

COSINE = st.floats(-1, 1, width=32)
BM25 = st.one_of(st.just(0.0), st.floats(0, 60, width=32))
CANDIDATES = st.lists(st.tuples(COSINE, BM25), min_size=1, max_size=60)


def fused(candidates):
    return fuse(*np.array(candidates, dtype=np.float64).T)


@given(CANDIDATES)
def test_scores_are_numbers_and_never_negative(candidates):
    scores = fused(candidates)
    assert scores.shape == (len(candidates),)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()


@given(CANDIDATES)
def test_as_good_in_both_lists_is_never_below(candidates):
    scores = fused(candidates)
    for one, better in zip(candidates, scores, strict=True):
        for other, worse in zip(candidates, scores, strict=True):
            if one[0] >= other[0] and one[1] >= other[1]:
                assert better >= worse


@given(CANDIDATES, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(candidates, rng):
    order = list(range(len(candidates)))
    rng.shuffle(order)
    assert fused([candidates[i] for i in order]) == pytest.approx(fused(candidates)[order], abs=1e-9)


@given(st.lists(st.tuples(COSINE, BM25), min_size=2, max_size=30), st.lists(st.floats(0, 1), max_size=30))
def test_what_is_fetched_beyond_the_judges_changes_no_score_of_theirs(judges, deeper):
    """`deeper` are candidates with no words and at most the lowest cosine."""
    lowest = min(cosine for cosine, _ in judges)
    more = [*judges, *((lowest - below, 0.0) for below in deeper)]
    judged_by = [True] * len(judges) + [False] * len(deeper)
    together = fuse(*np.array(more, dtype=np.float64).T, judged_by)
    assert together[: len(judges)] == pytest.approx(fused(judges))


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=50))
def test_without_any_word_the_vectors_decide(hundredths):
    cosines = np.array(hundredths) / 100
    assert np.array_equal(
        np.argsort(-fuse(cosines, np.zeros(len(cosines))), kind="stable"), np.argsort(-cosines, kind="stable")
    )


@given(st.lists(st.integers(1, 100), min_size=2, max_size=50))
def test_with_vectors_that_find_everything_alike_the_words_decide(scores):
    keywords = np.array(scores, dtype=float)
    cosines = 0.7 + np.linspace(0, 1e-7, len(scores))
    assert np.array_equal(np.argsort(-fuse(cosines, keywords), kind="stable"), np.argsort(-keywords, kind="stable"))


def test_degenerate_lists():
    assert fuse([], []).shape == (0,)
    assert np.isfinite(fuse([0.3], [2.0])).all()
    assert fuse([0.5] * 4, [1.0] * 4).tolist() == [0.0] * 4


def test_a_sure_list_outweighs_one_that_is_not():
    """One chunk stands out by its words; the cosines are spread evenly, with their best elsewhere."""
    cosines = np.linspace(0.2, 0.4, 50)
    keywords = np.zeros(50)
    keywords[10] = 8.0
    assert int(np.argmax(fuse(cosines, keywords))) == 10


def test_repetitions_keep_the_first():
    texts = ["Page  1 of 2", "other", "page 1 of 2\n", "ＰＡＧＥ 1 of 2", "other."]
    assert list(distinct(texts, str)) == ["Page  1 of 2", "other", "other."]
    assert list(distinct(["grew by 1.5 %", "grew by 15 %"], str)) == ["grew by 1.5 %", "grew by 15 %"]
    assert list(distinct([], str)) == []
