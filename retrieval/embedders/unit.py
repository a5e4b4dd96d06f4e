"""Vectors as the rest of the house expects them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retrieval.errors import EmbedderRejected
from retrieval.types import Matrix


def unit_rows(vectors: npt.ArrayLike) -> Matrix:
    """Shape (n, dimension) as float32 with rows of length 1; `EmbedderRejected` for rows that have no direction."""
    matrix = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise EmbedderRejected("the embedding model gave a vector of zeros or of no numbers for a text; check the model")
    unit: Matrix = matrix / lengths
    return unit


def clean(text: str) -> str:
    """The text without lone surrogates, which no tokenizer and no JSON takes; every offset stays where it was."""
    return text if text.isascii() else "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
