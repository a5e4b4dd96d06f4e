"""Answers without a model quote the hits word for word."""

from __future__ import annotations

import asyncio

import pytest

from app.citations import LONGEST
from app.extractive import KEEP, choose, with_marker
from retrieval.embedders import open_embedder
from retrieval.types import Chunk, Hit
from tests.services import MODELS


def hit(
    text: str, *, name: str = "a.md", headings: tuple[str, ...] = (), language: str | None = "en", score: float = 1.0
) -> Hit:
    chunk = Chunk(f"c-{name}", name, name, 0, text, 0, len(text), headings=headings, language=language)
    return Hit(chunk, score, vector_score=0.0, keyword_score=score)


async def chosen(question: str, *hits: Hit) -> list[str]:
    sentences = await choose(question, hits, ("en", "zh"), None, None)
    assert all(hits[s.hit].chunk.text[s.start : s.end] == s.text for s in sentences)
    assert [(s.hit, s.start) for s in sentences] == sorted((s.hit, s.start) for s in sentences)
    assert len(sentences) <= KEEP
    return [sentence.text for sentence in sentences]


async def test_the_sentence_that_holds_the_words_asked_is_quoted_verbatim():
    text = "The bank was founded in 1987.  The moss  carries\n400 gentians. Dogs are welcome."
    assert await chosen("How many gentians does the moss carry?", hit(text)) == ["The moss  carries\n400 gentians."]


async def test_sentences_come_in_the_order_of_hits_and_places():
    first = hit("Fees rose in May. The harbour fee is ten pounds.", name="a")
    second = hit("The harbour fee of old was two pounds.", name="b")
    assert await chosen("harbour fee pounds", first, second) == [
        "The harbour fee is ten pounds.",
        "The harbour fee of old was two pounds.",
    ]


async def test_near_duplicates_are_quoted_once():
    hits = [hit("The harbour fee is ten pounds.", name="a"), hit("The harbour fee is ten pounds!", name="b")]
    assert await chosen("What is the harbour fee?", *hits) == ["The harbour fee is ten pounds."]


async def test_neither_headings_nor_questions_are_answers():
    text = "Opening hours\n\nWhat are the opening hours of the hall?\n\nThe hall is open from nine to five."
    found = await chosen("What are the opening hours of the hall?", hit(text, headings=("Opening hours",)))
    assert found == ["The hall is open from nine to five."]


async def test_a_hit_that_is_only_a_heading_is_better_than_nothing():
    assert await chosen("opening hours", hit("Opening hours", headings=("Opening hours",))) == ["Opening hours"]


async def test_one_row_answers_for_a_long_table():
    rows = [f"Ticket {number} | £{number}.50 | Seed Hall and herb garden and café" for number in range(40)]
    table = hit("Ticket | Price | Includes\n" + "\n".join(rows))
    assert await chosen("What is the price of ticket 17?", table) == [rows[17]]


async def test_the_header_of_a_table_is_no_answer():
    table = "Ticket | Price\nAdult | £9.50\nChild | £4.00"
    assert (await chosen("What is the price of a ticket for an adult?", hit(table)))[0] == "Adult | £9.50"
    assert await chosen("price of a ticket", hit("Ticket | Price")) == ["Ticket | Price"]


async def test_a_text_without_any_stop_is_quoted_in_pieces():
    found = await chosen("zyzzyva", hit("word " * 300 + "zyzzyva " + "word " * 300))
    assert "zyzzyva" in found[0]
    assert all(len(text) <= LONGEST for text in found)


async def test_bullets_are_not_quoted():
    assert await chosen("harbour fee", hit("Fees:\n- The harbour fee is ten pounds\n- Dogs are free")) == [
        "The harbour fee is ten pounds"
    ]


async def test_chinese_sentences_are_parted_and_found():
    text = "种子库成立于1987年。沼泽龙胆于2016年重新种回野外。欢迎带狗。"
    assert await chosen("沼泽龙胆是什么时候重新种回野外的？", hit(text, language="zh")) == ["沼泽龙胆于2016年重新种回野外。"]


async def test_no_text_gives_no_sentence():
    assert await chosen("anything", hit("   ")) == []
    assert await chosen("anything") == []


@pytest.mark.parametrize(
    ("sentence", "marked"),
    [
        ("It opens at nine.", "It opens at nine [2]."),
        ("Is it so?!", "Is it so [2]?!"),
        ("九点开门。", "九点开门 [2]。"),
        ("Adult | £9.50", "Adult | £9.50 [2]"),
        ("It  opens\nat nine.", "It opens at nine [2]."),
        ('He said "nine."', 'He said "nine." [2]'),
        ("...", " [2]..."),
    ],
)
def test_the_footnote_stands_before_the_final_stop(sentence, marked):
    assert with_marker(sentence, 2) == marked


@pytest.fixture(scope="module")
def embedder():
    opened = asyncio.run(open_embedder("local:sentence-transformers/all-MiniLM-L6-v2", cache_dir=str(MODELS)))
    yield opened
    asyncio.run(opened.close())


async def test_a_paraphrase_is_found_by_its_meaning(embedder):
    hits = [hit("Dogs may wait in the yard. Cars need petrol to drive. Slate is a kind of rock.")]
    question = "What fuel does an automobile run on?"
    [sentence] = await choose(question, hits, ("en",), embedder, await embedder.embed_query(question))
    assert sentence.text == "Cars need petrol to drive."


async def test_something_is_chosen_even_where_nothing_is_alike(embedder):
    opposite = -(await embedder.embed_query("12 34 56."))
    assert await choose("zyzzyva", [hit("12 34 56.")], ("en",), embedder, opposite)
