"""Texts of all callers that wait at once, computed together: passages of several documents, or several questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

import numpy as np

from retrieval.types import Matrix

Encode: TypeAlias = Callable[[Sequence[str]], Matrix]

BATCH_TOKENS = 1024
"""Padded tokens of one batch: on a CPU larger ones are not faster, and others would wait longer behind them."""
TILE = 16
"""Batches are padded to multiples of so many tokens. OpenVINO makes kernels for each shape, at a fifth of what a batch costs,
and the tiles of AMX hold 16 rows anyway."""
SHORT_TILE, SHORT_TOKENS = 8, 64
"""The same up to this length, where 16 tokens are a large part of the whole."""
CALL_TOKENS = 20
"""What a batch costs besides its tokens, in tokens: 2.4 ms of CPU, where a token takes .125 (all-MiniLM-L6-v2 in bf16)."""


@dataclass(eq=False, slots=True)
class Call:
    """What one caller waits for: its vectors, as far as they are there, and how many are not."""

    vectors: Matrix
    left: int
    done: asyncio.Future[Matrix]


@dataclass(eq=False, slots=True)
class Text:
    """One text of a call, on its way into a batch."""

    call: Call
    position: int
    text: str
    tokens: int


class Batches:
    """Puts texts of like length into a batch, whoever asks for them: little is padding, and a short document is not a
    batch of its own. The caller that has waited longest is served first.

    An error is its own caller's: what else was in the batch is computed again without it.
    """

    def __init__(self, encode: Encode, threads: Executor, lanes: int, *, budget: int = BATCH_TOKENS) -> None:
        """`encode` runs on `threads`, up to `lanes` times at once."""
        self._encode = encode
        self._threads = threads
        self._free = lanes
        self._budget = budget
        self._closed: Exception | None = None
        self._waiting: list[Text] = []
        self._running: set[asyncio.Task[None]] = set()

    async def encode(self, texts: Sequence[str], lengths: Sequence[int], dimension: int) -> Matrix:
        """Shape (len(texts), dimension), in the order given; `lengths` are in tokens. Raises what `encode` does."""
        vectors = np.empty((len(texts), dimension), np.float32)
        if self._closed is not None:
            raise self._closed
        if not texts:
            return vectors
        call = Call(vectors, len(texts), asyncio.get_running_loop().create_future())
        self._waiting += [Text(call, at, text, length) for at, (text, length) in enumerate(zip(texts, lengths, strict=True))]
        self._start()
        try:
            return await call.done
        finally:
            self._waiting = [text for text in self._waiting if text.call is not call]  # it failed, or nobody waits any more

    def close(self, error: Exception) -> None:
        """Those who still wait, and who come later, get `error`."""
        self._closed = error
        for text in self._waiting:
            if not text.call.done.done():
                text.call.done.set_exception(error)
        self._waiting = []

    def _start(self) -> None:
        while self._waiting and self._free:
            batch = next_batch(self._waiting, self._budget)
            taken = set(batch)
            self._waiting = [text for text in self._waiting if text not in taken]
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: Sequence[Text]) -> None:
        error = await self._compute(batch)
        calls = list(dict.fromkeys(text.call for text in batch)) if error else []
        for call in calls:
            if call.done.done():  # nobody waits for it any more
                continue
            if len(calls) > 1:
                error = await self._compute([text for text in batch if text.call is call])
            if error and not call.done.done():
                call.done.set_exception(error)
        self._free += 1
        self._start()

    async def _compute(self, batch: Sequence[Text]) -> BaseException | None:
        """Give each text its vector, or say what went wrong."""
        [vectors] = await asyncio.gather(self._in_thread([text.text for text in batch]), return_exceptions=True)
        if isinstance(vectors, BaseException):
            return vectors
        if vectors.shape != (len(batch), dimension := batch[0].call.vectors.shape[1]):
            return ValueError(f"the model gave {vectors.shape} numbers for {len(batch)} texts of dimension {dimension}")
        for text, vector in zip(batch, vectors, strict=True):
            text.call.vectors[text.position] = vector
            text.call.left -= 1
            if not text.call.left and not text.call.done.done():
                text.call.done.set_result(text.call.vectors)
        return None

    async def _in_thread(self, texts: Sequence[str]) -> Matrix:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode, texts)


def padded(tokens: int, tile: int | None = None) -> int:
    """How many tokens a batch is computed with whose longest text has so many."""
    tile = tile or (SHORT_TILE if tokens <= SHORT_TOKENS else TILE)
    return -(-tokens // tile) * tile


def next_batch(waiting: Sequence[Text], budget: int) -> list[Text]:
    """The longest text of the caller that came first, and of all texts those that follow it in length, shorter ones, as
    long as to pad them costs less than another batch.

    The batch's longest times its size stays within `budget` tokens, unless it is a single text.
    """
    tokens = attrgetter("tokens")
    first = max((text for text in waiting if text.call is waiting[0].call), key=tokens)
    shorter = sorted((text for text in waiting if text.tokens <= first.tokens and text is not first), key=tokens, reverse=True)
    near = [first, *shorter[: max(0, budget // max(first.tokens, 1) - 1)]]
    return near[: _cheapest([text.tokens for text in near])]


def _cheapest(lengths: Sequence[int]) -> int:
    """How many of these, longest first, make a batch so that it costs least with one more of all the others."""
    longest, count = lengths[0], len(lengths)
    parted = [longest * size + lengths[size] * (count - size) + CALL_TOKENS for size in range(1, count)]
    costs = [*parted, longest * count]
    return 1 + costs.index(min(costs))
