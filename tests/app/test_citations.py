"""Markers are rewritten the same however a stream is cut, and a verified footnote is a slice of the document."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.citations import LONGEST, Markers, claims, locate, passages, unsupported
from retrieval.types import Chunk

OFFSET = 1000
VAULTS = (
    "The seeds lie in two vaults cut into the slate behind the old dairy. Vault A was opened in 1994 and holds the base "
    "collection. Vault B was opened in 2009,\nand holds the active collection. Both vaults are kept at minus 18 degrees."
)


def chunk(text: str, language: str | None = "en") -> Chunk:
    return Chunk("c", "d", "vaults.md", 0, text, OFFSET, OFFSET + len(text), language=language)


def rewritten(text: str, known: int) -> Markers:
    markers = Markers(known)
    assert markers.feed(text) + markers.flush() == markers.text
    return markers


def located(claim: str, text: str = VAULTS, language: str | None = "en") -> str | None:
    """The quote, None if unverified."""
    found = locate(claim, chunk(text, language))
    if found.verified:
        assert text[found.start - OFFSET : found.end - OFFSET] == found.quote
        assert found.quote == found.quote.strip() != ""
    else:
        assert (found.quote, found.start, found.end) == (claim, OFFSET, OFFSET + len(text))
    return found.quote if found.verified else None


@pytest.mark.parametrize(
    ("text", "shown", "sources", "dropped"),
    [
        ("Fact [1].", "Fact [1].", [0], 0),
        ("Fact[3]. Other [1].", "Fact [1]. Other [2].", [2, 0], 0),
        ("Fact [1][2].", "Fact [1] [2].", [0, 1], 0),
        ("Fact [1, 3].", "Fact [1] [2].", [0, 2], 0),
        ("Fact [1; 2] and [ 3 ].", "Fact [1] [2] and [3].", [0, 1, 2], 0),
        ("Fact [1-3].", "Fact [1] [2] [3].", [0, 1, 2], 0),
        ("Fact [9].", "Fact.", [], 1),
        ("Fact [0] [1, 7].", "Fact [1].", [0], 2),
        ("[2] says so.", "[1] says so.", [1], 0),
        ("One\n[2] says so.", "One\n[1] says so.", [1], 0),
        ("事实[2]。", "事实 [1]。", [1], 0),
        ("no marker at all ", "no marker at all ", [], 0),
    ],
)
def test_source_numbers_become_footnote_numbers(text, shown, sources, dropped):
    markers = rewritten(text, known=3)
    assert (markers.text, markers.sources, markers.dropped) == (shown, sources, dropped)
    assert [markers.text[end:].lstrip()[:3] for end in markers.ends] == [f"[{n + 1}]" for n in range(len(sources))]


@pytest.mark.parametrize("text", ["In [2024] it rose.", "See [a], [12b] and [1.5].", "An open [1", "x[i] = y[]", "[1, 2024]"])
def test_brackets_that_are_no_markers_stay(text):
    markers = rewritten(text, known=3)
    assert (markers.text, markers.sources, markers.dropped) == (text, [], 0)


PIECES = st.lists(
    st.sampled_from(
        [
            "[1]",
            "[2]",
            "[12]",
            "[999]",
            "[2024]",
            "[1, 2]",
            "[1-3]",
            " ",
            "\n",
            "\t",
            "[",
            "]",
            ",",
            "-",
            ";",
            "7",
            "a",
            "句",
            ".",
        ]
    ),
    max_size=25,
)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 100), max_size=12))
def test_any_split_of_a_text_gives_the_same_output(pieces, cuts):
    text = "".join(pieces)
    whole, cut = rewritten(text, known=3), Markers(3)
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    shown = [cut.feed(text[start:end]) for start, end in pairwise(places)]
    assert "".join([*shown, cut.flush()]) == cut.text == whole.text
    assert (cut.sources, cut.ends, cut.dropped) == (whole.sources, whole.ends, whole.dropped)


@given(pieces=PIECES)
def test_character_by_character_is_the_same_as_at_once(pieces):
    text = "".join(pieces)
    markers = Markers(3)
    shown = [markers.feed(character) for character in text]
    assert "".join([*shown, markers.flush()]) == rewritten(text, known=3).text


def test_text_is_shown_as_soon_as_it_cannot_become_a_marker():
    markers = Markers(3)
    assert [markers.feed(piece) for piece in ["It is", " [", "1", "]", ". [20", "24] on"]] == [
        "It is",
        "",
        "",
        " [1]",
        ".",
        " [2024] on",
    ]


def claimed(text: str, known: int = 9) -> list[str]:
    markers = rewritten(text, known)
    return claims(markers.text, markers.ends)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat sat. A dog ran [1]. Both left [2].", ["A dog ran", "Both left"]),
        ("A cat sat. [1] A dog ran. [2]", ["A cat sat.", "A dog ran."]),
        ("A dog ran [1][2].", ["A dog ran", "A dog ran"]),
        ("A dog ran [1], and a cat sat [2].", ["A dog ran", "A dog ran, and a cat sat"]),
        ("The list:\n- a dog ran [1]\n- a cat sat [2]\n", ["- a dog ran", "- a cat sat"]),
        ("[1] A dog ran. A cat sat.", ["A dog ran."]),
        ("狗跑了[1]。猫坐着[2]。", ["狗跑了", "猫坐着"]),
        ("[1]", [""]),
    ],
)
def test_a_claim_is_the_sentence_before_its_footnote(text, expected):
    assert claimed(text) == expected


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("A dog ran [1]. A cat sat [2].", []),
        ("A dog ran. [1] A cat sat. [2]", []),
        ('He said "It is so." [1] Then he left. [2]', []),
        ("A dog ran [1]. A cat sat.", ["A cat sat."]),
        ("A dog ran in [2024].", ["A dog ran in [2024]."]),
        ("The animals:\n\n- a dog [1]\n- a cat [2]", []),
        ("狗跑了 [1]。猫坐着。", ["猫坐着。"]),
        ("", []),
    ],
)
def test_sentences_without_a_footnote_are_unsupported(text, bare):
    assert unsupported(text) == bare


@pytest.mark.parametrize(
    ("claim", "quote"),
    [
        ("Vault A was opened in 1994", "Vault A was opened in 1994"),
        ("vault a WAS opened  in 1994.", "Vault A was opened in 1994"),
        (
            "Vault B was opened in 2009, and holds the active collection.",
            "Vault B was opened in 2009,\nand holds the active collection",
        ),
        ("**minus 18 degrees**", "minus 18 degrees"),
        ('The text says "cut into the slate behind" of the vaults.', "cut into the slate behind"),
    ],
)
def test_words_of_the_source_are_found_whatever_their_case_and_spacing(claim, quote):
    assert located(claim) == quote


def test_typographic_marks_make_no_difference_and_the_quote_keeps_its_own():
    assert (
        located("It's Edith's dairy - the old one", "So: it’s Edith’s dairy – the old one.")
        == "it’s Edith’s dairy – the old one"
    )


def test_a_paraphrase_is_borne_out_by_the_sentence_that_holds_its_terms():
    assert located("The base collection is held in Vault A") == "Vault A was opened in 1994 and holds the base collection."


def test_a_claim_over_two_sentences_is_borne_out_by_both():
    quote = located("Vault A opened in 1994 with the base collection and Vault B in 2009 with the active collection")
    assert quote is not None
    assert quote.startswith("Vault A was opened")
    assert quote.endswith("active collection.")


@pytest.mark.parametrize(
    "claim",
    [
        "The director owns eleven bicycles and a boat",
        "Vault A was opened in 1995 and holds the base collection",  # the words are there, the number is not
        'It says "the vaults were dug by famous miners" about Vault A of the base collection, opened in 1994',
        "is the and in of",
        "it",  # of "cut into": a part of a word is no word
        "",
    ],
)
def test_what_the_source_does_not_say_is_unverified(claim):
    assert located(claim, VAULTS.replace("it ", "")) is None


def test_a_short_answer_is_found_as_a_whole_word_only():
    assert located("two") == "two"
    assert located("Yes", "Yesterday it rained.") is None


def test_claims_in_chinese_are_located():
    text = "种子库成立于1987年。今天藏有11460份种子。"
    assert located("种子库成立于1987年。", text, "zh") == "种子库成立于1987年"
    assert located("该种子库成立于1987年", text, "zh") == "种子库成立于1987年。"
    assert located("该种子库成立于1988年", text, "zh") is None


@given(claim=st.text(max_size=80), text=st.text(min_size=1, max_size=200))
def test_any_verified_quote_is_a_slice_of_the_document(claim, text):
    located(claim, text, None)


@given(text=st.text(st.sampled_from("ab |\n.。[") | st.characters(), max_size=2000))
def test_passages_are_in_order_and_lose_no_visible_character(text):
    spans = list(passages(text, None))
    assert all(0 < end - start <= LONGEST for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    outside = [
        text[a:b] for a, b in zip([0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)], strict=True)
    ]
    assert not "".join(outside).strip()


def test_rows_of_a_table_are_passages_of_their_own():
    text = "Prices below.\n\nTicket | Price\nAdult | £9.50\nChild | £4.00"
    assert [text[a:b] for a, b in passages(text, "en")] == ["Prices below.", "Ticket | Price", "Adult | £9.50", "Child | £4.00"]


def test_a_claim_with_many_brackets_is_shown_as_it_is():
    markers = Markers(3)
    for _ in range(2000):
        markers.feed("[1, ")
    markers.flush()
    assert markers.text == "[1, " * 2000
