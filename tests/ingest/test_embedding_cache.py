"""The embedding cache on both databases: only new text is embedded, it stays within its limit, and it never fails an ingest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from ingest.database import Database, open_database
from ingest.embedding_cache import FILE, PAUSE_SECONDS, ROW_BYTES, USED_SECONDS, EmbeddingCache, key_of, open_embedding_cache
from retrieval.errors import EmbedderUnavailable
from tests.ingest.databases import urls
from tests.ingest.test_chunk import Words

MIB = 2**20


class Hashed:
    """An embedder whose vectors are a hash of the text, and which remembers what it was asked."""

    spec, dimension, fingerprint = "test:hashed", 16, "hashed-1"
    tokenizer = Words(30)

    def __init__(self, dimension: int = 16) -> None:
        self.dimension = dimension
        self.asked: list[str] = []

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
        vector = np.random.default_rng(seed).normal(size=self.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    async def embed_query(self, text: str) -> np.ndarray:
        raise NotImplementedError

    async def close(self) -> None:
        return None


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
async def catalog(request, tmp_path) -> AsyncIterator[Database]:
    async for url in urls(request.param, tmp_path):
        database = await open_database(url)
        yield database
        await database.close()


@asynccontextmanager
async def cache_of(catalog: Database, folder: Path, *, limit: int = 8 * MIB) -> AsyncIterator[EmbeddingCache]:
    async with open_embedding_cache(catalog, folder, limit) as cache:
        yield cache


async def stored(cache: EmbeddingCache, query: str) -> list:
    async with cache._database.reading() as connection:
        return list((await connection.execute(sa.text(query))).all())


async def test_a_text_is_embedded_once_whoever_asks(catalog, tmp_path):
    model, other = Hashed(), Hashed()
    async with cache_of(catalog, tmp_path) as cache:
        first, new = await cache.embed(model, ["a", "b", "a", "lone \ud800"])
        assert (new, model.asked) == (3, ["a", "b", "lone \ud800"])
    async with cache_of(catalog, tmp_path) as one, cache_of(catalog, tmp_path) as another:  # two workers, after a restart
        again, new = await another.embed(other, ["b", "lone \ud800", "c", "a"])
        assert (new, other.asked) == (1, ["c"])
        assert again.tobytes() == np.stack([first[1], first[3], other.vector("c"), first[0]]).tobytes()
        assert (await one.embed(other, ["c"]))[1] == 0
        assert (await one.embed(other, []))[0].shape == (0, 16)


async def test_another_model_shares_nothing(catalog, tmp_path):
    model, quantised = Hashed(), Hashed(8)
    quantised.fingerprint = "hashed-int8"
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(model, ["a"])
        vectors, new = await cache.embed(quantised, ["a"])
        assert (vectors.shape, new) == ((1, 8), 1)


async def test_it_holds_no_text(catalog, tmp_path):
    secret = "the combination of the safe is 7319"
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(Hashed(), [secret])
        rows = await stored(cache, "SELECT * FROM embeddings")
    assert [bytes(row.key) for row in rows] == [key_of("hashed-1", secret)]
    assert b"safe" not in b"".join(file.read_bytes() for file in tmp_path.glob(f"{FILE}*"))


async def test_the_least_recently_used_goes_and_the_limit_holds(catalog, tmp_path):
    limit, model = 2 * MIB, Hashed(384)
    row = 384 * 4 + ROW_BYTES
    async with cache_of(catalog, tmp_path, limit=limit) as cache:
        cache._clock = clock = Clock()
        names = [f"text {number}" for number in range(2 * limit // row)]
        for start in range(0, len(names), 64):
            clock.now += USED_SECONDS + 1
            await cache.embed(model, ["a favourite", *names[start : start + 64]])
            [(count,)] = await stored(cache, "SELECT COUNT(*) FROM embeddings")
            assert count * row <= limit * (1 + 1 / 8)
        assert count * row >= limit * 0.8
        model.asked.clear()
        await cache.embed(model, ["a favourite", names[-1], names[0]])
        assert model.asked == [names[0]]
    assert sum(file.stat().st_size for file in tmp_path.glob(FILE)) <= limit * 1.25


async def test_many_workers_at_once(catalog, tmp_path):
    """With keys in common, in unlike orders, and room to be made meanwhile: no vector is another's."""
    texts = [f"text {number}" for number in range(120)]

    async def work(seed: int) -> None:
        async with cache_of(catalog, tmp_path, limit=MIB // 8) as cache:
            rng, model = np.random.default_rng(seed), Hashed()
            for _ in range(6):
                chosen = list(rng.permutation(texts)[:40])
                vectors, _ = await cache.embed(model, chosen)
                assert np.array_equal(vectors, np.stack([model.vector(text) for text in chosen]))
            assert cache._resume_at == 0

    await asyncio.gather(*map(work, range(4)))


async def test_what_was_known_is_counted_for_all_workers(catalog, tmp_path):
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(Hashed(), ["a", "b"])
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(Hashed(), ["a", "c"])
        assert await cache.counts() == {"embedded": 3, "cached": 1}


async def test_a_failing_model_is_not_hidden_and_nothing_is_kept(catalog, tmp_path):
    class Broken(Hashed):
        async def embed_documents(self, texts):
            raise EmbedderUnavailable("down")

    async with cache_of(catalog, tmp_path) as cache:
        with pytest.raises(EmbedderUnavailable):
            await cache.embed(Broken(), ["a"])
        assert (await cache.embed(Hashed(), ["a"]))[1] == 1


async def test_a_cache_that_breaks_costs_only_its_use(catalog, tmp_path, capsys):
    model = Hashed()
    async with cache_of(catalog, tmp_path) as cache:
        cache._clock = clock = Clock()
        await cache.embed(model, ["a"])
        async with cache._database.writing() as connection:
            await connection.execute(sa.text("ALTER TABLE embeddings RENAME TO away"))
        for _ in range(3):
            vectors, new = await cache.embed(model, ["a"])
            assert (new, vectors.tolist()) == (1, [model.vector("a").tolist()])
        assert capsys.readouterr().out.count("embedding_cache_failed") == 1
        async with cache._database.writing() as connection:
            await connection.execute(sa.text("ALTER TABLE away RENAME TO embeddings"))
        clock.now += PAUSE_SECONDS + 1
        assert (await cache.embed(model, ["a"]))[1] == 0


async def test_a_vector_that_rotted_is_embedded_again(catalog, tmp_path):
    model = Hashed()
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(model, ["a", "b", "c"])
        async with cache._database.writing() as connection:
            damage = sa.text("UPDATE embeddings SET vector = :vector WHERE key = :key")
            await connection.execute(damage, {"vector": bytes(64), "key": key_of("hashed-1", "a")})
            await connection.execute(damage, {"vector": b"short", "key": key_of("hashed-1", "b")})
        vectors, new = await cache.embed(model, ["a", "b", "c"])
        assert new == 2
        assert np.array_equal(vectors, np.stack([model.vector(text) for text in "abc"]))
        assert (await cache.embed(model, ["a", "b", "c"]))[1] == 0


async def test_a_limit_of_zero_keeps_nothing(catalog, tmp_path):
    model = Hashed()
    async with cache_of(catalog, tmp_path, limit=0) as cache:
        assert [(await cache.embed(model, ["a", "a"]))[1] for _ in range(2)] == [1, 1]
        assert await cache.counts() == {"embedded": 2, "cached": 2}
    assert not list(tmp_path.glob(f"{FILE}*"))


@pytest.mark.parametrize("content", [b"no database at all" * 400, b"SQLite format 3\0" + bytes(5000)])
async def test_a_file_that_is_no_database_is_made_anew(content, tmp_path):
    catalog = await open_database(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    (tmp_path / FILE).write_bytes(content)
    async with cache_of(catalog, tmp_path) as cache:
        await cache.embed(Hashed(), ["a"])
        assert (await cache.embed(Hashed(), ["a"]))[1] == 0
    await catalog.close()


async def test_it_never_waits_for_the_catalogs_lock(tmp_path):
    catalog = await open_database(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    async with cache_of(catalog, tmp_path) as cache, catalog.writing() as connection:
        await connection.execute(sa.text("DELETE FROM requests"))
        async with asyncio.timeout(5):
            assert (await cache.embed(Hashed(), ["a"]))[1] == 1
            assert (await cache.embed(Hashed(), ["a"]))[1] == 0
    await catalog.close()
