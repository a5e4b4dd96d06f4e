from __future__ import annotations

import io
import zipfile

import pytest

from ingest.parsers import FORMATS, HEAD_BYTES, detect
from ingest.parsers.media import CODE, DOCX, HTML, MAIL, ODS, PDF, PPTX, TEXT, XLS, XLSX, XML
from retrieval.errors import (
    DocumentTooLarge,
    EmptyDocument,
    EncryptedDocument,
    FootnoteError,
    UnreadableDocument,
    UnsupportedDocument,
)

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


def archive(*names: str, first: tuple[str, str] | None = None) -> bytes:
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
    ],
)
def test_content_and_name_decide_together(name: str, data: bytes, expected: str) -> None:
    assert kind(name, data) == expected


@pytest.mark.parametrize(
    ("name", "data", "error", "says"),
    [
        ("a.txt", b"", EmptyDocument, "empty"),
        ("a.txt", b" \n\t\r\n" * 9, EmptyDocument, "empty"),
        ("a.txt", b"\xef\xbb\xbf", EmptyDocument, "empty"),
        ("a.pdf", PNG, UnsupportedDocument, "PNG image"),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(90), UnsupportedDocument, "JPEG image"),
        ("a.docx", b"MZ" + bytes(range(256)) * 9, UnsupportedDocument, "program"),
        ("a.txt", b"\x7fELF\x02\x01", UnsupportedDocument, "program"),
        ("a.bin", bytes(range(256)) * 9, UnsupportedDocument, "Supported are .txt"),
        ("a.txt", bytes(range(256)) * 9, UnreadableDocument, "something else"),
        ("a.docx", b"only text", UnreadableDocument, "right name"),
        ("a.pdf", b"%", UnreadableDocument, "right name"),
        ("a.eml", b"no header at all", UnreadableDocument, "right name"),
        ("a.docx", archive("a.txt"), UnsupportedDocument, "Unpack it"),
        ("a.docx", OLE, EncryptedDocument, "password"),
        ("a.doc", OLE, UnsupportedDocument, "Save it as .docx"),
        ("a.epub", archive("x", first=("mimetype", "application/epub+zip")), UnsupportedDocument, ".html or .pdf"),
        ("a.rtf", b"{\\rtf1 hello}", UnsupportedDocument, "Save it as .docx"),
        ("a.txt.gz", b"\x1f\x8b\x08" + bytes(range(128, 256)), UnsupportedDocument, "Unpack it"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(name: str, data: bytes, error: type[FootnoteError], says: str) -> None:
    with pytest.raises(error) as caught:
        kind(name, data)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert name in str(caught.value)


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
