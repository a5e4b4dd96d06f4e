"""Formats that programs read: tesseract, pandoc and LibreOffice themselves, on files that are made here."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from pathlib import Path

import docx
import pptx
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin

from ingest.parsers import HEAD_BYTES, Options, Parsed, detect, ocr, parse
from ingest.parsers.media import DOC, EPUB, ODP, ODT, ORG, PNG, PPT, RST, RTF, TIFF
from ingest.parsers.programs import STDOUT, find, run
from retrieval.errors import (
    DocumentTooLarge,
    EncryptedDocument,
    MissingProgram,
    ParseMemoryExceeded,
    ParseTimeout,
    UnreadableDocument,
)
from tests.ingest.programs import require

SENTENCE = "The heron waits in the shallow water."


def read(name: str, data: bytes, options: Options | None = None) -> Parsed:
    return parse(data, name, detect(name, data[:HEAD_BYTES], len(data)), options or Options())


# --- running a program ------------------------------------------------------------------------------------------------------


def test_a_program_gets_a_scratch_folder_and_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTNOTE_API_KEYS", "secret")
    printed = run("sh", ["-c", "pwd; cat given; env"], name="a", files={"given": b"bytes\n"}, result=STDOUT).decode()
    folder, given, *environment = printed.splitlines()
    assert given == "bytes"
    assert f"HOME={folder}" in environment
    assert "secret" not in printed
    assert not Path(folder).exists()


def test_nothing_is_left_of_a_program_that_writes_to_its_end() -> None:
    writes = 'n=0; while :; do : > "$n"; n=$((n+1)); done 2> /dev/null & while ! [ -e 99 ]; do :; done; pwd'
    folders = [run("sh", ["-c", writes], name="a", files={}, result=STDOUT).decode().strip() for _ in range(5)]
    assert not any(Path(folder).exists() for folder in folders)


def test_a_program_that_is_too_slow_ends() -> None:
    with pytest.raises(ParseTimeout, match=r"a\.png could not be read within 0\.2 s"):
        run("sleep", ["1000"], name="a.png", files={}, result=STDOUT, seconds=0.2)


def test_what_a_program_complains_of_is_told() -> None:
    with pytest.raises(UnreadableDocument, match=r"pandoc could not read a\.epub \(.*\)\. Open and save it again"):
        run("pandoc", ["input.epub"], name="a.epub", files={"input.epub": b"junk"}, result=STDOUT)
    with pytest.raises(UnreadableDocument, match=r"pandoc could not read a\.txt\. Open"):
        run("pandoc", ["input.txt"], name="a.txt", files={"input.txt": b"fine"}, result="elsewhere")


def test_a_program_that_lacks_memory_is_no_damaged_file() -> None:
    arguments = ["input.md", "+RTS", "-M8M", "-RTS"]
    with pytest.raises(ParseMemoryExceeded, match="more memory"):
        run("pandoc", arguments, name="a.md", files={"input.md": b"*a* " * 500_000}, result=STDOUT)


def test_a_missing_program_names_the_commands_that_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingProgram, match=r"scan\.png is read by tesseract.*apt-get install tesseract-ocr`.*brew install"):
        detect("scan.png", image_file(Image.new("L", (9, 9))), 99)
    with pytest.raises(MissingProgram, match=r"libreoffice-writer-nogui libreoffice-impress-nogui.*--cask libreoffice"):
        find("soffice", "a.doc")


# --- images -----------------------------------------------------------------------------------------------------------------


def picture(text: str = SENTENCE) -> Image.Image:
    """Half a page at 100 dpi, with a line of text one inch from the left and two from the top."""
    image = Image.new("L", (850, 600), 255)
    ImageDraw.Draw(image).text((100, 200), text, 0, ImageFont.load_default(24))
    return image


def image_file(*pages: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(buffer, kind, dpi=(100, 100), **more, **options)
    return buffer.getvalue()


@pytest.fixture
def tesseract() -> None:
    require("tesseract")


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize("turned", [False, True])
def test_text_of_an_image_has_its_place_on_the_page_however_it_was_scanned(turned: bool) -> None:
    parsed = read("a.png", image_file(picture().rotate(180) if turned else picture()))
    (block,) = parsed.blocks
    assert (block.text, block.page, parsed.receipt.media_type) == (SENTENCE, 1, PNG)
    left, top, right, bottom = block.bbox or (0, 0, 0, 0)
    if turned:
        left, top, right, bottom = 612 - right, 432 - bottom, 612 - left, 432 - top
    assert (left, top) == pytest.approx((72, 148), abs=4)
    assert 350 < right < 420
    assert 155 < bottom < 170


@pytest.mark.usefixtures("tesseract")
def test_a_tiff_has_pages_and_the_receipt_tells_of_each() -> None:
    data = image_file(picture(), Image.new("L", (400, 400), 255), picture("Another leaf."), kind="TIFF")
    parsed = read("scan.tif", data)
    assert [(block.text, block.page) for block in parsed.blocks] == [(SENTENCE, 1), ("Another leaf.", 3)]
    receipt = parsed.receipt
    assert receipt.media_type == TIFF
    assert re.fullmatch(r"tesseract \d+\.\d+\S*", receipt.parser)
    assert (receipt.pages, receipt.pages_without_text, receipt.ocr_pages) == (3, 1, 3)
    assert receipt.page_characters == (len(SENTENCE), 0, len("Another leaf."))
    assert receipt.ocr_confidence is not None
    assert receipt.ocr_confidence > 80
    assert receipt.needs_attention is None


@pytest.mark.usefixtures("tesseract")
def test_a_photograph_lies_as_its_camera_says_and_transparent_is_white() -> None:
    lying = Image.Exif()
    lying[0x0112] = 6
    assert read("a.jpg", image_file(picture().rotate(90, expand=True), kind="JPEG", exif=lying)).text == SENTENCE
    ink = Image.new("RGBA", picture().size, (0, 0, 0, 0))
    ink.putalpha(picture().point(lambda value: 255 - value))
    assert read("a.webp", image_file(ink, kind="WEBP", lossless=True)).text == SENTENCE


@pytest.mark.usefixtures("tesseract")
def test_what_cannot_be_read_well_needs_attention() -> None:
    strange = ImageOps.mirror(picture())
    assert "confidence" in (read("a.png", image_file(strange)).receipt.needs_attention or "")
    empty = read("a.gif", image_file(Image.new("L", (400, 400), 255), kind="GIF"))
    assert (empty.text, empty.receipt.ocr_confidence) == ("", None)
    assert empty.receipt.needs_attention


@pytest.mark.usefixtures("tesseract")
def test_a_language_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(MissingProgram, match=r"\(tlh_Latn\).*apt-get install tesseract-ocr-tlh-Latn`"):
        read("a.png", image_file(picture()), Options(ocr_languages="eng+tlh_Latn"))


def test_a_tiff_whose_resolution_is_no_number_has_the_size_of_a_page() -> None:
    image = Image.new("L", (1100, 550))
    image.info["dpi"] = (TiffImagePlugin.IFDRational(0, 0), 1)
    assert ocr._dpi(image) == 100


def test_images_are_refused_by_their_pixels_before_they_are_decoded() -> None:
    for edge in (11_000, 30_000):  # beyond our limit, and beyond Pillow's
        header = b"IHDR" + edge.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
        data = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
        with pytest.raises(DocumentTooLarge, match="100 million pixels"):
            parse(data, "a.png", PNG)
    with pytest.raises(UnreadableDocument, match="damaged image"):
        parse(b"\x89PNG\r\n\x1a\n" + bytes(50), "a.png", PNG)


# --- pandoc -----------------------------------------------------------------------------------------------------------------

DOCUMENT = """---
title: Waders
author: [A. Bird, B. Watcher]
---

