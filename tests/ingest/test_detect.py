from __future__ import annotations

import contextlib
import io
import time
import zipfile

import pytest

from ingest.parsers import FORMATS, HEAD_BYTES, detect
from ingest.parsers.media import (
    BMP,
    CODE,
    DOC,
    DOCX,
    EPUB,
    GIF,
    HTML,
    JPEG,
    MAIL,
    MBOX,
    MSG,
    ODP,
    ODS,
    ODT,
    ORG,
    PDF,
    PNG,
    PPT,
    PPTX,
    RST,
    RTF,
    TEXT,
    TIFF,
    WEBP,
    XLS,
    XLSX,
    XML,
    ZIP,
)
from retrieval.errors import (
    DocumentTooLarge,
    EmptyDocument,
    EncryptedDocument,
    FootnoteError,
    UnreadableDocument,
    UnsupportedDocument,
)
from tests.ingest.programs import require

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(50)


def archive(*names: str, first: tuple[str, str | bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        if first:
            target.writestr(*first)
        for name in names:
            target.writestr(name, "x" * 10)
    return buffer.getvalue()


WORD = archive("[Content_Types].xml", "_rels/.rels", "word/document.xml")
SLIDES = archive("[Content_Types].xml", "ppt/presentation.xml")
SHEET = archive("[Content_Types].xml", "xl/workbook.xml")
BOOK = archive("META-INF/container.xml", first=("mimetype", EPUB))
SHEET_ODS = archive("content.xml", first=("mimetype", ODS))


def kind(name: str, data: bytes, declared: str | None = None) -> str:
    return detect(name, data[:HEAD_BYTES], len(data), declared)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"plain", TEXT),
        ("noext", b"plain", TEXT),
        ("a.unknown", "überall".encode(), TEXT),
        ("a.md", b"# <html> in a title", "text/markdown"),
        ("A.PDF", b"%PDF-1.7\n...", PDF),
        ("pdf_named.txt", b"junk\n%PDF-1.4\n...", PDF),
        ("html_named.pdf", b"<!-- c -->\n<!DOCTYPE html><html>", HTML),
        ("page.txt", b"  <html><body>", HTML),
        ("feed", b'<?xml version="1.0"?><rss/>', XML),
        ("a.py", b"<html> = 1", CODE),
        ("a.csv", b"a,b\n1,2\n", "text/csv"),
        ("utf16.txt", "text without a mark".encode("utf-16-le"), TEXT),
        ("koi8.txt", "Однажды, в студеную зимнюю пору".encode("koi8-r"), TEXT),
        ("a.eml", b"From: a@example.org\nTo: b@example.org\n\nhello", MAIL),
        ("a.docx", WORD, DOCX),
        ("docx_named.xlsx", WORD, DOCX),
        ("docx_named.txt", WORD, DOCX),
        ("a.pptx", SLIDES, PPTX),
        ("a.xlsx", SHEET, XLSX),
        ("a.ods", SHEET_ODS, ODS),
        ("a.xls", OLE, XLS),
        ("BMW.txt", b"BMW builds cars", TEXT),
        ("a.rst", b"Title\n=====\n", RST),
        ("a.org", b"* Title\n", ORG),
        ("a.mbox", b"From a@example.org Sat Jan  1 00:00:00 2000\nSubject: x\n\nhello", MBOX),
        ("a.rtf", b"{\\rtf1 hello}", RTF),
        ("rtf_named.doc", b"{\\rtf1 hello}", RTF),
        ("a.doc", OLE, DOC),
        ("a.ppt", OLE, PPT),
        ("a.msg", OLE, MSG),
        ("noext", OLE + "__properties_version1.0".encode("utf-16-le"), MSG),
        ("slides_named.doc", OLE + "PowerPoint Document".encode("utf-16-le"), PPT),
        ("with_sheet.doc", OLE + "Workbook WordDocument".encode("utf-16-le"), DOC),
        ("a.odt", archive("content.xml", first=("mimetype", ODT)), ODT),
        ("packed_by_hand.odt", archive("content.xml", "META-INF/manifest.xml"), ODT),
        ("odp_named.zip", archive("content.xml", first=("mimetype", ODP)), ODP),
        ("a.epub", BOOK, EPUB),
        ("packed_by_hand.epub", archive("META-INF/container.xml"), EPUB),
        ("a.zip", archive("a.txt"), ZIP),
        ("noext", archive("a.txt"), ZIP),
        ("folders.zip", archive("word/list.txt", "ppt/a.txt", "xl/b.txt"), ZIP),
        ("with_office.zip", archive("b.txt", first=("a.docx", WORD)), ZIP),
        ("docx_named.zip", WORD, DOCX),
        ("png_named.pdf", PICTURE, PNG),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(90), JPEG),
        ("a.gif", b"GIF89a" + bytes(90), GIF),
        ("a.tif", b"II*\0" + bytes(90), TIFF),
        ("big.tiff", b"MM\0+" + bytes(90), TIFF),
        ("a.bmp", b"BM" + bytes(90), BMP),
        ("a.webp", b"RIFF\0\0\0\0WEBP" + bytes(90), WEBP),
    ],
)
def test_content_and_name_decide_together(name: str, data: bytes, expected: str) -> None:
    require(FORMATS[expected].program)
    assert kind(name, data) == expected


