"""The port to an embedding model, and the table of the embedders that we ship."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from retrieval.errors import ConfigurationError
from retrieval.registry import Registry
from retrieval.types import Matrix, Vector

EngineChoice: TypeAlias = Literal["auto", "openvino", "torch"]
"""What computes a local model: `auto` takes OpenVINO where it is installed and takes the model, and else torch."""


class Tokenizer(Protocol):
    """Counts as the embedding model counts; safe to call from any thread and cheap to load (no torch)."""

    window: int
    """How many tokens of text fit one embedding, special tokens and passage prefix already subtracted."""

    def token_starts(self, text: str) -> Sequence[int]:
        """Character offset at which each token of `text` begins, ascending; its length is the token count."""


class Embedder(Protocol):
    """Turns text into unit vectors.

    `fingerprint` names everything that changes the vectors (model, weights, pooling, prefixes, precision): vectors of
    two fingerprints must never meet in one index.
    """

    spec: str
    dimension: int
    fingerprint: str
    tokenizer: Tokenizer

    async def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Shape (len(texts), dimension), float32, unit rows, in order. Raises `EmbedderUnavailable` and `EmbedderRejected`."""

    async def embed_query(self, text: str) -> Vector:
        """Shape (dimension,), float32, unit length."""

    async def close(self) -> None:
        """Release the model or the connection; idempotent."""


EMBEDDERS: Registry[Embedder] = Registry(
    "embedder",
    {
        "local": "retrieval.embedders.local:open_local",
        "openai": "retrieval.embedders.openai:open_openai",
    },
)


async def open_embedder(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    cache_dir: str | None = None,
    engine: EngineChoice = "auto",
) -> Embedder:
    """Open an embedder by its spec, `local:<hub id or folder>`, also with `?precision=int8`, or `openai:<model>`.

    Raises `ConfigurationError` for a malformed spec, `MissingDependency` for a package that is not installed,
    `EmbedderUnavailable` if the model cannot be had.
    """
    scheme, colon, model = spec.partition(":")
    if not colon or not model:
        raise ConfigurationError(
            f"embedder {spec!r} is not of the form <scheme>:<model>, for example local:sentence-transformers/all-MiniLM-L6-v2"
        )
    open_one = EMBEDDERS.load(scheme)
    embedder: Embedder = await open_one(spec, base_url=base_url, api_key=api_key, cache_dir=cache_dir, engine=engine)
    return embedder
