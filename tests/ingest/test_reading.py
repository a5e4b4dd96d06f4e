"""Documents that are embedded while they are read: the passages of the whole, one portion ahead, progress in pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import Chunker, Chunking, chunk
from ingest.embedding_cache import EmbeddingCache
from ingest.parsers import Bookmark, Draft, Parsed, Receipt, assemble, finish
from ingest.parsers.isolation import ParserPool
from ingest.parsers.media import PDF
from ingest.passages import Passages, Source
from ingest.reading import Reading
from retrieval.errors import EmptyDocument
from tests.ingest.test_chunk import Words
from tests.ingest.test_pdf import lines, pdf

SOURCE = Source("d", "c", "a.pdf", 1, "0", PDF, {})


class Counted:
    """An embedder that embeds nothing."""

    spec, dimension, fingerprint = "test:counted", 2, "counted"
    tokenizer = Words(30)

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 2), np.float32)

    async def embed_query(self, text: str) -> np.ndarray:
        raise NotImplementedError

    async def close(self) -> None:
        return None


DRAFTS = st.lists(
    st.tuples(
        st.sampled_from(["title", "text", "text", "list", "table", "code"]),
        st.text(st.sampled_from("abc. \n字"), min_size=1, max_size=300),
        st.integers(1, 3),
    ),
    max_size=25,
)


@given(DRAFTS, st.lists(st.integers(0, 25)), st.sampled_from([Chunking(), Chunking(20, 5), Chunking(context=False)]))
@settings(max_examples=80, deadline=None)
def test_any_portions_make_the_passages_of_the_whole(drafts: list, cuts: list, chunking: Chunking) -> None:
    made = [Draft(kind, text, 1, depth if kind == "title" else 0) for kind, text, depth in drafts]
    edges = [0, *sorted(min(cut, len(made)) for cut in cuts), len(made)]
    portions = [assemble(made[edges[at] : edges[at + 1]], Receipt("test")) for at in range(len(edges) - 1)]
    whole = assemble(made, Receipt("test"))
    chunker = Chunker(Words(30), chunking)
    pieces = [piece for portion in portions for piece in chunker.cut(portion)] + list(chunker.rest())
    assert pieces == chunk(whole, Words(30), chunking)
    assert all(whole.text[piece.start : piece.end] == piece.text for piece in pieces)
    if whole.text.strip():
        assert finish(portions, "a").text == whole.text


def test_a_document_without_titles_is_cut_before_its_end() -> None:
    made = [Draft("text", "A sentence of a long text. " * 20) for _ in range(100)]
    whole = assemble([Draft("title", "Long", None, 1), *made], Receipt("test"))
    for edge in (1, 37, 38, 39, 80):  # with 38 of them the first section has grown too long
        chunker = Chunker(Words(30), Chunking())
        first = list(chunker.cut(assemble([Draft("title", "Long", None, 1), *made[:edge]], Receipt("test"))))
        assert bool(first) == (edge >= 38)
        pieces = [*first, *chunker.cut(assemble(made[edge:], Receipt("test"))), *chunker.rest()]
        assert pieces == chunk(whole, Words(30), Chunking())


def test_characters_written_as_two_surrogates_are_made_whole() -> None:
    parsed = assemble([Draft("text", "\ud835\udc00 = \ud842\udfb7\ud800 \U0001f600")], Receipt("test"))
    assert (parsed.text, parsed.receipt.removed_characters) == ("𝐀 = 𠮷 😀", 1)


def test_confidence_of_portions_is_weighted_by_their_words() -> None:
    read = Receipt("test", pages=2, ocr_pages=2, ocr_words=300, ocr_confidence=90.0)
    poor = Receipt("test", pages=1, ocr_pages=1, ocr_words=100, ocr_confidence=50.0)
    blank = Receipt("test", pages=30, ocr_pages=30)
    both = read + blank + poor
    assert (both.ocr_pages, both.ocr_words, both.ocr_confidence) == (33, 400, 80.0)
    assert (blank + blank).ocr_confidence is None


async def portioned(seen: list[str], *texts: str) -> AsyncGenerator[Parsed]:
    for at, text in enumerate(texts, 1):
        portion = assemble([Draft("title", f"Part {at}", at, 1), Draft("text", text, at)], Receipt("test", pages=1))
        seen.append(text)
        yield replace(portion, rest=Bookmark(at, len(texts), None) if at < len(texts) else None)


async def test_each_reader_gets_all_portions_and_the_whole_is_made_once() -> None:
    seen: list[str] = []
    async with aclosing(portioned(seen, "one", "two", "three")) as portions:
        reading = Reading("a.pdf", portions)
        first = [portion async for portion in reading.portions()]
        assert first == [portion async for portion in reading.portions()]
        whole = await reading.whole()
        assert whole is await reading.whole()
    assert seen == ["one", "two", "three"]
    assert whole.receipt.pages == 3
    assert whole.text.endswith("Part 3\n\nthree")


async def test_a_document_without_text_is_known_at_its_end() -> None:
    async def blank() -> AsyncGenerator[Parsed]:
        yield assemble([], Receipt("test"))

    async with aclosing(blank()) as portions:
        with pytest.raises(EmptyDocument):
            await Reading("a.txt", portions).whole()


async def test_portions_are_embedded_as_they_come_and_progress_counts_pages() -> None:
    seen: list[str] = []
    told: list[tuple[str, int, int | None]] = []
    passages = Passages(SOURCE, Counted(), Chunking(), lambda *progress: told.append(progress), EmbeddingCache(None, 0))
    embedded = []
    async for portion in portioned(seen, "one", "two", "three"):
        await passages.add(portion)
        embedded.append(len(passages.embedded))
    assert embedded == [0, 1, 3]  # a section is complete when the next one begins, or the document ends
    assert told == [("reading", 1, 3), ("embedding", 1, 3), ("reading", 2, 3), ("embedding", 2, 3)]
    assert [each.chunk.position for each in passages.embedded] == [0, 1, 2]
    assert passages.tokens > 0
    assert passages.tokens_cut == 0


async def test_a_long_pdf_is_read_one_portion_ahead_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    path = tmp_path / "long.pdf"
    path.write_bytes(pdf(*(lines(72, 600, f"Sentence number {at} of the text.") for at in range(150))))
    pool = ParserPool(workers=1)
    run = pool._run

    async def counted(*arguments: Any) -> Any:
        started.append(arguments)
        return await run(*arguments)

    monkeypatch.setattr(pool, "_run", counted)
    try:
        async with aclosing(pool.portions(path, "long.pdf", PDF)) as portions:
            first = await anext(portions)
            assert first.rest is not None
            assert (first.rest.done, first.rest.pages) == (32, 150)
            await asyncio.sleep(1)
            assert len(started) == 2
            assert not pool._running  # the second has long been read
        assert not pool._running
        whole = await pool.parse(path, "long.pdf", PDF)
        assert whole.receipt.pages == 150
        assert whole.text.startswith(first.text + "\n\n")
    finally:
        await pool.close()
