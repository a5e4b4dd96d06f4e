"""What every embedder must do. A suite of an embedder inherits this and provides `embedder`, open, and a `tolerance`."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from retrieval.embedders import Embedder

TEXTS = [
    "The cat sat on the mat.",
    "Quarterly revenue grew by twelve percent.",
    "x",
    "",
    " \n ",
    "猫はマットの上に座った。",
    "👩‍👩‍👧‍👦 🇩🇪",
    "lone \ud800 surrogate",
    "nul \x00 byte",
    "word " * 60,
]


class EmbedderContract:
    tolerance = 1e-5
    """How much a vector may change with its neighbours in the batch."""

    async def test_documents_are_unit_rows(self, embedder: Embedder):
        vectors = await embedder.embed_documents(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dimension)
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)

    async def test_documents_come_back_in_order(self, embedder: Embedder):
        together = await embedder.embed_documents(TEXTS)
        alone = np.concatenate([await embedder.embed_documents([text]) for text in TEXTS])
        assert np.abs(together - alone).max() < self.tolerance

    async def test_no_documents(self, embedder: Embedder):
        assert (await embedder.embed_documents([])).shape == (0, embedder.dimension)

    async def test_a_question_is_one_unit_vector(self, embedder: Embedder):
        vector = await embedder.embed_query("Who sat on the mat?")
        assert vector.shape == (embedder.dimension,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)

    async def test_questions_and_documents_at_once(self, embedder: Embedder):
        vectors, *questions = await asyncio.gather(
            embedder.embed_documents(TEXTS[:4]), *(embedder.embed_query(text) for text in TEXTS[:4])
        )
        assert len(vectors) == len(questions) == 4

    async def test_tokens_begin_inside_the_text_in_order(self, embedder: Embedder):
        for text in TEXTS:
            starts = list(embedder.tokenizer.token_starts(text))
            assert starts == sorted(starts)
            assert all(0 <= start < len(text) for start in starts)
        assert len(embedder.tokenizer.token_starts("word " * 60)) >= 60
        assert embedder.tokenizer.window > 0

    async def test_a_fingerprint_is_short_and_says_nothing_secret(self, embedder: Embedder):
        assert len(embedder.fingerprint) == 16
        assert int(embedder.fingerprint, 16) >= 0

    async def test_closing_twice_is_fine(self, embedder: Embedder):
        await embedder.close()
        await embedder.close()
