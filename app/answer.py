"""How a question flows: search, decide whether anything is relevant, write, check the footnotes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter

from app.citations import Located, Markers, claims, locate, unsupported
from app.extractive import choose
from app.llm import LLM, Message
from app.schemas import Answer, Citation, HitOut, Turn, Usage
from ingest.catalog import Catalog
from ingest.filter_keys import check_filter
from ingest.generations import Generations
from prompts import render
from retrieval.analysis import analyze, analyze_query
from retrieval.embedders import Embedder
from retrieval.errors import InvalidInput
from retrieval.search import Searcher
from retrieval.stores import VectorStore
from retrieval.types import Hit, Query

EXTRACTIVE = "extractive"
REFUSAL = "INSUFFICIENT"
MIN_COSINE = 0.35
MIN_COVERAGE = 0.5
"""A hit is relevant if its cosine or the share of the question's terms that it holds reaches these; see docs/decisions."""


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search, with what answering needs beside the hits."""

    hits: tuple[Hit, ...]
    collection: str
    generation: str | None
    languages: tuple[str, ...] = ()
    embedder: Embedder | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of the answer."""

    text: str


Event = Found | Delta | Citation | Answer


class Answerer:
    """Answers questions over all collections. `models` are the configured ones by name; None is the extractive one."""

    def __init__(
        self, *, catalog: Catalog, generations: Generations, store: VectorStore, models: Mapping[str, LLM | None], default: str
    ) -> None:
        self.catalog = catalog
        self.generations = generations
        self.store = store
        self.models = models
        self.default = default

    async def search(self, collection: str, query: Query) -> Found:
        """Raises `CollectionNotFound`, `EmbedderMismatch`, `InvalidFilter`, and what store and embedder raise."""
        live = await self.generations.live(collection)
        if query.filter is not None:
            check_filter(query.filter, await self.catalog.metadata_types(collection))
        if live is None:
            return Found((), collection, None)
        generation, embedder = live
        result = await Searcher(self.store, embedder).search(generation.index, query, generation.languages)
        return Found(result.hits, collection, generation.id, generation.languages, embedder, result.timings_ms)

    async def answer(
        self, collection: str, query: Query, *, history: Sequence[Turn] = (), model: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """The hits, the text as it comes, the citations, and last the whole `Answer`. Closing the iterator stops the model."""
        name = model or self.default
        if name not in self.models:
            raise InvalidInput(
                f"llm: {name!r} is not configured; choose one of {', '.join(sorted(self.models))}, or add it to FOOTNOTE_LLM"
            )
        began = perf_counter()
        found = await self.search(collection, _with_history(query, history))
        yield found
        draft = Draft(found, name, began)
        if reason := _irrelevance(query.text, found):
            yield draft.abstain(reason)
            return
        llm = self.models[name]
        events = self._extract(query.text, draft) if llm is None else self._generate(query.text, history, llm, draft)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _extract(self, question: str, draft: Draft) -> AsyncGenerator[Event, None]:
        began = perf_counter()
        hits, embedder = draft.found.hits, draft.found.embedder
        by_vector = embedder if embedder is not None and any(hit.vector_score for hit in hits) else None
        vector = await by_vector.embed_query(question) if by_vector else None
        chosen = await choose(question, hits, draft.found.languages, by_vector, vector)
        for number, sentence in enumerate(chosen, 1):
            hit = hits[sentence.hit]
            yield draft.add(_with_marker(sentence.text, number), separator=number > 1)
            start = hit.chunk.start + sentence.start
            yield draft.cite(number, hit, Located(sentence.text, start, start + len(sentence.text), verified=True))
        draft.generate_ms = (perf_counter() - began) * 1000
        yield draft.finish("answered" if chosen else "abstained", None if chosen else "the hits hold no sentence")

    async def _generate(self, question: str, history: Sequence[Turn], llm: LLM, draft: Draft) -> AsyncGenerator[Event, None]:
        began = perf_counter()
        messages, shown = _prompt(question, history, draft.found.hits, llm)
        markers, opening = Markers(shown), ""
        async with aclosing(llm.stream(messages)) as pieces:
            async for piece in pieces:
                draft.count(piece.prompt_tokens, piece.completion_tokens)
                opening, text = _hold_refusal(opening, piece.text, started=bool(markers.text))
                if text and (new := markers.feed(text)):
                    yield draft.add(new)
        draft.model = llm.name
        draft.generate_ms = (perf_counter() - began) * 1000
        if not markers.text and opening.strip().startswith(REFUSAL):
            yield draft.abstain("the model found no answer in the hits")
            return
        if rest := markers.feed(opening if not markers.text else "") + markers.flush():
            yield draft.add(rest)
        for number, (source, claim) in enumerate(zip(markers.sources, claims(markers.text, markers.ends), strict=True), 1):
            hit = draft.found.hits[source]
            yield draft.cite(number, hit, locate(claim, hit.chunk))
        yield draft.finish(*_judge(draft, markers))


@dataclass
class Draft:
    """An answer under way."""

    found: Found
    model: str
    began: float
    text: str = ""
    citations: list[Citation] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    generate_ms: float = 0.0

    def add(self, text: str, *, separator: bool = False) -> Delta:
        new = f" {text}" if separator else text
        self.text += new
        return Delta(new)

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage = Usage(
            prompt_tokens=max(self.usage.prompt_tokens, prompt_tokens),
            completion_tokens=max(self.usage.completion_tokens, completion_tokens),
        )

    def cite(self, marker: int, hit: Hit, located: Located) -> Citation:
        chunk = hit.chunk
        citation = Citation(
            marker=marker,
            document_id=chunk.document_id,
            document_name=chunk.document_name,
            chunk_id=chunk.id,
            quote=located.quote,
            verified=located.verified,
            page=chunk.page,
            start=located.start,
            end=located.end,
            headings=list(chunk.headings),
        )
        self.citations.append(citation)
        return citation

    def abstain(self, reason: str) -> Answer:
        self.text, self.citations = "", []
        return self.finish("abstained", reason)

    def finish(self, status: str, reason: str | None) -> Answer:
        total = (perf_counter() - self.began) * 1000
        timings = {**self.found.timings_ms, "generate": self.generate_ms, "total": total}
        return Answer(
            id=f"ans_{secrets.token_hex(12)}",
            status=status,  # type: ignore[arg-type]
            reason=reason,
            answer=self.text,
            citations=self.citations,
            hits=[hit_out(hit) for hit in self.found.hits],
            model=self.model,
            collection=self.found.collection,
            generation=self.found.generation,
            timings_ms={name: round(value, 2) for name, value in timings.items()},
            usage=self.usage,
        )


def hit_out(hit: Hit) -> HitOut:
    chunk = hit.chunk
    return HitOut(
        chunk_id=chunk.id,
        document_id=chunk.document_id,
        document_name=chunk.document_name,
        text=chunk.text,
        page=chunk.page,
        start=chunk.start,
        end=chunk.end,
        headings=list(chunk.headings),
        metadata=dict(chunk.metadata),
        score=round(hit.score, 6),
        vector_score=round(hit.vector_score, 6),
        keyword_score=round(hit.keyword_score, 6),
    )


def _with_history(query: Query, history: Sequence[Turn]) -> Query:
    """A follow-up ("and on Sundays?") is searched together with the question that it follows."""
    asked = [turn.content for turn in history if turn.role == "user"]
    return Query(f"{asked[-1]}\n{query.text}", query.top_k, query.mode, query.filter) if asked else query


def _irrelevance(question: str, found: Found) -> str | None:
    """Why no hit can answer the question, or None if one may."""
    if not found.hits:
        return "nothing was found" if found.generation else "the collection is empty"
    best_cosine = max(hit.vector_score for hit in found.hits)
    best_coverage = _best_coverage(question, found)
    if best_cosine >= MIN_COSINE or best_coverage >= MIN_COVERAGE:
        return None
    return (
        f"nothing relevant was found: the best hit is {best_cosine:.2f} alike and holds {best_coverage:.0%} of the words asked"
    )


def _best_coverage(question: str, found: Found) -> float:
    """The largest share of the question's terms that one hit holds."""
    asked = set(analyze_query(question, found.languages))
    held = (asked & set(analyze(hit.chunk.text, hit.chunk.language)) for hit in found.hits)
    return max(map(len, held)) / len(asked) if asked else 0.0


def _prompt(question: str, history: Sequence[Turn], hits: Sequence[Hit], llm: LLM) -> tuple[list[Message], int]:
    """The messages, with as many hits as fit the model's window (at least one), and how many those are."""
    system = Message("system", render("answer-system-1", refusal=REFUSAL))
    turns = [Message(turn.role, turn.content) for turn in history]
    budget = llm.window - llm.max_tokens - _tokens(system.content + question) - 64
    while turns and sum(_tokens(turn.content) for turn in turns) > budget // 3:
        turns.pop(0)
    budget -= sum(_tokens(turn.content) for turn in turns)
    sources: list[str] = []
    for number, hit in enumerate(hits, 1):
        source = render(
            "source-1", number=str(number), document=_attribute(hit.chunk.document_name), text=_inert(hit.chunk.text)
        )
        budget -= _tokens(source)
        if budget < 0 and sources:
            break
        sources.append(source)
    user = Message("user", render("answer-user-1", sources="\n".join(sources), question=question))
    return [system, *turns, user], len(sources)


def _tokens(text: str) -> int:
    """A cautious guess: models take 3 to 5 bytes of English per token, and 2 to 3 of other scripts."""
    return len(text.encode("utf-8", "replace")) // 3 + 1


def _inert(text: str) -> str:
    """A document must not be able to close its own frame and speak as ours."""
    return text.replace("</source", "< /source")


def _attribute(name: str) -> str:
    return _inert(name).replace('"', "'")


def _hold_refusal(opening: str, text: str, *, started: bool) -> tuple[str, str]:
    """Hold back the first characters while they may still become the refusal; gives what is held and what may be shown."""
    if started:
        return "", text
    opening += text
    return (opening, "") if REFUSAL.startswith(opening.strip()[: len(REFUSAL)]) else ("", opening)


def _judge(draft: Draft, markers: Markers) -> tuple[str, str | None]:
    """`answered` if every sentence has a verified footnote; `partial` says what lacks one."""
    if not draft.text.strip():
        return "abstained", "the model gave no text"
    doubts = []
    if bare := unsupported(draft.text):
        doubts.append(f"{len(bare)} sentences have no footnote")
    if unverified := sum(not citation.verified for citation in draft.citations):
        doubts.append(f"{unverified} footnotes are not borne out by their source")
    if markers.dropped:
        doubts.append(f"{markers.dropped} footnotes named a source that does not exist and were dropped")
    return ("partial", "; ".join(doubts)) if doubts else ("answered", None)


def _with_marker(sentence: str, number: int) -> str:
    """The footnote goes before the sentence's final point."""
    line = " ".join(sentence.split())
    body = line.rstrip(".!?。！？")
    return f"{body} [{number}]{line[len(body) :]}"
