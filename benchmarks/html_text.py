"""How well the main text of web pages is told from what frames it, by our parser and by others.

python benchmarks/html_text.py --corpus ../shared/corpora/html_extract_open

The corpus has `docs/` and `expected.jsonl`, where `with` lists segments of a page that must be kept, and `without` such as
should be left out (the layout of trafilatura's evaluation). A segment that is kept counts as found, rightly or wrongly.
"""

from __future__ import annotations

import argparse
import json
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from ingest.parsers import Options, parse
from ingest.parsers.elements import load
from retrieval.errors import EmptyDocument

Extractor = Callable[[bytes], str]


def ours(data: bytes, options: Options) -> str:
    try:
        return parse(data, "page.html", "text/html", options).text
    except EmptyDocument:
        return ""


def by_trafilatura(data: bytes) -> str:
    import trafilatura

    return trafilatura.extract(data, include_comments=False, include_tables=True) or ""


def by_unstructured(data: bytes) -> str:
    from unstructured.partition.html import partition_html

    return "\n".join(element.text for element in partition_html(text=data.decode("utf-8", "replace"), languages=[""]))


EXTRACTORS: dict[str, Extractor] = {
    "ours, main": lambda data: ours(data, Options(html="main")),
    "ours, full": lambda data: ours(data, Options(html="full")),
    "trafilatura": by_trafilatura,
    "unstructured": by_unstructured,
}


def even(text: str) -> str:
    """Without what is no difference to a reader: line ends, doubled blanks, composed letters, soft hyphens."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\xad", "").split())


def measure(extract: Extractor, pages: list[tuple[bytes, dict]]) -> dict[str, float]:
    kept = lost = wrong = dropped = 0
    began = time.process_time()
    texts = [extract(data) for data, _ in pages]
    seconds = time.process_time() - began
    for text, (_, expected) in zip(map(even, texts), pages, strict=True):
        found = sum(even(segment) in text for segment in expected["with"])
        kept, lost = kept + found, lost + len(expected["with"]) - found
        found = sum(even(segment) in text for segment in expected["without"])
        wrong, dropped = wrong + found, dropped + len(expected["without"]) - found
    precision, recall = kept / (kept + wrong), kept / (kept + lost)
    figures = {
        "precision": precision,
        "recall": recall,
        "f": 2 * precision * recall / (precision + recall),
        "accuracy": (kept + dropped) / (kept + lost + wrong + dropped),
        "ms_per_page": 1000 * seconds / len(pages),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="the folder with docs/ and expected.jsonl")
    args = parser.parse_args()
    lines = (args.corpus / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(line) for line in lines if line.strip()]
    pages = [((args.corpus / "docs" / item["_id"]).read_bytes(), item) for item in expected]
    load()
    for extract in EXTRACTORS.values():  # imports are not part of the time
        extract(pages[0][0])
    for name, extract in EXTRACTORS.items():
        print(json.dumps({"extractor": name, "pages": len(pages), **measure(extract, pages)}), flush=True)


if __name__ == "__main__":
    main()
