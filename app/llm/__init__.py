"""The port to a language model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer: only new text. The token counts are those that the server reports, 0 where it reports none."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    """The name of the model that wrote it: of a chain, the one that answers."""


class LLM(Protocol):
    """A chat model that streams."""

    name: str
    """`<provider>:<model>`, several of them with commas for a chain."""
    window: int
    """Tokens of prompt and answer together."""
    max_tokens: int
    """Tokens of the longest answer."""

    def stream(self, messages: Sequence[Message]) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer as they come; closing the iterator stops the model.

        Raises `ModelUnavailable` (no answer, too slow, overloaded) and `ModelRejected` (wrong key, unknown model).
        """
