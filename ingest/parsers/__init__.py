"""Files to text: `detect` tells what one is, `parse` reads it; the service does so in other processes, by `ParserPool`."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module

from ingest.parsers.media import FORMATS, HEAD_BYTES, SUPPORTED, detect
from ingest.parsers.parsed import (
    SEPARATOR,
    Block,
    Bookmark,
    Box,
    Draft,
    File,
    Kind,
    Options,
    Parsed,
    Part,
    Receipt,
    assemble,
    join,
)
from retrieval.errors import (
    DocumentTooLarge,
    EmptyDocument,
    FootnoteError,
    ParseMemoryExceeded,
    UnreadableDocument,
    UnsupportedDocument,
)

__all__ = [
    "FORMATS",
    "HEAD_BYTES",
    "SEPARATOR",
    "SUPPORTED",
    "Block",
    "Bookmark",
    "Box",
    "Draft",
    "File",
    "Kind",
    "Options",
    "Parsed",
    "Part",
    "Receipt",
    "assemble",
    "detect",
    "finish",
    "parse",
    "parse_portion",
]

DEFAULTS = Options()
_MAX_UNPACKED = 200 * 1024 * 1024
_MAX_MEMBERS = 10_000
_MAX_RATIO = 200
_RATIO_FLOOR = 20 * 1024 * 1024
"""Below this many bytes unpacked, any ratio is harmless: office files hold long runs of blanks."""
_UNREADABLE = re.compile("[\ufffd\ue000-\uf8ff]")
_UNREADABLE_SHARE = 0.05
_EMPTY_PAGES = 0.2
"""Share of pages without text up to which they pass for blank ones and pictures."""
_OCR_CONFIDENCE = 60.0
_SALAD_SAMPLE, _SALAD_WORDS = 20_000, 50


def parse(data: bytes, name: str, media_type: str, options: Options = DEFAULTS) -> Parsed:
    """Read a document. CPU-bound, and not to be trusted with hostile bytes outside a process that can be killed.

    Raises what `retrieval.errors` lists under `InvalidInput`, `UnreadableDocument` for any failure of a parser.
    """
    portions = [parse_portion(data, name, media_type, options)]
    while portions[-1].rest:
        portions.append(parse_portion(data, name, media_type, options, portions[-1].rest))
    return finish(portions, name)


def parse_portion(
    data: bytes, name: str, media_type: str, options: Options = DEFAULTS, bookmark: Bookmark | None = None
) -> Parsed:
    """Read a document from `bookmark` on, as much as its parser does in one go; `Parsed.rest` says where to go on.

    Raises as `parse` does.
    """
    started = time.perf_counter()
    if media_type not in FORMATS:
        raise UnsupportedDocument(f"{name}: the type {media_type} is not supported. Supported are {SUPPORTED}.")
    module, _, function = FORMATS[media_type].parser.partition(":")
    try:
        _guard_archive(data, name)
        parsed: Parsed = getattr(import_module(module), function)(File(data, name, options, bookmark))
    except FootnoteError:
        raise
    except MemoryError as error:
        raise ParseMemoryExceeded(
            f"{name} needs more memory than a document may take. Split it and upload the parts."
        ) from error
    except Exception as error:  # the border: parsers raise anything at all on damaged files
        raise UnreadableDocument(
            f"{name} could not be read ({_short(error)}). Open and save it again, then upload it."
        ) from error
    receipt = replace(parsed.receipt, media_type=media_type, seconds=round(time.perf_counter() - started, 3))
    return replace(parsed, receipt=receipt)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _guard_archive(data: bytes, name: str) -> None:
    """Refuse ZIP bombs by what the archive says of itself; readers stop at the sizes it declares."""
    if not data.startswith(b"PK\x03\x04"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UnreadableDocument(f"{name} is damaged or cut short. Open and save it again, then upload it.") from error
    unpacked = sum(member.file_size for member in members)
    bomb = unpacked > _RATIO_FLOOR and unpacked > _MAX_RATIO * len(data)
    if len(members) > _MAX_MEMBERS or unpacked > _MAX_UNPACKED or bomb:
        raise DocumentTooLarge(
            f"{name} unpacks to {unpacked / 2**20:,.0f} MB in {len(members):,} parts, more than a document may."
        )


def finish(portions: Sequence[Parsed], name: str) -> Parsed:
    """All portions of a document as one, with what a person should know of it. Raises `EmptyDocument`."""
    parsed = join(portions)
    receipt = parsed.receipt
    says_something = bool(parsed.text.strip() or parsed.parts)
    if not says_something and not (receipt.pages or receipt.images_skipped):
        raise EmptyDocument(f"{name} holds no text.")
    reasons = [receipt.needs_attention, *(_doubts(parsed) if says_something else [_no_text(receipt)])]
    return replace(parsed, receipt=replace(receipt, needs_attention=" ".join(filter(None, reasons)) or None))


def _no_text(receipt: Receipt) -> str:
    if receipt.pages:
        return (
            f"No text layer on any of its {receipt.pages} pages, and no text was read on them by OCR, "
            "so nothing can be found in it. Upload a version with text."
        )
    return f"It holds {receipt.images_skipped} images and no text, so nothing can be found in it. Upload a version with text."


def _doubts(parsed: Parsed) -> Iterator[str]:
    """Reasons not to rely on a text, each with what to do."""
    receipt, sample = parsed.receipt, parsed.text[:200_000]
    if len(_UNREADABLE.findall(sample)) > _UNREADABLE_SHARE * len(sample):
        yield (
            "Much of its text is unreadable signs: the wrong encoding, or fonts without a meaning. "
            "Save it as UTF-8, or print it to a new PDF and run OCR on that."
        )
    if _is_letter_salad(sample):
        yield (
            "Most of its words are single letters: the file places each letter on its own, so words cannot be found in it. "
            "Upload the file that it was made from, or print it to a new PDF and run OCR on that."
        )
    if receipt.removed_characters > 0.2 * (receipt.characters + receipt.removed_characters):
        yield (
            f"{receipt.removed_characters:,} control characters were removed; it is perhaps not a text. "
            "Check that it is what you meant."
        )
    if receipt.pages and receipt.pages_without_text > max(1, _EMPTY_PAGES * receipt.pages):
        yield (
            f"{receipt.pages_without_text} of its {receipt.pages} pages have no text, neither as a text layer nor for OCR, "
            "and cannot be found. If they show text, scan them again with more contrast, or upload the original."
        )
    confidence = receipt.ocr_confidence or 0.0
    if receipt.ocr_pages and confidence < _OCR_CONFIDENCE:
        yield (
            f"OCR is not sure of what it read on {receipt.ocr_pages} pages (confidence {confidence:.0f} of 100). "
            "Check the text; scan them again at 300 dpi, or set FOOTNOTE_OCR_LANGUAGES to their language."
        )


def _is_letter_salad(text: str) -> bool:
    """Whether most of what is parted by blanks is one letter; scripts without blanks have long words by this measure."""
    words = [word for word in text[:_SALAD_SAMPLE].split() if word.isalpha()]
    return len(words) > _SALAD_WORDS and sum(len(word) == 1 and word < "\u2e80" for word in words) * 2 > len(words)
