"""How a question flows: search, decide whether anything is relevant, write, check the footnotes."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Collection, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import fmean
from time import perf_counter
from typing import Any

from app.citations import Located, Markers, claims, locate, unsupported
from app.extractive import choose, with_marker
from app.llm import LLM, Message, Piece
from app.llm.prompt import Refusal, build_prompt
from app.memory import Memory
from app.schemas import Answer, Citation, HitOut, Turn, Usage
from ingest.catalog import Catalog
from ingest.filter_keys import check_filter
from ingest.generations import Generations
from retrieval.analysis import analyze, analyze_query, guess_language
from retrieval.embedders import Embedder
from retrieval.errors import InvalidInput
from retrieval.search import Searcher
from retrieval.stores import VectorStore
from retrieval.types import Hit, Query

EXTRACTIVE = "extractive"
# When hits count as relevant: chosen and measured in docs/decisions/0003-when-to-abstain.md.
RELEVANT = 0.62
"""Least sum of the best cosine, up to `COSINE_CAP`, and `COVERAGE_WEIGHT` times the best coverage."""
COSINE_CAP = 0.5
"""Beyond this a cosine says no more: a model gives unrelated texts in a language that it never learnt 0.5 to 0.8."""
COVERAGE_WEIGHT = 0.6
ENGLISH_COSINE = 0.6
"""Enough by itself for an English hit: every model that we know of reads English, and a paraphrase may share no word."""
FOREIGN_COSINE = 0.25
"""Enough by itself for a question in a language that the collection is not in."""
KEYWORD_COVERAGE = 0.25
"""Least coverage where nothing was searched by vector."""

CLAUSE_WORDS = 4
"""Fewest words of a clause that is a question of its own."""
_CLAUSES = re.compile(r"[?;？；]|,\s+(?:and|und|et|y|e|и)\s")


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search, with what answering needs beside the hits."""

    hits: tuple[Hit, ...]
    collection: str
    generation: str | None
    languages: tuple[str, ...] = ()
    embedder: Embedder | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    key: Hashable = None
    """All that the hits depend on; None where nothing was searched."""


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of the answer."""

    text: str


Event = Found | Delta | Citation | Answer


class Answerer:
    """Answers questions over all collections. `models` are the configured ones by name; None is the extractive one."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        generations: Generations,
        store: VectorStore,
        models: Mapping[str, LLM | None],
        default: str,
        memory: Memory,
    ) -> None:
        self.catalog = catalog
        self.generations = generations
        self.store = store
        self.models = models
        self.default = default
        self.memory = memory

    async def search(self, collection: str, query: Query) -> Found:
        """Raises `CollectionNotFound`, `EmbedderMismatch`, `InvalidFilter`, and what store and embedder raise."""
        live = await self.generations.live(collection)
        if query.filter is not None:
            check_filter(query.filter, await self.catalog.metadata_types(collection))
        if live is None:
            return Found((), collection, None)
        generation, embedder = live
        began = perf_counter()
        # As text: to Python True is 1 and 1 is 1.0, and to a filter they are not the same.
        key = (generation.id, generation.revision, generation.languages, repr(query))
        known: Found | None = self.memory.get(key)
        if known is not None:
            return replace(known, timings_ms={"embed": 0.0, "search": (perf_counter() - began) * 1000})
        result = await Searcher(self.store, embedder).search(generation.index, query, generation.languages)
        found = Found(result.hits, collection, generation.id, generation.languages, embedder, result.timings_ms, key)
        self.memory.put(key, found, _size(found.hits))
        return found

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
        searched = _with_history(query, history)
        found = await self.search(collection, searched)
        yield found
        draft = Draft(found, name, began)
        llm = self.models[name]
        key = (found.key, query.text) if llm is None and found.key else None
        known: list[Event] | None = self.memory.get(key) if key else None
        events: list[Event] = []
        async with aclosing(
            draft.again(known) if known else self._write(query.text, searched.text, history, llm, draft)
        ) as new:
            async for event in new:
                if key:
                    events.append(event)
                yield event
        if key and not known:
            self.memory.put(key, events, _size(found.hits))

    async def _write(
        self, question: str, searched: str, history: Sequence[Turn], llm: LLM | None, draft: Draft
    ) -> AsyncGenerator[Event, None]:
        if reason := await _irrelevance(question, searched, draft.found):
            yield draft.abstain(reason)
            return
        events = self._extract(question, draft) if llm is None else self._generate(question, history, llm, draft)
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
            yield draft.add(with_marker(sentence.text, number), separator=number > 1)
            start = hit.chunk.start + sentence.start
            yield draft.cite(number, hit, Located(sentence.text, start, start + len(sentence.text), verified=True))
        draft.generate_ms = (perf_counter() - began) * 1000
        yield draft.finish("answered" if chosen else "abstained", None if chosen else "the hits hold no sentence")

    async def _generate(self, question: str, history: Sequence[Turn], llm: LLM, draft: Draft) -> AsyncGenerator[Event, None]:
        began = perf_counter()
        turns = [Message(turn.role, turn.content) for turn in history]
        chunks = [hit.chunk for hit in draft.found.hits]
        messages, shown = build_prompt(question, turns, chunks, window=llm.window, max_tokens=llm.max_tokens)
        markers, refusal = Markers(shown), Refusal()
        async with aclosing(llm.stream(messages)) as pieces:
            async for piece in pieces:
                draft.count(piece)
                if new := markers.feed(refusal.feed(piece.text)):
                    yield draft.add(new)
        draft.generate_ms = (perf_counter() - began) * 1000
        if refusal.said:
            yield draft.abstain("the model found no answer in the hits")
            return
        if rest := markers.feed(refusal.flush()) + markers.flush():
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

    def count(self, piece: Piece) -> None:
        """Who answers, and how many tokens the server has reported so far."""
        self.model = piece.model or self.model
        self.usage = Usage(
            prompt_tokens=max(self.usage.prompt_tokens, piece.prompt_tokens),
            completion_tokens=max(self.usage.completion_tokens, piece.completion_tokens),
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

    async def again(self, events: Sequence[Event]) -> AsyncGenerator[Event, None]:
        """An answer that was given before, as a new one."""
        for event in events:
            yield event.model_copy(update=self._identity()) if isinstance(event, Answer) else event

    def abstain(self, reason: str) -> Answer:
        self.text, self.citations = "", []
        return self.finish("abstained", reason)

    def finish(self, status: str, reason: str | None) -> Answer:
        return Answer(
            status=status,  # type: ignore[arg-type]
            reason=reason,
            answer=self.text,
            citations=self.citations,
            hits=[hit_out(hit) for hit in self.found.hits],
            model=self.model,
            collection=self.found.collection,
            generation=self.found.generation,
            usage=self.usage,
            **self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        """What no two answers share."""
        total = (perf_counter() - self.began) * 1000
        timings = {**self.found.timings_ms, "generate": self.generate_ms, "total": total}
        return {"id": f"ans_{secrets.token_hex(12)}", "timings_ms": {name: round(value, 2) for name, value in timings.items()}}


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


def _size(hits: Sequence[Hit]) -> int:
    """About the bytes that these take in memory."""
    return 1000 + sum(1500 + 4 * len(hit.chunk.text) for hit in hits)


def _with_history(query: Query, history: Sequence[Turn]) -> Query:
    """A follow-up ("and on Sundays?") is searched together with the question that it follows."""
    asked = [turn.content for turn in history if turn.role == "user"]
    return Query(f"{asked[-1]}\n{query.text}", query.top_k, query.mode, query.filter) if asked else query


async def _irrelevance(question: str, searched: str, found: Found) -> str | None:
    """Why no hit can answer the question, or None if one may. `searched` is the question with what it follows up."""
    if not found.hits:
        return "nothing was found" if found.generation else "the collection is empty"
    covered = max(coverage(searched, found.hits, found.languages), by_clause(question, found.hits, found.languages))
    if is_relevant(found.hits, covered):
        return None
    alike = max(hit.vector_score for hit in found.hits)
    if alike >= FOREIGN_COSINE and await asyncio.to_thread(_is_foreign, question, found.languages):
        return None
    return f"nothing relevant was found: the best hit is {alike:.2f} alike and holds {covered:.0%} of the words asked"


def is_relevant(hits: Sequence[Hit], covered: float) -> bool:
    """Whether the closest of the hits is close enough to the question, of whose words one hit holds the share `covered`."""
    alike = max(hit.vector_score for hit in hits)
    if not any(hit.vector_score for hit in hits):  # found by words alone
        return covered >= KEYWORD_COVERAGE
    if any(hit.vector_score >= ENGLISH_COSINE for hit in hits if hit.chunk.language == "en"):
        return True
    return min(alike, COSINE_CAP) + COVERAGE_WEIGHT * covered >= RELEVANT


def coverage(question: str, hits: Sequence[Hit], languages: Collection[str]) -> float:
    """The largest share of the question's words that one hit holds, each weighted by its length: long words say more."""
    kept = set(analyze_query(question, languages))
    words = analyze(question, None)
    lengths = {word: len(word) for word in words if word in kept}
    stems = {language: analyze(question, language) for language in {hit.chunk.language for hit in hits}}

    def held(hit: Hit) -> int:
        terms = _terms(hit.chunk.headings, hit.chunk.text, hit.chunk.language)
        forms = zip(words, stems[hit.chunk.language], strict=True)
        return sum(
            lengths[word] for word in {word for word, stem in forms if word in kept and (stem in terms or word in terms)}
        )

    return max(map(held, hits), default=0) / (sum(lengths.values()) or 1)


@lru_cache(maxsize=256)
def _terms(headings: tuple[str, ...], text: str, language: str | None) -> frozenset[str]:
    """Of one passage: it is looked at for the question and each of its clauses, and found by other questions too."""
    return frozenset(analyze("\n".join((*headings, text)), language))


def by_clause(question: str, hits: Sequence[Hit], languages: Collection[str]) -> float:
    """The coverage of a question that may ask for several things at once: each may be in another hit, so their mean."""
    clauses = [clause for clause in _CLAUSES.split(question) if len(clause.split()) >= CLAUSE_WORDS]
    whole = coverage(question, hits, languages)
    return max(whole, fmean(coverage(clause, hits, languages) for clause in clauses)) if len(clauses) > 1 else whole


def _is_foreign(question: str, languages: Collection[str]) -> bool:
    """Whether the question is in a language that the collection is not in, so that shared words cannot be expected."""
    language = guess_language(question)
    return language is not None and bool(languages) and language not in languages


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