@pytest.mark.parametrize(
    ("name", "data", "error", "says"),
    [
        ("a.txt", b"", EmptyDocument, "empty"),
        ("a.txt", b" \n\t\r\n" * 9, EmptyDocument, "empty"),
        ("a.txt", b"\xef\xbb\xbf", EmptyDocument, "empty"),
        ("a.heic", bytes(4) + b"ftypheic" + bytes(90), UnsupportedDocument, ".jpg"),
        ("a.docx", b"MZ" + bytes(range(256)) * 9, UnsupportedDocument, "program"),
        ("a.txt", b"\x7fELF\x02\x01", UnsupportedDocument, "program"),
        ("a.bin", bytes(range(256)) * 9, UnsupportedDocument, "Supported are .txt"),
        ("a.txt", bytes(range(256)) * 9, UnreadableDocument, "something else"),
        ("a.docx", b"only text", UnreadableDocument, "right name"),
        ("a.pdf", b"%", UnreadableDocument, "right name"),
        ("a.eml", b"no header at all", UnreadableDocument, "right name"),
        ("a.docx", archive("a.txt"), UnsupportedDocument, "Unpack it"),
        ("a.docx", OLE, EncryptedDocument, "password"),
        ("a.pages", archive("Index/Document.iwa"), UnsupportedDocument, "Unpack it"),
        ("noext", OLE, UnsupportedDocument, "newer format"),
        ("a.doc", bytes(range(256)) * 9, UnreadableDocument, "right name"),
        ("a.rtf", b"only text", UnreadableDocument, "right name"),
        ("a.png", bytes(range(256)) * 9, UnreadableDocument, "right name"),
        ("a.mbox", b"Subject: no line that begins a message", UnreadableDocument, "right name"),
        ("a.txt.gz", b"\x1f\x8b\x08" + bytes(range(128, 256)), UnsupportedDocument, "Unpack it"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(name: str, data: bytes, error: type[FootnoteError], says: str) -> None:
    with pytest.raises(error) as caught:
        kind(name, data)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("text", [b"<!---->" * 40 + b"x", b"<!--" * 9000, b"x-" * 30_000, b" " * 60_000 + b"x"])
def test_no_beginning_takes_long(text: bytes) -> None:
    began = time.perf_counter()
    kind("a", text)
    with contextlib.suppress(UnreadableDocument):
        kind("a.eml", text)
    assert time.perf_counter() - began < 1


def test_the_declared_type_counts_for_text_without_a_telling_name() -> None:
    assert kind("upload", b"a,b\n1,2\n", "text/csv; charset=utf-8") == "text/csv"
    assert kind("a.md", b"a,b\n1,2\n", "text/csv") == "text/markdown"
    assert kind("upload", b"a,b", "application/pdf") == TEXT


def test_a_file_beyond_its_types_limit_is_refused() -> None:
    with pytest.raises(DocumentTooLarge, match="at most 20 MB"):
        detect("a.csv", b"a,b\n", 21 * 1024 * 1024)


def test_a_character_cut_at_the_end_of_the_head_is_text() -> None:
    assert detect("a.txt", "é".encode()[:1] and ("x" * 99 + "é").encode()[:-1], 500) == TEXT


def test_the_table_names_each_extension_once() -> None:
    extensions = [extension for each in FORMATS.values() for extension in each.extensions]
    assert len(extensions) == len(set(extensions))
