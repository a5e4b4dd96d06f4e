"""Mail (.eml, .msg), mailboxes (.mbox) and saved web pages (.mhtml), by the standard library's reader."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes, policy
from email.message import MIMEPart
from email.parser import BytesHeaderParser

from ingest.parsers.decode import decode
from ingest.parsers.html import html_drafts
from ingest.parsers.parsed import Draft, File, Parsed, Part, Receipt, assemble
from ingest.parsers.text import text_drafts
from retrieval.errors import DocumentTooLarge, UnreadableDocument

_MAX_PARTS = 2000
_MAX_MESSAGES = 10_000
_PART = re.compile(rb"^content-type:", re.IGNORECASE | re.MULTILINE)
_POSTMARK = re.compile(rb"^From [^\r\n]*\d:\d\d[^\r\n]*\r?\n", re.MULTILINE)
"""Parts the messages of a mailbox; it has the time, by which a sentence that begins with "From" is told from it."""
_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
_HEAD_BYTES = 64 * 1024
_BODY = frozenset({"text/plain", "text/html", "text/markdown"})
_SIGNATURES = frozenset({"application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature"})
_HEADERS = ("From", "To", "Cc", "Date")
_AS_IT_CAME = policy.default.clone(refold_source="none")
BROKEN_HEADER = (ValueError, LookupError, AttributeError, TypeError)
"""What the library raises on headers that are too broken for it."""


def parse_mail(file: File) -> Parsed:
    """A message: its heading and its body, plain text before HTML. Attachments and forwarded messages are parts."""
    if sum(1 for _ in _PART.finditer(file.data)) > _MAX_PARTS:  # counted before: reading 20,000 parts takes 20 s
        raise DocumentTooLarge(
            f"{file.name} has more than {_MAX_PARTS:,} parts. Save its attachments and upload them as files."
        )
    try:
        return _parsed(message_from_bytes(file.data, policy=policy.default))
    except RecursionError as error:
        raise UnreadableDocument(f"{file.name} nests its parts too deeply to be read.") from error


def parse_msg(file: File) -> Parsed:
    """A message as Outlook saves it."""
    from ingest.parsers.outlook import read_outlook

    message, notes, doubt = read_outlook(file.data)
    parsed = _parsed(message)
    receipt = replace(parsed.receipt, parser="outlook", notes=(*notes, *parsed.receipt.notes), needs_attention=doubt)
    return replace(parsed, receipt=receipt)


def parse_mbox(file: File) -> Parsed:
    """A mailbox has no text of its own: each message is a part."""
    marks = [mark for mark in _POSTMARK.finditer(file.data) if _follows_blank_line(file.data, mark.start())]
    if not marks:
        raise UnreadableDocument(f"{file.name} is no mailbox: no line in it begins a message. Give it its right name.")
    if len(marks) > _MAX_MESSAGES:
        raise DocumentTooLarge(f"{file.name} has more than {_MAX_MESSAGES:,} messages. Split it and upload the parts.")
    ends = [*(mark.start() for mark in marks[1:]), len(file.data)]
    messages = (file.data[mark.end() : end] for mark, end in zip(marks, ends, strict=True))
    parts = tuple(_mail_part(_QUOTED.sub(rb"\1", message)) for message in messages if message.strip())
    return Parsed("", (), Receipt("mailbox"), parts)


def _follows_blank_line(data: bytes, at: int) -> bool:
    before = data[max(0, at - 3) : at]
    return not before.strip() or before.endswith((b"\n\n", b"\n\r\n"))


def _mail_part(data: bytes) -> Part:
    head = BytesHeaderParser(policy=policy.default).parsebytes(data[:_HEAD_BYTES])
    return Part(_title(_header(head, "Subject")), data, "message/rfc822")


def _title(subject: str) -> str:
    """A forwarded message is named by its subject, the same whatever comes before it in its file."""
    plain = re.sub(r"[/\\]", "-", subject)[:100].strip()
    return f"{plain or 'message'}.eml"


@dataclass(slots=True)
class _Contents:
    body: list[MIMEPart] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    images: int = 0
    left: list[str] = field(default_factory=list)


def _parsed(message: MIMEPart) -> Parsed:
    found = _contents(message)
    drafts = list(_heading(message, found.parts))
    for leaf in found.body:
        drafts += _body(leaf)
    notes = (f"{len(found.left)} signatures and the like were left out: {', '.join(found.left[:20])}.",) if found.left else ()
    parsed = assemble(drafts, Receipt("email", images_skipped=found.images, notes=notes))
    return replace(parsed, parts=tuple(found.parts))


def _contents(message: MIMEPart) -> _Contents:
    found = _Contents()
    is_page = (
        message.get_content_type() == "multipart/related" and "From" not in message
    )  # its pictures and styles are no parts
    for leaf in _leaves(message):
        kind, attached = leaf.get_content_type(), _is_attached(leaf)
        if leaf.get_content_maintype() == "multipart" or (kind in _BODY and not attached):
            found.body.append(leaf)
        elif leaf.get_content_maintype() == "image" and (is_page or not attached or "Content-ID" in leaf):
            found.images += 1
        elif kind in _SIGNATURES:
            found.left.append(_file_name(leaf))
        elif not is_page:
            found.parts.append(Part(_file_name(leaf), _bytes(leaf), kind))
    return found


def _leaves(message: MIMEPart, html: bool = True) -> Iterator[MIMEPart]:
    """What is no container, in order; without the HTML of a body that is there as plain text as well."""
    if message.get_content_maintype() != "multipart" or not message.is_multipart():
        if html or message.get_content_type() != "text/html" or _is_attached(message):
            yield message
        return
    inner = list(message.iter_parts())
    if message.get_content_type() == "multipart/alternative":
        html = html and not any(part.get_content_type() == "text/plain" and _bytes(part).strip() for part in inner)
    for part in inner:
        yield from _leaves(part, html)


def _is_attached(leaf: MIMEPart) -> bool:
    try:
        return leaf.get_content_disposition() == "attachment" or bool(leaf.get_filename())
    except BROKEN_HEADER:
        return False


def _heading(message: MIMEPart, parts: list[Part]) -> Iterator[Draft]:
    subject = _header(message, "Subject")
    if subject:
        yield Draft("title", subject, None, 1)
    lines = [f"{header}: {value}" for header in _HEADERS if (value := _header(message, header))]
    if parts:
        lines.append(f"Attachments: {', '.join(part.name for part in parts)}")
    if len(lines) > 1:  # a saved page has at most its date
        yield Draft("text", "\n".join(lines))


def _header(message: MIMEPart, header: str) -> str:
    try:
        return " ".join(str(message.get(header, "")).split())[:2000]
    except BROKEN_HEADER:
        return ""


def _body(leaf: MIMEPart) -> Iterator[Draft]:
    text = decode(_bytes(leaf), leaf.get_content_charset()).text
    yield from html_drafts(text)[0] if leaf.get_content_subtype() == "html" else text_drafts(text)


def _bytes(leaf: MIMEPart) -> bytes:
    """What a leaf holds; of a message, the message."""
    inner = leaf.get_payload()
    if isinstance(inner, list):
        return b"\n".join(each.as_bytes(policy=_AS_IT_CAME) for each in inner if isinstance(each, MIMEPart))
    payload = leaf.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _file_name(leaf: MIMEPart) -> str:
    inner = leaf.get_payload()
    if leaf.get_content_type() == "message/rfc822" and isinstance(inner, list) and isinstance(inner[0], MIMEPart):
        return _title(_header(inner[0], "Subject"))
    try:
        given = leaf.get_filename()
    except BROKEN_HEADER:
        given = None
    name = re.split(r"[/\\]", given or "")[-1].strip()
    return name or f"attachment{mimetypes.guess_extension(leaf.get_content_type()) or ''}"
