"""Any server that speaks OpenAI's `/embeddings`: OpenAI itself, vLLM, llama.cpp, TEI, Ollama, LM Studio."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np

from retrieval.embedders import EngineChoice
from retrieval.embedders.unit import clean, unit_rows
from retrieval.errors import ConfigurationError, EmbedderRejected, EmbedderUnavailable
from retrieval.types import Matrix, Vector

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_WINDOW = 480
"""Tokens: 512, the smallest window of the usual models, less a margin for special tokens and a wrong estimate."""

MAX_BATCH_TEXTS = 128
MAX_BATCH_CHARACTERS = 100_000
MAX_REQUESTS = 4
"""Requests of one embedder in flight at once."""

ATTEMPTS = 5
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
"""A server that asks for a longer pause is reported as unavailable; the caller knows better how to wait."""

_random = random.SystemRandom()


async def open_openai(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    cache_dir: str | None = None,  # noqa: ARG001 - one signature for all embedders
    engine: EngineChoice = "auto",  # noqa: ARG001
    window: int = DEFAULT_WINDOW,
    transport: httpx.AsyncBaseTransport | None = None,
) -> OpenAIEmbedder:
    """Open `openai:<model>`; one probe text is embedded, to learn the dimension and to fail now and not with the first job.

    Raises `ConfigurationError` for a base URL that is none, `EmbedderUnavailable` if nothing answers there, and
    `EmbedderRejected` if the server refuses the key or the model.
    """
    address = httpx.URL((base_url or DEFAULT_BASE_URL).rstrip("/"))
    if address.scheme not in {"http", "https"} or not address.host:
        raise ConfigurationError(f"embedding server {base_url!r} is not a URL such as http://127.0.0.1:8080/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(120, connect=10)
    server = EmbeddingServer(
        httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport), address, spec.partition(":")[2]
    )
    try:
        probe = await server.embed(["dimension"])
    except BaseException:
        await server.close()
        raise
    return OpenAIEmbedder(spec, server, probe.shape[1], window)


class OpenAIEmbedder:
    """An embedding model behind HTTP. The fingerprint names host, model and dimension: more, the server does not tell."""

    def __init__(self, spec: str, server: EmbeddingServer, dimension: int, window: int) -> None:
        self.spec = spec
        self.dimension = dimension
        self.tokenizer = EstimatingTokenizer(window)
        self._server = server
        identity = f"openai\x00{server.address.netloc.decode('ascii')}\x00{server.model}\x00{dimension}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    async def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Shape (len(texts), dimension); batches go out side by side, and each is retried on its own."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        tasks = [asyncio.ensure_future(self._server.embed(batch)) for batch in batches([_sendable(text) for text in texts])]
        try:
            matrix = np.concatenate(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if matrix.shape[1] != self.dimension:
            raise EmbedderRejected(
                f"{self._server.model} gave vectors of length {matrix.shape[1]}, and of {self.dimension} when it was opened; "
                "was the model behind the server exchanged? Restart, and re-index"
            )
        return matrix

    async def embed_query(self, text: str) -> Vector:
        vector: Vector = (await self.embed_documents([text]))[0]
        return vector

    async def close(self) -> None:
        await self._server.close()


class EmbeddingServer:
    """One `/embeddings` endpoint: sends a batch, tries again where that can help, and checks what comes back."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        address: httpx.URL,
        model: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = _random.random,
    ) -> None:
        self.address = address
        self.model = model
        self._client = client
        self._sleep = sleep
        self._jitter = jitter
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Shape (len(texts), dimension), unit rows, in the order of `texts`."""
        async with self._slots:
            response = await self._send_patiently({"model": self.model, "input": list(texts)})
        return unit_rows(self._vectors(response, len(texts)))

    async def close(self) -> None:
        await self._client.aclose()

    async def _send_patiently(self, body: dict[str, Any]) -> httpx.Response:
        """Overload, server errors and broken connections are tried again, with growing pauses or the one asked for."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._send(body)
            except EmbedderUnavailable as exc:
                delay = exc.retry_after if exc.retry_after is not None else FIRST_DELAY_S * 2**attempt * (0.5 + self._jitter())
                unreachable = isinstance(exc.__cause__, httpx.ConnectError)
                if attempt == ATTEMPTS - 1 or delay > LONGEST_DELAY_S or unreachable:
                    raise
                await self._sleep(delay)
        raise AssertionError("unreachable")

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        try:
            response = await self._client.post(f"{self.address}/embeddings", json=body)
        except httpx.TransportError as exc:
            raise EmbedderUnavailable(
                f"the embedding server at {self.address} cannot be reached ({exc or type(exc).__name__}): "
                "start it, or set its base URL"
            ) from exc
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise EmbedderUnavailable(
                f"the embedding server at {self.address} answered {_said(response)}", retry_after=_retry_after(response)
            )
        if not response.is_success:
            raise EmbedderRejected(f"the embedding server at {self.address} answered {_said(response)}{_cure(response)}")
        return response

    def _vectors(self, response: httpx.Response, count: int) -> list[list[float]]:
        """The vectors in the order of the texts: the standard allows any order and numbers them by `index`."""
        try:
            rows = response.json()["data"]
            by_index = {int(row["index"]): [float(number) for number in row["embedding"]] for row in rows}
        except (KeyError, TypeError, ValueError) as exc:
            raise EmbedderRejected(
                f"the server at {self.address} does not speak OpenAI's embeddings API: check its base URL"
            ) from exc
        vectors = [by_index[position] for position in range(count) if position in by_index]
        if len(rows) != count or len(vectors) != count or len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
            raise EmbedderRejected(
                f"{self.model} was sent {count} texts and gave {len(rows)} vectors, missing or unequal ones among them"
            )
        return vectors


class EstimatingTokenizer:
    """Counts without the model's files, and rather too many: what is cut by it fits the model.

    A run of ASCII letters or digits counts a token for every 4 characters, as words of common English take fewer;
    every other visible character counts one, and two beyond the Basic Multilingual Plane (emoji, rare Han).
    """

    _PIECE = re.compile(r"[A-Za-z]{1,4}|[0-9]{1,3}|[^\sA-Za-z0-9]")

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        self.window = window

    def token_starts(self, text: str) -> list[int]:
        starts: list[int] = []
        for piece in self._PIECE.finditer(text):
            starts.extend([piece.start()] * (2 if ord(piece[0][0]) > 0xFFFF else 1))
        return starts


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbouring texts together, up to a number of texts and of characters; a longer text goes alone."""
    start = characters = 0
    for position, text in enumerate(texts):
        full = position - start >= MAX_BATCH_TEXTS or characters + len(text) > MAX_BATCH_CHARACTERS
        if full and position > start:
            yield texts[start:position]
            start, characters = position, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def _sendable(text: str) -> str:
    """Servers refuse an empty text."""
    return clean(text) if text.strip() else "."


def _said(response: httpx.Response) -> str:
    return f"{response.status_code}: {response.text[:300].strip()}"


def _cure(response: httpx.Response) -> str:
    cures = {
        401: "; set the API key of the embedding service",
        403: "; the API key may not use this model",
        404: "; check the base URL (it usually ends in /v1) and the name of the model",
        413: "; its window is smaller than the chunks",
    }
    return cures.get(response.status_code, "")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); None without one, or with one that says nothing."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
