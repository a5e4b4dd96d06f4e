"""The passages of a document for one generation, cut and embedded while the document is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ingest.chunk import Chunker, Chunking, Piece
from ingest.embedding_cache import EmbeddingCache
from ingest.parsers import Parsed
from retrieval.analysis import analyze, guess_language
from retrieval.embedders import Embedder
from retrieval.types import Chunk, EmbeddedChunk, chunk_id

EMBED_BATCH = 64
LONG = 200_000
"""Characters that are cut in a fraction of a second."""
LANGUAGE_SAMPLE = 4000
"""Characters: more does not change the guess."""

Progress = Callable[[str, int, int | None], None]
"""Takes the stage, and how much of what total is done."""


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a document, as far as indexing it needs to know."""

    id: str
    collection: str
    name: str
    version: int
    sha256: str
    media_type: str
    metadata: Mapping[str, Any]

    def place(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        return {"version": self.version, "sha256": self.sha256, "media_type": self.media_type}


@dataclass(frozen=True, slots=True)
class _Passage:
    """A piece, the text that stands for it, this one's words for keyword search, and its length in the model's tokens."""

    piece: Piece
    text: str
    terms: str
    tokens: int


class Passages:
    """Grows with each portion of the document that is added."""

    def __init__(
        self,
        source: Source,
        embedder: Embedder,
        chunking: Chunking,
        progress: Progress,
        cache: EmbeddingCache,
        thread: Executor | None = None,
    ) -> None:
        """Text is cut on `thread`: one for all documents, as several would keep the model waiting for the interpreter."""
        self.embedded: list[EmbeddedChunk] = []
        self.language: str | None = None
        self.tokens = 0
        self.tokens_cut = 0
        self.computed = 0
        """How many of them the model had to embed, as the cache did not know their texts."""
        self._source = source
        self._embedder = embedder
        self._cache = cache
        self._thread = thread
        self._chunker = Chunker(embedder.tokenizer, chunking)
        self._progress = progress
        self._pages = 0

    async def add(self, portion: Parsed) -> None:
        """Embed what is complete with the next portion, and, if it is the last one, all the rest."""
        thread = self._thread if len(portion.text) <= LONG else None  # behind which nobody should wait
        pieces = await asyncio.get_running_loop().run_in_executor(thread, self._cut, portion)
        before, pages = self._pages, portion.receipt.pages or 0
        self._pages += pages
        total = portion.rest.pages if portion.rest else self._pages or len(pieces)
        for first in range(0, len(pieces), EMBED_BATCH):
            self._progress("embedding", before + first * (pages or len(pieces)) // len(pieces), total)
            await self._embed(pieces[first : first + EMBED_BATCH])
        if portion.rest:
            self._progress("reading", self._pages, total)

    def _cut(self, portion: Parsed) -> list[_Passage]:
        if self.language is None:
            self.language = guess_language(portion.text[:LANGUAGE_SAMPLE])
        pieces = list(self._chunker.cut(portion))
        return [self._passage(piece) for piece in (pieces if portion.rest else [*pieces, *self._chunker.rest()])]

    def _passage(self, piece: Piece) -> _Passage:
        text = f"{piece.context}\n{piece.text}" if piece.context else piece.text
        tokens = len(self._embedder.tokenizer.token_starts(text))
        return _Passage(piece, text, " ".join(analyze(text, self.language)), tokens)

    async def _embed(self, passages: Sequence[_Passage]) -> None:
        vectors, computed = await self._cache.embed(self._embedder, [each.text for each in passages])
        self.computed += computed
        window = self._embedder.tokenizer.window
        for each, vector in zip(passages, vectors, strict=True):
            self.tokens += each.tokens
            self.tokens_cut += max(0, each.tokens - window)
            self.embedded.append(EmbeddedChunk(self._chunk(each.piece), vector, each.terms))

    def _chunk(self, piece: Piece) -> Chunk:
        source = self._source
        return Chunk(
            id=chunk_id(source.id, source.version, piece.start, piece.end, piece.text),
            document_id=source.id,
            document_name=source.name,
            position=len(self.embedded),
            text=piece.text,
            start=piece.start,
            end=piece.end,
            page=piece.page,
            headings=piece.headings,
            language=self.language,
            metadata=source.metadata,
        )
