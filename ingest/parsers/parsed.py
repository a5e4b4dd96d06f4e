"""What a parser hands over: canonical text, the blocks in it, and a receipt of what was and was not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["title", "text", "list", "table", "code"]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in points, y growing downward from the top of the page."""

SEPARATOR = "\n\n"

_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# What PostgreSQL (NUL), UTF-8 (lone surrogates) or a reader (the other controls) cannot take.
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose about reading; the same for all documents."""

    html: Literal["main", "full"] = "main"
    """Of a web page that is an article: its main text, or also navigation, footers and other frame."""
    ocr_languages: str = "eng"
    """What tesseract expects on scanned pages and images, its codes joined by `+`."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where the reading of a long document goes on."""

    done: int
    """Pages read."""
    pages: int
    known: Any
    """What the parser learnt and wants to be told again."""


@dataclass(frozen=True, slots=True)
class File:
    """What a parser reads."""

    data: bytes
    name: str
    options: Options = Options()
    bookmark: Bookmark | None = None
    """Where an earlier portion ended; None for the beginning."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file within a file: an attachment of a mail, a member of an archive. It becomes a document of its own."""

    name: str
    """With its path within the file, `/` between folders."""
    data: bytes
    media_type: str | None = None
    """What the file says it is, if it says so."""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, title, list, table or piece of code: exactly `parsed.text[start:end]`.

    A table's rows are lines of cells parted by ` | `; the first line is its header.
    """

    kind: Kind
    text: str
    start: int
    end: int
    page: int | None = None
    """1-based page, slide or sheet on which it starts; None where the format has none."""
    depth: int = 0
    """1 for the outermost titles and growing; 0 for all that is no title."""
    bbox: Box | None = None
    within: tuple[str, ...] = ()
    """What it is part of where no title says so, outermost first: the class of a method."""

    def moved(self, by: int) -> Block:
        """The same block of a text that begins so many characters earlier."""
        return replace(self, start=self.start + by, end=self.end + by) if by else self


class Draft(NamedTuple):
    """A block that has no place in the text yet."""

    kind: Kind
    text: str
    page: int | None = None
    depth: int = 0
    bbox: Box | None = None
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was read, what was not, and by what."""

    parser: str
    """Name and version of the program that read the file."""
    media_type: str = ""
    encoding: str | None = None
    """Of a text format; None for a binary one."""
    replaced_characters: int = 0
    """Bytes that were no valid text, now U+FFFD."""
    removed_characters: int = 0
    """NULs, lone surrogates and other control characters."""
    pages: int | None = None
    pages_without_text: int = 0
    page_characters: tuple[int, ...] = ()
    """Characters on each page, in order; empty where the format has no pages."""
    characters: int = 0
    tables_seen: int = 0
    """Tables that the file holds, as far as its format says; less than `tables` never."""
    tables: int = 0
    """Tables kept as rows."""
    images_skipped: int = 0
    """Images whose text, if any, was not read."""
    ocr_pages: int = 0
    ocr_words: int = 0
    """Words that were recognised on them."""
    ocr_confidence: float | None = None
    """Mean confidence of the words on the pages that were recognised, 0 to 100; None if none were."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    needs_attention: str | None = None
    """What a person should know before relying on this document, with a hint; None if all is well."""

    def __add__(self, later: Receipt) -> Receipt:
        """Of two portions of one document."""
        ocr_words = self.ocr_words + later.ocr_words
        confidence = (self.ocr_confidence or 0.0) * self.ocr_words + (later.ocr_confidence or 0.0) * later.ocr_words
        return replace(
            self,
            replaced_characters=self.replaced_characters + later.replaced_characters,
            removed_characters=self.removed_characters + later.removed_characters,
            pages=None if self.pages is None else self.pages + (later.pages or 0),
            pages_without_text=self.pages_without_text + later.pages_without_text,
            page_characters=self.page_characters + later.page_characters,
            characters=self.characters + later.characters,
            tables_seen=self.tables_seen + later.tables_seen,
            tables=self.tables + later.tables,
            images_skipped=self.images_skipped + later.images_skipped,
            ocr_pages=self.ocr_pages + later.ocr_pages,
            ocr_words=ocr_words,
            ocr_confidence=round(confidence / ocr_words, 1) if ocr_words else None,
            notes=self.notes + later.notes,
            seconds=round(self.seconds + later.seconds, 3),
            needs_attention=self.needs_attention or later.needs_attention,
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "notes": list(self.notes), "page_characters": list(self.page_characters)}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document as text. For every block, `text[block.start:block.end] == block.text`."""

    text: str
    blocks: tuple[Block, ...]
    receipt: Receipt
    parts: tuple[Part, ...] = ()
    rest: Bookmark | None = None
    """Where to go on, if this is only a portion of the document."""


def clean(text: str) -> tuple[str, int]:
    """Line ends as `\\n`, without characters that cannot be stored or shown; and how many of those there were."""
    if _SURROGATE.search(text):  # PDFium writes a character beyond U+FFFF as two of them, which belong together
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    text = _LINE_END.sub("\n", text)
    return _UNWANTED.subn("", text)


def assemble(drafts: Iterable[Draft], receipt: Receipt) -> Parsed:
    """Join the drafts to the canonical text, leaving out the empty ones, and complete the receipt's counts."""
    blocks: list[Block] = []
    position = removed = 0
    for draft in drafts:
        text, dropped = clean(draft.text)
        removed += dropped
        text = _outer_blank_lines_off(text)
        if not text:
            continue
        start = position + len(SEPARATOR) if blocks else 0
        position = start + len(text)
        blocks.append(Block(draft.kind, text, start, position, draft.page, draft.depth, draft.bbox, draft.within))
    whole = SEPARATOR.join(block.text for block in blocks)
    tables = sum(block.kind == "table" for block in blocks)
    counted = replace(
        receipt,
        characters=len(whole),
        tables_seen=max(receipt.tables_seen, tables),
        tables=tables,
        removed_characters=receipt.removed_characters + removed,
    )
    return Parsed(whole, tuple(blocks), counted)


def join(portions: Sequence[Parsed]) -> Parsed:
    """The portions of a document, in order, as one."""
    blocks: list[Block] = []
    for portion in portions:
        shift = blocks[-1].end + len(SEPARATOR) if blocks else 0
        blocks += (block.moved(shift) for block in portion.blocks)
    text = SEPARATOR.join(portion.text for portion in portions if portion.text)
    receipt = replace(reduce(Receipt.__add__, (portion.receipt for portion in portions)), characters=len(text))
    return Parsed(text, tuple(blocks), receipt, tuple(part for portion in portions for part in portion.parts))


def _outer_blank_lines_off(text: str) -> str:
    """Without blank lines before and white space after; the first line keeps its indentation, which code needs."""
    body = text.lstrip()
    indent = text[: len(text) - len(body)].rpartition("\n")[2]
    return (indent + body).rstrip() if body else ""


def table_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of cells parted by ` | `, without empty rows and trailing empty cells."""
    lines = []
    for row in rows:
        line = " | ".join(" ".join(str(cell).split()) if cell is not None else "" for cell in row)
        line = line.rstrip(" |")
        if line:
            lines.append(line)
    return "\n".join(lines)
