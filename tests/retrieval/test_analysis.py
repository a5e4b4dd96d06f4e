"""Terms: what must match does, and nothing unindexable comes out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysis import MAX_TERM_LENGTH, STEMMERS, analyze, analyze_query, guess_language

LANGUAGES = st.sampled_from([None, "xx", "zh", *STEMMERS])


@given(st.text(), LANGUAGES)
def test_terms_hold_no_white_space_and_are_neither_empty_nor_long(text, language):
    for term in analyze(text, language) + analyze_query(text, [language] if language else []):
        assert term
        assert len(term) <= MAX_TERM_LENGTH
        assert not any(char.isspace() for char in term)


@given(st.text(), st.sampled_from(sorted(STEMMERS)))
def test_a_question_finds_a_passage_with_its_own_words_in_each_language_of_the_collection(text, language):
    terms = analyze_query(text, ["en", language])
    for passage_language in ("en", language, None):
        indexed = set(analyze(text, passage_language))
        assert bool(indexed) == bool(terms)
        assert not indexed or indexed & set(terms)


@given(st.text())
def test_question_terms_are_distinct(text):
    terms = analyze_query(text, ["en", "de", "ru"])
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize(
    ("text", "language", "terms"),
    [
        ("The houses were running", "en", ["the", "hous", "were", "run"]),
        ("Die Häuser der Universitäten", "de", ["die", "haus", "der", "universitat"]),
        ("houses", None, ["houses"]),
        ("STRASSE straße", None, ["strasse", "strasse"]),
        ("ﬁle ＡＢＣ１２ x²", None, ["file", "abc12", "abc", "12", "x2"]),
        ("İstanbul istanbul", None, ["istanbul", "istanbul"]),
        ("co\u00adoperate zero\u200bwidth", None, ["cooperate", "zerowidth"]),
        ("don't l\u2019homme", None, ["don", "t", "l", "homme"]),
        ("東京都 308分 猫", None, ["東京", "京都", "308", "分", "猫"]),
        ("コーヒー・メーカー", None, ["コー", "ーヒ", "ヒー", "メー", "ーカ", "カー"]),
        ("안녕하세요", "ko", ["안녕", "녕하", "하세", "세요"]),
        ("ภาษาไทย", "th", ["ภาษ", "าษา", "ษาไ", "าไท", "ไทย"]),
        ("किताबें", None, ["किताबें"]),
        ("parse_json_file", None, ["parse_json_file", "parse", "json", "file"]),
        ("DiffExecutor HTTPServer", None, ["diffexecutor", "diff", "executor", "httpserver", "http", "server"]),
        ("BRCA1 __init__ _", None, ["brca1", "brca", "init"]),
        ("\ud800 \x00 … — ", None, []),
        ("\u064b", "ar", ["\u064b"]),
    ],
)
def test_passages(text, language, terms):
    assert analyze(text, language) == terms


@pytest.mark.parametrize(
    ("text", "languages", "terms"),
    [
        ("Where are the houses?", ["en"], ["houses", "hous"]),
        ("The Who", ["en"], ["the", "who"]),
        ("Where are the houses?", [], ["houses"]),
        ("die Häuser", ["de"], ["die", "häuser", "haus"]),
        ("Universitäten", ["de", "en"], ["universitäten", "universitat"]),
        ("東京都", ["ja", "en"], ["東京", "京都"]),
        ("?!", ["en"], []),
    ],
)
def test_questions(text, languages, terms):
    assert analyze_query(text, languages) == terms


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog and goes home", "en"),
        ("Die Katze sitzt auf dem Dach und wartet auf den Morgen", "de"),
        ("Сегодня утром в городе прошёл сильный дождь, и все остались дома", "ru"),
        ("黑豹队的防守丢了多少分", "zh"),
        ("東京は日本の首都です", "ja"),
        ("안녕하세요 반갑습니다 여러분", "ko"),
        ("hi there", None),
        ("12.4 | 33 | 17", None),
        ("", None),
        ("\ud800", None),
    ],
)
def test_languages(text, language):
    assert guess_language(text) == language


def test_threads_agree():
    texts = ["The houses were running over the hills", "Die Häuser der Universitäten standen leer"] * 200

    def work(text):
        return analyze(text, "de"), analyze_query(text, ["en", "de", "ru"]), guess_language(text)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, texts)) == [work(text) for text in texts]
