"""What a model is asked: the prompt that fits its window, and the word by which it declines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.llm import Message
from prompts import render
from retrieval.types import Chunk

REFUSAL = "INSUFFICIENT"

_BYTES_PER_TOKEN = 3
"""A cautious guess: models take 3 to 5 bytes of English per token, and 2 to 3 of other scripts."""
_OVERHEAD = 64
"""Tokens for what a chat template puts around the messages."""
_LEAST_SOURCE = 100
"""Tokens of the first source that are sent whatever else is in the window."""
_OUR_TAG = re.compile(r"<(?=\s*/?\s*source)", re.IGNORECASE)


def build_prompt(
    question: str, history: Sequence[Message], chunks: Sequence[Chunk], *, window: int, max_tokens: int
) -> tuple[list[Message], int]:
    """The messages, and how many of `chunks` are in them: as many as fit, in order, of the first at least its beginning.

    The oldest turns of the history go first when it takes more than a third of the room.
    """
    system = Message("system", render("answer-system-1", refusal=REFUSAL))
    frame = render("answer-user-1", sources="", question=question)
    room = window - max_tokens - _tokens(system.content + frame) - _OVERHEAD
    turns = _latest(history, room // 3)
    room -= sum(_tokens(turn.content) for turn in turns)
    sources = _sources(chunks, room)
    user = Message("user", render("answer-user-1", sources="\n".join(sources), question=question))
    return [system, *turns, user], len(sources)


class Refusal:
    """Holds the beginning of an answer back while it may still become `REFUSAL`, so that nothing of that is shown."""

    def __init__(self) -> None:
        self._held = ""
        self._open = True

    @property
    def said(self) -> bool:
        return self._open and self._bare().startswith(REFUSAL)

    def feed(self, text: str) -> str:
        """What can be shown now."""
        self._held += text
        if self._open and REFUSAL.startswith(self._bare()[: len(REFUSAL)]):
            return ""
        self._open = False
        return self.flush()

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _bare(self) -> str:
        return self._held.lstrip(" \t\r\n*_\"'`")


def _latest(history: Sequence[Message], room: int) -> list[Message]:
    """The end of the conversation that fits, from a question of the user's on, as some providers insist."""
    turns = list(history)
    while turns and (turns[0].role != "user" or sum(_tokens(turn.content) for turn in turns) > room):
        turns.pop(0)
    return turns


def _sources(chunks: Sequence[Chunk], room: int) -> list[str]:
    sources: list[str] = []
    for number, chunk in enumerate(chunks, 1):
        source = _source(number, chunk, chunk.text)
        if _tokens(source) > room:
            if not sources:
                frame = _tokens(_source(number, chunk, ""))
                sources.append(_source(number, chunk, _shortened(chunk.text, max(room - frame, _LEAST_SOURCE))))
            break
        room -= _tokens(source)
        sources.append(source)
    return sources


def _source(number: int, chunk: Chunk, text: str) -> str:
    document = _inert(chunk.document_name).replace('"', "'")
    return render("source-1", number=str(number), document=document, text=_inert(text))


def _shortened(text: str, tokens: int) -> str:
    return text.encode("utf-8", "replace")[: tokens * _BYTES_PER_TOKEN].decode("utf-8", "ignore")


def _tokens(text: str) -> int:
    return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1


def _inert(text: str) -> str:
    """A document must not be able to close its own frame and speak as ours."""
    return _OUR_TAG.sub("< ", text)
