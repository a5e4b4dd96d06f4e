"""Outlook's messages (.msg), made into messages as the standard library has them.

A .msg file is a folder of streams, each named for the property that it holds; properties of fixed length stand together
in one stream. Its reader is `oxmsg`'s, but not the meaning: that library stops at encodings that it does not know.
"""

from __future__ import annotations

import codecs
import io
import mimetypes
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from ingest.parsers.decode import decode
from ingest.parsers.mail import BROKEN_HEADER

_ROOT, _EMBEDDED, _ITEM = 32, 24, 8
"""Bytes before the first property: of a message, of one within another, of an attachment or recipient."""
_SUBJECT, _BODY, _HTML, _RTF = 0x0037, 0x1000, 0x1013, 0x1009
_SENDER, _SENDER_ADDRESS, _SENDER_MAIL = 0x0C1A, 0x5D01, 0x0C1F
_SUBMITTED, _DELIVERED = 0x0039, 0x0E06
_NAME, _ADDRESS, _MAIL, _ROLE = 0x3001, 0x39FE, 0x3003, 0x0C15
_DATA, _LONG_NAME, _SHORT_NAME, _TYPE, _CONTENT_ID = 0x3701, 0x3707, 0x3704, 0x370E, 0x3712
_PAGE_OF_BODY, _PAGE = 0x3FDE, 0x3FFD
_ROLES = {1: "To", 2: "Cc"}
_NO_BRACKETS = str.maketrans("", "", "<>[]")
"""They begin an address, and one that does not end breaks the whole header."""


_RTF_ONLY = "Its text is kept as RTF only, which is not read in a message. Save it as .eml or as plain text and upload that."


def read_outlook(data: bytes) -> tuple[EmailMessage, list[str], str | None]:
    """A message, notes on what was left out of it, and what a person should know before relying on it."""
    from olefile import OleFileIO  # type: ignore[import-untyped]
    from oxmsg.storage import Storage

    with OleFileIO(io.BytesIO(data)) as ole:
        root = Storage.from_ole(ole)
    notes: list[str] = []
    message = _message(root, _ROOT, notes)
    held = _Properties(root, _ROOT)
    has_text = bool(held.text(_BODY, _PAGE_OF_BODY).strip() or held.html())
    return message, notes, _RTF_ONLY if held.data(_RTF) and not has_text else None


class _Properties:
    """What one storage holds, by the numbers of its properties."""

    def __init__(self, storage: Any, header: int) -> None:
        self._streams: dict[str, bytes] = {stream.name.upper(): stream.bytes_ for stream in storage.streams}
        fixed = self._streams.get("__PROPERTIES_VERSION1.0", b"")[header:]
        rows = (fixed[at : at + 16] for at in range(0, len(fixed) - 15, 16))
        self._fixed = {int.from_bytes(row[2:4], "little"): row[8:] for row in rows}

    def data(self, number: int) -> bytes:
        return self._stream(number, 0x0102)

    def text(self, number: int, page: int = _PAGE) -> str:
        """Of a property in UTF-16, or in the code page that the property `page` names."""
        if wide := self._stream(number, 0x001F):
            return wide.decode("utf-16-le", "replace")
        narrow = self._stream(number, 0x001E)
        return decode(narrow, self._encoding(page)).text if narrow else ""

    def html(self) -> str:
        raw = self.data(_HTML)
        return decode(raw, self._encoding(_PAGE_OF_BODY)).text if raw else self.text(_HTML, _PAGE_OF_BODY)

    def number(self, number: int) -> int | None:
        raw = self._fixed.get(number)
        return None if raw is None else int.from_bytes(raw[:4], "little")

    def time(self, number: int) -> datetime | None:
        """Kept as tenths of microseconds since 1601."""
        raw = self._fixed.get(number)
        try:
            return (
                datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=int.from_bytes(raw, "little") // 10) if raw else None
            )
        except OverflowError:
            return None

    def _stream(self, number: int, kind: int) -> bytes:
        return self._streams.get(f"__SUBSTG1.0_{number:04X}{kind:04X}", b"")

    def _encoding(self, page: int) -> str | None:
        from oxmsg.domain.encodings import encoding_from_codepage

        number = self.number(page)
        if number is None:
            return None
        try:
            return codecs.lookup(f"cp{number}").name
        except LookupError:
            pass
        try:
            return str(encoding_from_codepage(number))
        except Exception:  # noqa: BLE001 - it knows no such code page, and says so by its own kinds of errors
            return None


def _message(storage: Any, header: int, notes: list[str]) -> EmailMessage:
    held = _Properties(storage, header)
    message = EmailMessage()
    for name, value in _headers(storage, held):
        if value := " ".join(value.split()):
            try:
                message[name] = value
            except BROKEN_HEADER:
                notes.append(f"The header {name} is broken and was left out: {value[:200]}")
    text, html = held.text(_BODY, _PAGE_OF_BODY), held.html()
    if text.strip() or not html:
        message.set_content(text)
    else:
        message.set_content(html, subtype="html")
    for each in storage.storages:
        if each.name.startswith("__attach_version1.0_#"):
            _attach(message, each, notes)
    return message


def _headers(storage: Any, held: _Properties) -> list[tuple[str, str]]:
    sender = _address(held.text(_SENDER), held.text(_SENDER_ADDRESS) or held.text(_SENDER_MAIL))
    people: dict[str, list[str]] = {"To": [], "Cc": []}
    for each in storage.storages:
        if each.name.startswith("__recip_version1.0_#"):
            person = _Properties(each, _ITEM)
            role = _ROLES.get(person.number(_ROLE) or 1)
            if role:
                people[role].append(_address(person.text(_NAME), person.text(_ADDRESS) or person.text(_MAIL)))
    moment = held.time(_SUBMITTED) or held.time(_DELIVERED)
    lists = [(role, ", ".join(filter(None, names))) for role, names in people.items()]
    return [
        ("Subject", held.text(_SUBJECT)),
        ("From", sender),
        *lists,
        ("Date", format_datetime(moment) if moment else ""),
    ]


def _address(name: str, address: str) -> str:
    """`Ada <ada@example.org>`; an address inside Exchange is none for a reader."""
    name = name.strip("'\" ")
    if "@" not in address:
        return name.translate(_NO_BRACKETS)
    quoted = f'"{name}"' if set(name) & set(",;<>()[]") else name
    return f"{quoted} <{address}>" if name and name != address else address


def _attach(message: EmailMessage, storage: Any, notes: list[str]) -> None:
    held = _Properties(storage, _ITEM)
    name = " ".join((held.text(_LONG_NAME) or held.text(_SHORT_NAME) or held.text(_NAME)).split())
    inner = next((each for each in storage.storages if each.name.upper() == f"__SUBSTG1.0_{_DATA:04X}000D"), None)
    data = held.data(_DATA)
    if inner is not None and any(stream.name == "__properties_version1.0" for stream in inner.streams):
        message.add_attachment(_message(inner, _EMBEDDED, notes))
    elif data:
        kind = " ".join(held.text(_TYPE).split()) or mimetypes.guess_type(name)[0] or ""
        main, _, sub = kind.partition("/")
        if not (main.isalpha() and sub) or main in {"multipart", "message"}:
            main, sub = "application", "octet-stream"
        message.add_attachment(data, maintype=main, subtype=sub, filename=name or None, cid=_content_id(held))
    else:
        notes.append(f"The attachment {name or 'without a name'} is a link or an embedded object, and was not read.")


def _content_id(held: _Properties) -> str | None:
    found = "".join(held.text(_CONTENT_ID).split()).strip("<>")
    return f"<{found}>" if found else None
