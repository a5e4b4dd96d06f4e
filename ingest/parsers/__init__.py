"""Files to text: `detect` tells what one is, `parse` reads it; the service does so in other processes, by `ParserPool`."""

from __future__ import annotations

import io
import re
import time
import zipfile
from dataclasses import replace
from importlib import import_module

from ingest.parsers.media import FORMATS, HEAD_BYTES, SUPPORTED, detect
from ingest.parsers.parsed import Block, Box, Draft, File, Kind, Options, Parsed, Part, Receipt, assemble
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
    "SUPPORTED",
    "Block",
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
    "parse",
]

DEFAULTS = Options()
_MAX_UNPACKED = 200 * 1024 * 1024
_MAX_MEMBERS = 10_000
_MAX_RATIO = 200
_RATIO_FLOOR = 20 * 1024 * 1024
"""Below this many bytes unpacked, any ratio is harmless: office files hold long runs of blanks."""
_UNREADABLE = re.compile("[\ufffd\ue000-\uf8ff]")


def parse(data: bytes, name: str, media_type: str, options: Options = DEFAULTS) -> Parsed:
    """Read a document. CPU-bound, and not to be trusted with hostile bytes outside a process that can be killed.

    Raises what `retrieval.errors` lists under `InvalidInput`, `UnreadableDocument` for any failure of a parser.
    """
    started = time.perf_counter()
    if media_type not in FORMATS:
        raise UnsupportedDocument(f"{name}: the type {media_type} is not supported. Supported are {SUPPORTED}.")
    module, _, function = FORMATS[media_type].parser.partition(":")
    try:
        _guard_archive(data, name)
        parsed: Parsed = getattr(import_module(module), function)(File(data, name, options))
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
    return _judged(parsed, name, media_type, time.perf_counter() - started)


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


def _judged(parsed: Parsed, name: str, media_type: str, seconds: float) -> Parsed:
    """Complete the receipt and say what a person should know."""
    receipt = replace(parsed.receipt, media_type=media_type, seconds=round(seconds, 3))
    if not parsed.text.strip():
        if not receipt.pages and not receipt.images_skipped:
            raise EmptyDocument(f"{name} holds no text.")
        receipt = replace(receipt, needs_attention=_no_text(receipt))
    elif not receipt.needs_attention:
        receipt = replace(receipt, needs_attention=_doubts(parsed))
    return replace(parsed, receipt=receipt)


def _no_text(receipt: Receipt) -> str:
    if receipt.pages:
        return (
            f"No text layer on any of its {receipt.pages} pages, so nothing can be found in it. It is probably a scan: "
            "run OCR on it (for example `ocrmypdf`, which uses tesseract) and upload the result."
        )
    return f"It holds {receipt.images_skipped} images and no text, so nothing can be found in it. Upload a version with text."


def _doubts(parsed: Parsed) -> str | None:
    receipt, sample = parsed.receipt, parsed.text[:200_000]
    strange = len(_UNREADABLE.findall(sample))
    if strange > 0.05 * len(sample):
        return (
            "Much of its text is unreadable signs: the wrong encoding, or fonts without a meaning. "
            "Save it as UTF-8, or run OCR on it."
        )
    if receipt.removed_characters > 0.2 * (receipt.characters + receipt.removed_characters):
        return (
            f"{receipt.removed_characters:,} control characters were removed; it is perhaps not a text. "
            "Check that it is what you meant."
        )
    if receipt.pages and receipt.pages_without_text > max(1, 0.2 * receipt.pages):
        return (
            f"{receipt.pages_without_text} of its {receipt.pages} pages have no text layer and cannot be found. "
            "If they are scans, run OCR on it (for example `ocrmypdf`) and upload the result."
        )
    return None
