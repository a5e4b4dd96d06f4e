"""Chat models by LangChain's `init_chat_model("provider:model")`, and a chain of them that falls back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import structlog

from app.llm import LLM, Message, Piece
from retrieval.errors import ConfigurationError, FootnoteError, MissingDependency, ModelRejected, ModelUnavailable

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk

log = structlog.get_logger(__name__)


class ChatModel:
    """One chat model of LangChain's, opened when first asked: importing LangChain takes about a second."""

    def __init__(
        self, name: str, *, build: Callable[[], BaseChatModel], window: int, max_tokens: int, timeout_seconds: float
    ) -> None:
        self.name = name
        self.window = window
        self.max_tokens = max_tokens
        self.timeout_seconds = timeout_seconds
        self._build = build
        self._model: BaseChatModel | None = None
        self._lock = asyncio.Lock()

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[Piece, None]:
        model = await self._open()
        with _translated(self.name):
            async with aclosing(_answer(model, [(message.role, message.content) for message in messages])) as chunks:
                while True:
                    async with asyncio.timeout(self.timeout_seconds):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    usage: Any = getattr(chunk, "usage_metadata", None) or {}
                    yield Piece(str(chunk.text), usage.get("input_tokens", 0), usage.get("output_tokens", 0), self.name)

    async def close(self) -> None:
        """Hang up the connections that are kept for the next answer, where they are ours."""
        client = getattr(self._model, "http_async_client", None)
        if client is not None:
            await client.aclose()

    async def _open(self) -> BaseChatModel:
        async with self._lock:
            if self._model is None:
                self._model = await asyncio.to_thread(self._build)
            return self._model


class FallbackChain:
    """Asks the first model; if it fails before its first word, the next. After the first word an error is final."""

    def __init__(self, models: Sequence[LLM]) -> None:
        self.models = tuple(models)
        self.name = ",".join(model.name for model in self.models)
        self.window = min(model.window for model in self.models)
        self.max_tokens = min(model.max_tokens for model in self.models)

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[Piece, None]:
        for position, model in enumerate(self.models):
            started = False
            try:
                async with aclosing(model.stream(messages)) as pieces:
                    async for piece in pieces:
                        started = started or bool(piece.text)
                        yield piece
                return
            except FootnoteError as exc:
                if started or position == len(self.models) - 1:
                    raise
                log.warning("model_fell_back", model=model.name, next=self.models[position + 1].name, detail=exc.message)


def open_chat(
    name: str, *, base_url: str | None, api_key: str | None, window: int, max_tokens: int, timeout_seconds: float
) -> ChatModel:
    """A chat model by `<provider>:<model>`; a server without keys gets a placeholder, since some clients insist on one."""

    def build() -> BaseChatModel:
        from langchain.chat_models import init_chat_model

        key = api_key or ("none" if base_url else None)
        given: dict[str, Any] = {
            "base_url": base_url,
            "api_key": key,
            "max_tokens": max_tokens,
            "timeout": timeout_seconds,
            "max_retries": 2,
            "temperature": 0,
        }
        if name.startswith("openai:"):
            given["stream_usage"] = True
            given["http_async_client"] = _unbounded_client()
        try:
            model: BaseChatModel = init_chat_model(name, **{k: v for k, v in given.items() if v is not None})
            return model
        except ImportError as exc:
            raise MissingDependency(f"the model {name!r} needs a package that is not installed: {exc}") from exc
        except Exception as exc:  # each provider's class raises its own for a missing key or a wrong name
            raise ConfigurationError(f"FOOTNOTE_LLM={name} cannot be opened: {exc}") from exc

    return ChatModel(name, build=build, window=window, max_tokens=max_tokens, timeout_seconds=timeout_seconds)


async def _answer(model: BaseChatModel, messages: list[tuple[str, str]]) -> AsyncGenerator[BaseMessage, None]:
    """What the model says, as it comes; closing it hangs up on the server.

    By the method that each provider's class implements. The public `astream` around it keeps all chunks until the answer ends,
    for its callbacks, LangSmith's tracing among them: 2 kB for each token of each answer that is open.
    """
    from langchain_core.messages import convert_to_messages

    if not model._should_stream(async_api=True, stream=True):  # noqa: SLF001 - as `astream` does
        yield await model.ainvoke(messages)
        return
    # Annotated as an iterator only, and a generator in truth.
    chunks = cast("AsyncGenerator[ChatGenerationChunk, None]", model._astream(convert_to_messages(messages)))  # noqa: SLF001
    async with aclosing(chunks):
        chunk = None
        async for chunk in chunks:
            yield chunk.message
    if chunk is None:
        raise ValueError("it ended its answer without a word, or does not speak this protocol")


def _unbounded_client() -> Any:
    """openai's own client, but for its bound of 1,000 connections: the answers beyond would wait for others to end."""
    import httpx
    from openai import DefaultAsyncHttpxClient

    limits: Any = httpx.Limits(max_connections=None, max_keepalive_connections=100)  # openai's httpx2 has a twin of this class
    return DefaultAsyncHttpxClient(limits=limits)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Every provider has exceptions of its own; they have in common a `status_code` where a server answered."""
    try:
        yield
    except (FootnoteError, asyncio.CancelledError, GeneratorExit):
        raise
    except TimeoutError as exc:
        raise ModelUnavailable(
            f"the model {name} sent nothing for too long; raise FOOTNOTE_LLM_TIMEOUT_SECONDS, or ask again later"
        ) from exc
    except Exception as exc:
        status = getattr(exc, "status_code", None)
        said = f"({type(exc).__name__}: {_short(exc)})"
        if status in {400, 401, 403, 404, 422}:
            cure = "check FOOTNOTE_LLM, FOOTNOTE_LLM_API_KEY and FOOTNOTE_LLM_WINDOW"
            raise ModelRejected(f"the model {name} refused, HTTP {status} {said}: {cure}") from exc
        cure = "check FOOTNOTE_LLM_BASE_URL and that its server runs"
        raise ModelUnavailable(f"the model {name} does not answer {said}: {cure}") from exc


def _short(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200]
