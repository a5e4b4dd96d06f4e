"""Old Office formats and OpenDocument slides, made new by LibreOffice and then read as the new ones are."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace

import olefile  # type: ignore[import-untyped]

from ingest.parsers.office import parse_docx, parse_pptx
from ingest.parsers.parsed import File, Parsed
from ingest.parsers.programs import run, version
from retrieval.errors import EncryptedDocument, UnreadableDocument

_ENCRYPTED_WORD = 0x0100
"""Bit of the word at byte 10 of a Word file."""
_ENCRYPTED_SLIDES = (0xF3D1C4DF).to_bytes(4, "little")
"""At byte 12 of a PowerPoint file's stream "Current User"."""

_SETTINGS_FILE = ".config/libreoffice/4/user/registrymodifications.xcu"
_SETTINGS = b"""<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry" xmlns:xs="http://www.w3.org/2001/XMLSchema">
<item oor:path="/org.openoffice.Office.Common/Security/Scripting">
<prop oor:name="BlockUntrustedRefererLinks" oor:op="fuse"><value>true</value></prop>
<prop oor:name="DisableMacrosExecution" oor:op="fuse"><value>true</value></prop>
</item>
</oor:items>
"""
"""Of LibreOffice: no document fetches what it links to, or runs a macro."""


def parse_doc(file: File) -> Parsed:
    """A Word document of before 2007."""
    if int.from_bytes(_stream(file, "WordDocument")[10:12], "little") & _ENCRYPTED_WORD:
        raise _encrypted(file.name)
    return _converted(file, "doc", "docx", parse_docx)


def parse_ppt(file: File) -> Parsed:
    """A PowerPoint deck of before 2007."""
    if _stream(file, "Current User")[12:16] == _ENCRYPTED_SLIDES:
        raise _encrypted(file.name)
    return _converted(file, "ppt", "pptx", parse_pptx)


def parse_odp(file: File) -> Parsed:
    """An OpenDocument presentation."""
    with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
        if b"encryption-data" in archive.read("META-INF/manifest.xml"):
            raise _encrypted(file.name)
    return _converted(file, "odp", "pptx", parse_pptx)


def _converted(file: File, old: str, new: str, parse: Callable[[File], Parsed]) -> Parsed:
    # A profile in the scratch folder: two LibreOffices wait for each other over one.
    arguments = ["--headless", "--norestore", "--convert-to", new, f"input.{old}"]
    files = {f"input.{old}": file.data, _SETTINGS_FILE: _SETTINGS}
    data = run("soffice", arguments, name=file.name, files=files, result=f"input.{new}")
    parsed = parse(File(data, file.name, file.options))
    return replace(parsed, receipt=replace(parsed.receipt, parser=f"{version('soffice')}, {parsed.receipt.parser}"))


def _stream(file: File, name: str) -> bytes:
    """A stream of an OLE container, which is what all of these are; junk would keep LibreOffice busy for a minute."""
    try:
        with olefile.OleFileIO(io.BytesIO(file.data)) as container:
            return bytes(container.openstream(name).read())
    except (OSError, ValueError) as error:
        raise UnreadableDocument(f"{file.name} is damaged or cut short. Open and save it again, then upload it.") from error


def _encrypted(name: str) -> EncryptedDocument:
    return EncryptedDocument(f"{name} is protected by a password. Save it without one and upload it again.")