# Herons

The heron waits in the shallow water.

- grey heron
- purple heron

## Measures

| Species | Wing |
|---------|------|
| Grey    | 46   |
| Purple  | 37   |

# Egrets

An egret follows the cattle.
"""


def written(extension: str) -> bytes:
    """The document as pandoc writes it."""
    result = f"out.{extension}"
    return run(
        "pandoc", ["in.md", "--standalone", f"--output={result}"], name="a", files={"in.md": DOCUMENT.encode()}, result=result
    )


@pytest.mark.parametrize(("extension", "media_type"), [("odt", ODT), ("epub", EPUB), ("rtf", RTF), ("rst", RST), ("org", ORG)])
def test_titles_lists_and_tables_are_kept_in_reading_order(extension: str, media_type: str) -> None:
    parsed = read(f"a.{extension}", written(extension))
    assert parsed.receipt.media_type == media_type
    assert parsed.receipt.parser.startswith("pandoc ")
    text = parsed.text
    order = [text.index(each) for each in ("Waders", "Herons", SENTENCE, "purple heron", "Grey | 46\nPurple | 37", "An egret")]
    assert order == sorted(order)
    titles = {block.text: block.depth for block in parsed.blocks if block.kind == "title"}
    assert titles["Measures"] == titles["Herons"] + 1 == titles["Egrets"] + 1
    assert any(block.kind == "table" for block in parsed.blocks)


def test_rich_text_is_in_the_encoding_of_its_fonts() -> None:
    data = (
        rb"{\rtf1\ansi\ansicpg1252\uc1{\fonttbl{\f0\froman\fcharset0 Times;}{\f1\fswiss\fcharset204 Arial Cyr;}"
        rb"{\f2\fnil\fcharset128 Gothic;}}\f0 caf\'e9 {\f1 \'cf\'f0\'e8\'e2\'e5\'f2 \u1052\'cc\'e8\'f0} \'e9t\'e9 "
        rb"{\f2 \'93\'fa\'96\'7b} \{br\'e1ce\} \u8364?5 \u-10180?\u-8436?\par}"
    )
    assert read("a.rtf", data).text == "café Привет Мир été 日本 {bráce} €5 🌌"
    assert read("b.rtf", rb"{\rtf1\ansi\ansicpg1250 \'c8esk\'fd\par}").text == "Český"


def test_a_text_with_markup_may_be_in_any_encoding_and_asks_for_no_file() -> None:
    data = "Überschrift\n===========\n\nGrüße.\n\n.. include:: /etc/passwd\n".encode("utf-16")
    parsed = read("a.rst", data)
    assert (parsed.text, parsed.receipt.encoding) == ("Überschrift\n\nGrüße.", "utf-16-le")
    assert "root:" not in read("a.org", b"* Title\n\n#+INCLUDE: /etc/passwd\n\nbody\n").text


def test_a_bomb_in_an_e_book_is_refused_before_pandoc_sees_it() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", EPUB, zipfile.ZIP_STORED)
        archive.writestr("OEBPS/chapter.xhtml", b"0" * 25 * 2**20)
    with pytest.raises(DocumentTooLarge, match="unpacks to 25 MB"):
        read("a.epub", buffer.getvalue())


# --- LibreOffice ------------------------------------------------------------------------------------------------------------


def converted(source: str, data: bytes, target: str) -> bytes:
    """A file as LibreOffice saves it in another format."""
    require("soffice")
    arguments = ["--headless", "--convert-to", target, f"a.{source}"]
    return run("soffice", arguments, name="a", files={f"a.{source}": data}, result=f"a.{target}")


@pytest.fixture(scope="module")
def word_file() -> bytes:
    document = docx.Document()
    document.add_heading("Herons", 1)
    document.add_paragraph(SENTENCE)
    buffer = io.BytesIO()
    document.save(buffer)
    return converted("docx", buffer.getvalue(), "doc")


@pytest.fixture(scope="module")
def slides() -> bytes:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Herons"
    slide.placeholders[1].text = SENTENCE
    buffer = io.BytesIO()
    deck.save(buffer)
    return buffer.getvalue()


def test_an_old_word_document(word_file: bytes) -> None:
    parsed = read("a.doc", word_file)
    assert [(block.kind, block.text) for block in parsed.blocks] == [("title", "Herons"), ("text", SENTENCE)]
    assert re.fullmatch(r"LibreOffice \S+, unstructured \S+", parsed.receipt.parser)


@pytest.mark.parametrize(("extension", "media_type"), [("ppt", PPT), ("odp", ODP)])
def test_slides_of_other_formats(slides: bytes, extension: str, media_type: str) -> None:
    parsed = read(f"a.{extension}", converted("pptx", slides, extension))
    assert [(block.kind, block.text, block.page) for block in parsed.blocks[:1]] == [("title", "Herons", 1)]
    assert SENTENCE in parsed.text
    assert (parsed.receipt.media_type, parsed.receipt.pages) == (media_type, 1)


def test_encrypted_and_damaged_old_files_never_reach_libreoffice(word_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    encrypted = bytearray(word_file)
    encrypted[word_file.index(b"\xec\xa5") + 11] |= 1
    with pytest.raises(EncryptedDocument, match="password"):
        parse(bytes(encrypted), "a.doc", DOC)
    with pytest.raises(UnreadableDocument, match="damaged or cut short"):
        parse(word_file[:512] + os.urandom(100_000), "a.doc", DOC)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/manifest.xml", "<manifest:encryption-data/>")
    with pytest.raises(EncryptedDocument, match="password"):
        parse(buffer.getvalue(), "a.odp", ODP)
