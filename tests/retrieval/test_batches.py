"""Batches shared by all who embed: what is in one, who is served when, and whose an error is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.embedders.batches import Batches
from retrieval.errors import EmbedderUnavailable


class Model:
    """Its vector of a text is the text's length and number; it computes when it may, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may = threading.Event()
        self.may.set()
        self.together = threading.Barrier(1)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        assert self.may.wait(20)
        self.together.wait(20)
        if any("bad" in text for text in texts):
            raise ValueError(f"bad: {texts}")
        return np.asarray([vector(text) for text in texts], np.float32)


def vector(text: str) -> tuple[int, int]:
    return len(text), sum(text.encode())


def texts_of(name: str, lengths: Sequence[int]) -> list[str]:
    return [name * length for length in lengths]


@pytest.fixture
def model():
    return Model()


@pytest.fixture(params=[1, 2])
def batches(request, model):
    with ThreadPoolExecutor(request.param) as threads:
        yield Batches(model.encode, threads, request.param, budget=100)
        model.may.set()


async def embed(batches: Batches, texts: Sequence[str]) -> np.ndarray:
    return await batches.encode(texts, [len(text) for text in texts], 2)


async def begun(model: Model, batches: Batches, *calls: Sequence[str]) -> list[asyncio.Task]:
    """The calls in their order, all waiting behind batches that keep every lane busy."""
    model.may.clear()
    busy = [asyncio.create_task(embed(batches, ["#" * 100])) for _ in range(batches._free)]
    await asyncio.sleep(0)
    tasks = []
    for call in calls:
        tasks.append(asyncio.create_task(embed(batches, call)))
        await asyncio.sleep(0)
    return [*busy, *tasks]


async def test_each_gets_its_own_vectors_in_its_order(model, batches):
    rng = np.random.default_rng(3)
    calls = [texts_of(name, rng.integers(1, 120, rng.integers(1, 60))) for name in "abcdefgh"]
    results = await asyncio.gather(*(embed(batches, call) for call in calls))
    for call, result in zip(calls, results, strict=True):
        assert result.tolist() == [list(vector(text)) for text in call]
    assert sorted(text for batch in model.batches for text in batch) == sorted(text for call in calls for text in call)
    for batch in model.batches:
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= 100
    assert len(model.batches) < sum(map(len, calls)) * 0.8


async def test_every_lane_is_used(model, batches):
    model.together = threading.Barrier(batches._free)  # which nobody passes alone
    assert (await embed(batches, texts_of("x", [100] * 4))).shape == (4, 2)


async def test_short_documents_share_a_batch_of_like_lengths(model, batches):
    tasks = await begun(model, batches, ["a" * 20], ["b" * 90], ["c" * 19, "d" * 3], ["e" * 18])
    model.may.set()
    await asyncio.gather(*tasks)
    busy = batches._free
    assert model.batches[busy:] == [["a" * 20, "c" * 19, "e" * 18, "d" * 3], ["b" * 90]]


async def test_who_came_first_is_not_overtaken_by_longer_texts(model, batches):
    tasks = await begun(model, batches, ["a"], texts_of("b", [99] * 30))
    model.may.set()
    await tasks[-2]
    assert ["a"] in model.batches[:4]  # the first after those that kept the lanes busy
    await asyncio.gather(*tasks)


async def test_an_error_is_of_the_one_whose_text_it_was(model, batches):
    tasks = await begun(model, batches, ["good", "fine"], ["bad"], ["nice"])
    model.may.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    first, bad, last = results[-3:]
    assert first.tolist() == [list(vector("good")), list(vector("fine"))]
    assert last.tolist() == [list(vector("nice"))]
    assert isinstance(bad, ValueError)
    assert (await embed(batches, ["after"])).shape == (1, 2)


async def test_an_error_ends_the_call_and_what_is_left_of_it_is_not_computed(model, batches):
    with pytest.raises(ValueError, match="bad"):
        await embed(batches, ["bad" * 33, *texts_of("x", [90] * 20)])
    assert (await embed(batches, ["after"])).shape == (1, 2)
    assert len(model.batches) <= 5


async def test_a_call_that_is_cancelled_takes_its_texts_along(model, batches):
    tasks = await begun(model, batches, texts_of("a", [50] * 20), ["b"])
    waiting = tasks[-2]
    waiting.cancel()
    model.may.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await tasks[-1]).tolist() == [list(vector("b"))]
    await asyncio.gather(*tasks[:-2])
    assert not any(text.startswith("a") for batch in model.batches for text in batch)


async def test_closing_ends_the_waiting(model, batches):
    tasks = await begun(model, batches, ["a"], ["b"])
    batches.close(EmbedderUnavailable("closed"))
    model.may.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[-2:]] == [EmbedderUnavailable] * 2
    assert all(isinstance(result, np.ndarray) for result in results[:-2])


async def test_a_model_that_gives_other_vectors_than_asked_for_is_an_error_and_no_wait(model, batches):
    with pytest.raises(ValueError, match="dimension 3"):
        await batches.encode(["a"], [1], 3)
    assert (await embed(batches, ["after"])).shape == (1, 2)


async def test_texts_so_short_that_padding_them_would_cost_more_than_another_batch_wait_for_it(model):
    with ThreadPoolExecutor(1) as threads:
        batches = Batches(model.encode, threads, 1, budget=1000)
        tasks = await begun(model, batches, ["a" * 60], *(["b" * 10] for _ in range(3)), *(["c" * 50] for _ in range(2)))
        model.may.set()
        await asyncio.gather(*tasks)
    assert model.batches[1:] == [["a" * 60, "c" * 50, "c" * 50], ["b" * 10] * 3]


async def test_after_closing_nobody_is_left_waiting(model):
    with ThreadPoolExecutor(1) as threads:
        batches = Batches(model.encode, threads, 1)
    with pytest.raises(RuntimeError):  # what an executor says that was shut down under a caller
        await asyncio.wait_for(embed(batches, ["late"]), 5)
    batches.close(EmbedderUnavailable("closed"))
    with pytest.raises(EmbedderUnavailable, match="closed"):
        await embed(batches, ["later"])
