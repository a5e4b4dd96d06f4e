"""Recall, precision and IoU of gold spans among the passages that a vector search finds, for our chunks and for others'.

python benchmarks/chunking.py --corpus ../shared/corpora/chroma_chunking --models data/var/models

The corpus has `docs/*.md` and `questions.jsonl` with character-exact gold spans (https://github.com/brandonstarxel/chunking_evaluation).
All chunkers are embedded by the same model and searched exactly. Top five passages favours long ones, so the figures are
also taken at equal numbers of retrieved characters: best first, the last one cut off where the budget ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import ingest.parsers.elements  # noqa: F401 - sets up `unstructured` before its first import
from ingest.chunk import Chunking, chunk
from ingest.parsers import parse
from retrieval.embedders import Embedder, Tokenizer, open_embedder

MODEL = "local:sentence-transformers/all-MiniLM-L6-v2"
TOP = 5
BUDGETS = (2000, 4000, 8000)

Shown = tuple[str, str]
"""A passage, and what is embedded in front of it."""
Chunker = Callable[[str], Iterable[Shown]]


class Span(NamedTuple):
    """A passage's place in its document."""

    document: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    text: str
    document: str
    gold: np.ndarray
    """The character offsets of the answer, ascending."""


class Places:
    """Finds passages in a document by their visible characters, because parsers join and part lines."""

    def __init__(self, text: str) -> None:
        self.offsets = [at for at, character in enumerate(text) if not character.isspace()]
        self.visible = "".join(text[at] for at in self.offsets)

    def find(self, passage: str, after: int) -> tuple[int, int] | None:
        """First and last offset, end exclusive, of the passage at or after an offset, or else anywhere."""
        visible = "".join(passage.split())
        at = self.visible.find(visible, bisect_left(self.offsets, after))
        at = at if at >= 0 else self.visible.find(visible)
        return (self.offsets[at], self.offsets[at + len(visible) - 1] + 1) if at >= 0 and visible else None


def ours(text: str, tokenizer: Tokenizer, chunking: Chunking) -> Iterable[Shown]:
    parsed = parse(text.encode(), "a.txt", "text/plain")
    return [(parsed.text[piece.start : piece.end], piece.context) for piece in chunk(parsed, tokenizer, chunking)]


def recursive(text: str, size: int, overlap: int) -> Iterable[Shown]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=overlap)
    return [(passage, "") for passage in splitter.split_text(text)]


def by_title(text: str, size: int) -> Iterable[Shown]:
    from unstructured.chunking.title import chunk_by_title
    from unstructured.partition.text import partition_text

    elements = partition_text(text=text, languages=[""])
    return [(each.text, "") for each in chunk_by_title(elements, max_characters=size)]


def chunkers(tokenizer: Tokenizer) -> dict[str, Chunker]:
    """By name; the first is what the service does unless told otherwise."""
    settings = {
        "ours, default": Chunking(),
        "ours, no context": Chunking(context=False),
        "ours, the model's window": Chunking(size=tokenizer.window),
        **{f"ours, {size} tokens": Chunking(size=size) for size in (96, 128, 160, 192)},
        "ours, 32 tokens of overlap": Chunking(overlap=32),
    }
    return {
        **{name: partial(ours, tokenizer=tokenizer, chunking=chunking) for name, chunking in settings.items()},
        "recursive, 800 characters": partial(recursive, size=800, overlap=0),
        "recursive, 800, overlap 400": partial(recursive, size=800, overlap=400),
        "by title, 800 characters": partial(by_title, size=800),
        "by title, 1000 characters": partial(by_title, size=1000),
    }


def read_questions(corpus: Path) -> list[Question]:
    lines = (corpus / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [_question(json.loads(line)) for line in lines if line.strip()]


def _question(item: dict) -> Question:
    spans = [np.arange(each["start_index"], each["end_index"]) for each in item["references"]]
    return Question(item["question"], item["doc"], np.unique(np.concatenate(spans)))


def cut(documents: dict[str, str], chunker: Chunker) -> tuple[list[Span], list[str], int]:
    """Passages' places, the texts to embed, and how many passages are not found in their document."""
    spans, texts, lost = [], [], 0
    for name, text in documents.items():
        places, after = Places(text), 0
        for passage, context in chunker(text):
            found = places.find(passage, after)
            if found is None:
                lost += 1
                continue
            after = found[0]
            spans.append(Span(name, *found))
            texts.append(f"{context}\n{passage}" if context else passage)
    return spans, texts, lost


def score(question: Question, ranked: Iterable[Span], budget: int | None) -> tuple[float, float, float, int]:
    """Recall, precision, intersection over union and characters shown, of the top passages or of what the budget buys."""
    found, shown = np.zeros(len(question.gold), bool), 0
    for rank, span in enumerate(ranked):
        end = span.end if budget is None else min(span.end, span.start + budget - shown)
        if end <= span.start or (budget is None and rank == TOP):
            break
        shown += end - span.start
        if span.document == question.document:
            found |= (question.gold >= span.start) & (question.gold < end)
    hit = int(found.sum())
    return hit / len(found), hit / shown, hit / (shown + len(found) - hit), shown


def measure(questions: list[Question], similar: np.ndarray, spans: list[Span]) -> dict[str, dict[str, float]]:
    ranked = [[spans[at] for at in np.argsort(-row, kind="stable")[:400]] for row in similar]
    rows = {}
    for budget in (None, *BUDGETS):
        scores = [score(question, best, budget) for question, best in zip(questions, ranked, strict=True)]
        mean = np.mean(scores, axis=0)
        name = f"top {TOP}" if budget is None else f"{budget} characters"
        rows[name] = dict(zip(("recall", "precision", "iou", "characters"), (round(float(x), 4) for x in mean), strict=True))
    return rows


async def embed(embedder: Embedder, texts: list[str], known: dict[str, np.ndarray]) -> np.ndarray:
    """Vectors of the texts; those of earlier chunkers are not computed again."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    for first in range(0, len(new), 256):
        batch = new[first : first + 256]
        known.update(zip(batch, await embedder.embed_documents(batch), strict=True))
    return np.stack([known[text] for text in texts])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunkers", nargs="*", help="names of chunkers, all if none")
    parser.add_argument("--corpus", type=Path, required=True, help="the folder with docs/ and questions.jsonl")
    parser.add_argument("--models", help="where models are kept (the service's FOOTNOTE_MODELS_DIR)")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    documents = {path.stem: path.read_bytes().decode() for path in sorted((args.corpus / "docs").glob("*.md"))}
    questions = read_questions(args.corpus)
    embedder = await open_embedder(args.model, cache_dir=args.models)
    asked = np.stack([await embedder.embed_query(question.text) for question in questions])
    known: dict[str, np.ndarray] = {}
    available = chunkers(embedder.tokenizer)
    for name in args.chunkers or available:
        spans, texts, lost = cut(documents, available[name])
        vectors = await embed(embedder, texts, known)
        figures = measure(questions, asked @ vectors.T, spans)
        print(json.dumps({"chunker": name, "passages": len(spans), "lost": lost, **figures}), flush=True)
    await embedder.close()


if __name__ == "__main__":
    asyncio.run(main())
