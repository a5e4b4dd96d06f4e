"""Real files through the service: is a sentence of each in its text, and does a search for it find the file first?

python benchmarks/documents.py --corpus ../corpora/files --url http://127.0.0.1:8000

The folder holds the files and `manifest.tsv`: file, format, …, sentence, expected (`ok` or `empty`), …, sentence_check.
"""

from __future__ import annotations

import argparse
import csv
import time
import unicodedata
from collections import defaultdict
from pathlib import Path

import httpx

WAIT = 300
SETTLED = {"ready", "needs_attention", "failed"}


def upload(http: httpx.Client, collection: str, path: Path) -> dict:
    """The document once it is settled, or its refusal."""
    with path.open("rb") as file:
        sent = http.post("/ingest", params={"wait": WAIT}, files={"files": (path.name, file)}, data={"collection": collection})
    if "documents" not in sent.json():
        return {"status": "refused", "error": sent.json()}
    [document] = sent.json()["documents"]
    if not document["id"]:
        return {**document, "status": "refused"}
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        document = http.get(f"/documents/{document['id']}").json()
        if document["status"] in SETTLED:
            return document
        time.sleep(0.5)
    return document


def same(text: str) -> str:
    """Without what differs between writers: white space, case, presentation forms and marks of direction."""
    return "".join(
        c for c in unicodedata.normalize("NFKC", text).casefold() if not c.isspace() and unicodedata.category(c) != "Cf"
    )


def text_of(http: httpx.Client, document: dict) -> str:
    """The document's text with that of its parts: a sentence may stand in an attachment."""
    parts = http.get("/documents", params={"parent": document["id"], "limit": 200}).json().get("documents", [])
    own = http.get(f"/documents/{document['id']}/text")
    return "\n".join([own.text if own.is_success else "", *(text_of(http, part) for part in parts)])


def check(http: httpx.Client, collection: str, row: dict, path: Path) -> dict:
    document = upload(http, collection, path)
    outcome = {"status": document["status"], "kept": False, "first": False, "why": ""}
    if document["status"] in {"failed", "refused"}:
        outcome["why"] = (document.get("error") or {}).get("detail", "")
        return outcome
    outcome["why"] = (document.get("receipt") or {}).get("needs_attention") or ""
    outcome["kept"] = bool(row["sentence"]) and same(row["sentence"]) in same(text_of(http, document))
    found = http.post("/search", json={"question": row["sentence"] or "x", "collection": collection, "top_k": 1}).json()["hits"]
    # Several files of a corpus may hold the same sentence: the first hit must be one of them.
    outcome["first"] = bool(found) and same(row["sentence"]) in same(
        http.get(f"/documents/{found[0]['document_id']}/text").text
    )
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    rows = list(csv.DictReader((args.corpus / "manifest.tsv").open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    collection = f"files-{int(time.time())}"
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    with httpx.Client(base_url=args.url, timeout=WAIT + 30, trust_env=False) as http:
        for row in rows:
            outcome = check(http, collection, row, args.corpus / row["file"])
            wanted = row["expected"] == "ok" and row["sentence_check"] == "verified"
            told = outcome["status"] in {"failed", "refused", "needs_attention"}
            honest = told or outcome["kept"] or row["expected"] != "empty"  # OCR finds text where a parser alone has none
            format_ = counts[row["format"]]
            format_[0] += 1
            format_[1] += wanted
            format_[2] += wanted and outcome["kept"]
            format_[3] += wanted and outcome["first"]
            if (wanted and not (outcome["kept"] and outcome["first"])) or not honest:
                print(f"  {row['file']}: expected {row['expected']}, {outcome}", flush=True)
    print(f"{'format':10} files  verified  sentence in text  found first")
    for name, (files, wanted, kept, first) in sorted(counts.items()):
        print(f"{name:10} {files:5} {wanted:9} {kept:17} {first:12}")
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    print(f"{'all':10} {totals[0]:5} {totals[1]:9} {totals[2]:17} {totals[3]:12}")


if __name__ == "__main__":
    main()
