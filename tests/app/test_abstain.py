"""When hits count as relevant: pure functions of the question and the hits."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import answer
from app.answer import by_clause, coverage, is_relevant
from retrieval.types import Chunk, Hit

RECORD = Path(__file__).parents[2] / "docs" / "decisions" / "0003-when-to-abstain.md"


def hit(text: str = "", *, cosine: float = 0.0, language: str | None = "en", headings: tuple[str, ...] = ()) -> Hit:
    chunk = Chunk("c", "d", "a.md", 0, text, 0, len(text), headings=headings, language=language)
    return Hit(chunk, 1.0, vector_score=cosine, keyword_score=1.0)


def test_a_word_counts_once_in_any_of_its_forms():
    assert coverage("Which seeds germinated?", [hit("A seed germinates.")], ("en", "de")) == 1


def test_long_words_count_more_than_short_ones():
    question = "germination of fern"
    assert (
        coverage(question, [hit("Germination takes time.")], ("en",)) > coverage(question, [hit("A fern grows.")], ("en",)) > 0
    )


def test_one_hit_must_hold_the_words_and_not_all_together():
    apart = [hit("The fern grows."), hit("Germination takes time.")]
    assert coverage("fern germination", apart, ("en",)) < 1
    assert coverage("fern germination", [hit("The fern's germination.")], ("en",)) == 1


def test_each_clause_of_a_question_may_be_in_another_hit():
    question = "How long does the fern germinate, and when does the vault open?"
    apart = [hit("The fern germinates for long."), hit("The vault opens at nine.")]
    assert coverage(question, apart, ("en",)) < by_clause(question, apart, ("en",)) == 1
    assert by_clause(question, apart[:1], ("en",)) < 0.7  # half of what is asked is not there
    assert by_clause("fern, and vault", apart, ("en",)) == coverage("fern, and vault", apart, ("en",))  # a list, not clauses


def test_headings_hold_words_too():
    assert coverage("fern germination", [hit("It takes weeks.", headings=("Germination", "Fern"))], ("en",)) == 1


def test_stop_words_of_english_say_nothing():
    assert coverage("What is the fern?", [hit("What is the moss?")], ("en",)) == 0


@pytest.mark.parametrize("question", ["?!", ""])
def test_a_question_without_words_is_covered_by_nothing(question):
    assert coverage(question, [hit("text")], ("en",)) == 0
    assert coverage(question, [], ("en",)) == 0


def test_chinese_is_covered_by_pairs_of_characters():
    assert coverage("沼泽龙胆", [hit("沼泽龙胆很美。", language="zh")], ("zh",)) == 1
    assert coverage("沼泽龙胆", [hit("种子库。", language="zh")], ("zh",)) == 0


@pytest.mark.parametrize(
    ("cosine", "language", "covered", "relevant"),
    [
        (0.5, "en", 0.2, True),
        (0.3, "en", 0.54, True),
        (0.3, "en", 0.5, False),
        (0.1, "en", 1.0, True),
        (0.55, "en", 0.0, False),
        (0.6, "en", 0.0, True),
        (0.8, "ru", 0.1, False),  # noise: the default model reads no Russian
        (0.8, "ru", 0.25, True),
        (0.0, "en", 0.25, True),  # found by words alone
        (0.0, "en", 0.2, False),
    ],
)
def test_cosine_and_coverage_add_up_and_a_high_cosine_says_no_more_unless_in_english(cosine, language, covered, relevant):
    assert is_relevant([hit(cosine=0.01 if cosine else 0), hit(cosine=cosine, language=language)], covered) is relevant


def test_the_record_of_the_decision_states_the_constants_in_force():
    text = RECORD.read_text(encoding="utf-8")
    rule = f"min(best cosine, {answer.COSINE_CAP}) + {answer.COVERAGE_WEIGHT} * coverage >= {answer.RELEVANT}"
    assert rule in text
    assert f"an English hit has a cosine of {answer.ENGLISH_COSINE}" in text
    assert f"a cosine is {answer.FOREIGN_COSINE}" in text
    assert f"a coverage of {answer.KEYWORD_COVERAGE} is enough" in text
