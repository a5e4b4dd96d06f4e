"""Mail and saved web pages (.eml, .mhtml), by the standard library's reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage

from ingest.parsers.decode import decode
from ingest.parsers.html import html_drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble
from ingest.parsers.text import text_drafts
from retrieval.errors import DocumentTooLarge, UnreadableDocument

_MAX_PARTS = 2000
_PART = re.compile(rb"^content-type:", re.IGNORECASE | re.MULTILINE)
_READ = {"text/plain", "text/html", "text/markdown", "text/csv"}
_HEADERS = ("From", "To", "Cc", "Date")


def parse_mail(file: File) -> Parsed:
    """A message: its heading, body (plain text before HTML) and attachments of text; others are named in the notes."""
    if sum(1 for _ in _PART.finditer(file.data)) > _MAX_PARTS:  # counted before: reading 20,000 parts takes 20 s
        raise DocumentTooLarge(
            f"{file.name} has more than {_MAX_PARTS:,} parts. Save its attachments and upload them as files."
        )
    try:
        message = message_from_bytes(file.data, policy=policy.default)
        parts = list(message.walk())
    except RecursionError as error:
        raise UnreadableDocument(f"{file.name} nests its parts too deeply to be read.") from error
    drafts = list(_heading(message))
    skipped: list[str] = []
    for part in _chosen(parts):
        if part.get_content_type() in _READ:
            drafts += _body(part)
        else:
            skipped.append(_file_name(part) or part.get_content_type())
    images = sum(part.get_content_maintype() == "image" for part in parts)
    notes = (f"{len(skipped)} attachments were not read: {', '.join(skipped[:20])}.",) if skipped else ()
    return assemble(drafts, Receipt("email", images_skipped=images, notes=notes))


def _heading(message: EmailMessage) -> Iterator[Draft]:
    subject = _header(message, "Subject")
    if subject:
        yield Draft("title", subject, None, 1)
    lines = [f"{header}: {value}" for header in _HEADERS if (value := _header(message, header))]
    if len(lines) > 1:  # a saved page has at most its date
        yield Draft("text", "\n".join(lines))


def _header(message: EmailMessage, header: str) -> str:
    try:
        return " ".join(str(message.get(header, "")).split())[:2000]
    except (ValueError, LookupError, IndexError, AttributeError, TypeError):  # a header too broken for the library
        return ""


def _chosen(parts: list[EmailMessage]) -> Iterator[EmailMessage]:
    """Leaves to read; of alternatives the plain text, or else the HTML."""
    dropped: set[int] = set()
    for part in parts:
        if part.get_content_type() == "multipart/alternative":
            versions = {kind.get_content_type() for kind in part.iter_parts()}
            if "text/plain" in versions:
                dropped |= {id(kind) for kind in part.iter_parts() if kind.get_content_type() == "text/html"}
    for part in parts:
        if not part.is_multipart() and id(part) not in dropped:
            yield part


def _body(part: EmailMessage) -> Iterator[Draft]:
    payload = part.get_payload(decode=True)
    text = decode(payload if isinstance(payload, bytes) else b"", part.get_content_charset()).text
    file_name = _file_name(part)
    if file_name and part.get_content_disposition() == "attachment":
        yield Draft("title", file_name, None, 2)
    yield from html_drafts(text)[0] if part.get_content_subtype() == "html" else text_drafts(text)


def _file_name(part: EmailMessage) -> str | None:
    try:
        return part.get_filename()
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
