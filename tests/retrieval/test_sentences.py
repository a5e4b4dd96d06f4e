from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.sentences import sentences


def split(text: str, language: str = "en") -> list[str]:
    return [text[start:end] for start, end in sentences(text, language)]


@pytest.mark.parametrize(
    "expected",
    [
        ["I saw Dr. Smith, e.g. at 5 p.m. in the U.S. office.", "He left."],
        ["It costs $3.50.", "Version 2.0.1 is out!", "Is it?", "See p. 5."],
        ["Prof. Jones et al. (2020) agree.", "J. K. Rowling wrote it."],
        ["Das gilt z. B. für Dr. Müller.", "Danach kam er."],
        ["M. Dupont est venu.", "Vraiment ?", "Oui."],
        ["Это т. е. пример.", "Он пришёл в 5 ч. утра.", "Да!"],
        ["¿Qué es?", "El Sr. López vino."],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["ما هذا؟", "هذا كتاب."],
    ],
)
def test_it_splits_where_a_reader_does(expected: list[str]) -> None:
    assert split(" ".join(expected)) == expected


@pytest.mark.parametrize("expected", [["我来了。", "真的吗？", "是的！"], ["次の文です！", "本当？", "はい。"]])
def test_languages_without_blanks(expected: list[str]) -> None:
    assert split("".join(expected)) == expected


def test_paragraphs_and_list_items_end_a_sentence() -> None:
    assert split("No full stop\n\nNext paragraph\n- one\n- two\n2. three") == [
        "No full stop",
        "Next paragraph",
        "- one",
        "- two",
        "2. three",
    ]


def test_a_wrapped_line_does_not() -> None:
    assert split("He went\nto Paris. She\nstayed.") == ["He went\nto Paris.", "She\nstayed."]


def test_other_languages_know_their_abbreviations() -> None:
    assert split("Am 3. Oktober war es kalt. Es regnete.", "de") == ["Am 3. Oktober war es kalt.", "Es regnete."]


_TEXT = st.text(st.one_of(st.sampled_from(" .\n!?。a A\t-•1)"), st.characters()), max_size=200)


@given(_TEXT)
def test_every_visible_character_is_in_exactly_one_sentence_in_order(text: str) -> None:
    spans = sentences(text)
    covered = set()
    last = 0
    for start, end in spans:
        assert last <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered |= set(range(start, end))
        last = end
    assert all(at in covered for at, character in enumerate(text) if not character.isspace())


@pytest.mark.parametrize("text", ["a. " * 700_000, "字" * 2_000_000, "." * 2_000_000, "\n" * 300_000 + "x", '"(' * 500_000])
def test_time_grows_linearly(text: str) -> None:
    started = time.process_time()
    sentences(text)
    assert time.process_time() - started < 8
