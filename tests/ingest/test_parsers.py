from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import pickle
import unicodedata
import zipfile
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.parsers import FORMATS, HEAD_BYTES, Draft, Parsed, Receipt, assemble, detect, parse
from ingest.parsers.decode import decode
from retrieval.errors import DocumentTooLarge, EmptyDocument, InvalidInput, UnreadableDocument
from tests.ingest.programs import require

CORPUS = Path(__file__).parents[3] / "shared" / "corpora" / "files"


def read(name: str, data: bytes | str) -> Parsed:
    data = data.encode() if isinstance(data, str) else data
    parsed = parse(data, name, detect(name, data[:HEAD_BYTES], len(data)))
    assert all(parsed.text[block.start : block.end] == block.text for block in parsed.blocks)
    assert parsed.text == "\n\n".join(block.text for block in parsed.blocks)
    assert json.dumps(parsed.receipt.as_dict())
    return parsed


def kinds(parsed: Parsed) -> list[tuple[str, int, str]]:
    return [(block.kind, block.depth, block.text) for block in parsed.blocks]


# Text


def test_text_keeps_its_words_and_finds_titles_lists_and_paragraphs() -> None:
    parsed = read(
        "a.txt", "INTRODUCTION\r\n\r\nFirst line\r\nsecond line.\n\n\n\n- one\n- two\n\n2.1 Methods\n\nTitle\n=====\nbody"
    )
    assert kinds(parsed) == [
        ("title", 1, "INTRODUCTION"),
        ("text", 0, "First line\nsecond line."),
        ("list", 0, "- one\n- two"),
        ("title", 2, "2.1 Methods"),
        ("title", 1, "Title"),
        ("text", 0, "body"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_unicode_encodings(encoding: str) -> None:
    text = "Grüße aus Köln, 你好 and more text."
    assert read("a.txt", text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Однажды, в студеную зимнюю пору я из лесу вышел; был сильный мороз. " * 20),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 20),
        ("gb18030", "人工智能系统可以检索文本并且生成答案，每句话都有出处。" * 20),
        ("cp1252", "Le café où l’été dernier nous étions assis était fermé à cause de la grève générale. " * 20),
    ],
)
def test_older_encodings_are_detected(encoding: str, text: str) -> None:
    parsed = read("a.txt", text.encode(encoding))
    assert parsed.text == text.strip()
    assert parsed.receipt.encoding != "utf-8"
    assert parsed.receipt.replaced_characters == 0


def test_one_bad_byte_costs_one_character() -> None:
    data = ("Grüße. " * 500).encode() + b"\xff" + ("Grüße. " * 500).encode()
    parsed = read("a.txt", data)
    assert parsed.receipt.encoding == "utf-8"
    assert parsed.receipt.replaced_characters == 1
    assert parsed.text.count("Grüße") == 1000


def test_characters_that_cannot_be_stored_are_removed_and_counted() -> None:
    parsed = read("a.txt", "before\x00after and \x01\x02 more text, quite enough of it")
    assert parsed.text == "beforeafter and  more text, quite enough of it"
    assert parsed.receipt.removed_characters == 3
    assert parsed.receipt.needs_attention is None


def test_mostly_control_characters_need_attention() -> None:
    parsed = read("a.txt", "\x01\x02\x03\x04" * 100 + "visible")
    assert parsed.text == "visible"
    assert "control characters were removed" in (parsed.receipt.needs_attention or "")


def test_only_blank_text_is_empty() -> None:
    with pytest.raises(EmptyDocument):
        parse(b"\n" * 100_000, "a.txt", "text/plain")


@given(st.lists(st.tuples(st.sampled_from(["title", "text", "list", "table", "code"]), st.text(st.characters(), max_size=30))))
@settings(max_examples=200)
def test_any_blocks_make_a_text_of_which_they_are_slices(blocks: list) -> None:
    parsed = assemble((Draft(kind, text) for kind, text in blocks), Receipt("test"))
    assert all(parsed.text[block.start : block.end] == block.text for block in parsed.blocks)
    parsed.text.encode("utf-8")
    assert "\x00" not in parsed.text
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        decode(data).text.encode("utf-8")


def test_subtitles_lose_their_times_and_keep_their_speakers() -> None:
    parsed = read("a.vtt", "WEBVTT\n\n1\n00:01.000 --> 00:02.000 align:left\n<v Ada>It is <i>so</i> &amp; more</v>\n\nNOTE x\n")
    assert parsed.text == "Ada: It is so & more"


# Markup


def test_markdown() -> None:
    source = (
        "---\ntag: x\n---\n# One **bold** { #one }\n\nA [link](http://x).\n\n- a\n- b\n\n"
        "| h | i |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```\n"
    )
    assert kinds(read("a.md", source)) == [
        ("code", 0, "tag: x"),
        ("title", 1, "One bold"),
        ("text", 0, "A [link](http://x)."),
        ("list", 0, "- a\n- b"),
        ("table", 0, "h | i\n1 | 2"),
        ("code", 0, "x = 1"),
    ]


@pytest.mark.parametrize("source", ["[" * 50_000 + "x", ">" * 50_000 + " x", "*_" * 60_000 + "x", "`" * 99_999 + "x"])
def test_markdown_floods_end_with_all_their_text(source: str) -> None:
    assert len(read("a.md", source).text) == len(source)


def test_html() -> None:
    page = """<html><head><title>Site</title><script>var s="NO"</script></head><body><h1>Head</h1>
      <p>Some <b>bold</b> text.</p>
      <ul><li>one</li><li>two</li></ul><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
      <p style="display:none">HIDDEN</p><p hidden>HIDDEN</p><template>HIDDEN</template><!-- HIDDEN -->
      <img src=x> tail</body></html>"""
    parsed = read("a.html", page)
    assert kinds(parsed)[:5] == [
        ("title", 1, "Site"),
        ("title", 1, "Head"),
        ("text", 0, "Some bold text."),
        ("list", 0, "- one\n- two"),
        ("table", 0, "a | b\n1 | 2"),
    ]
    assert "HIDDEN" not in parsed.text
    assert "NO" not in parsed.text
    assert parsed.text.endswith("tail")
    assert parsed.receipt.images_skipped == 1


def test_html_nested_beyond_what_the_library_keeps_loses_nothing() -> None:
    parsed = read("a.html", "<html><body>" + "<div>" * 5000 + "deep text" + "</div>" * 5000 + "<p>after</p></body></html>")
    assert parsed.text == "deep text\n\nafter"
    assert parsed.receipt.notes


def test_html_in_a_declared_encoding() -> None:
    page = '<html><head><meta charset="windows-1252"></head><body><p>café à la carte</p></body></html>'
    assert read("a.html", page.encode("cp1252")).text == "café à la carte"


def test_xml_expands_and_fetches_nothing() -> None:
    parsed = read(
        "a.xml", '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r><a>one &x;</a><b>two</b></r>'
    )
    assert "root:" not in parsed.text
    assert "b: two" in parsed.text
    with pytest.raises(UnreadableDocument):
        read("a.xml", "<r><unclosed></r>")


def test_json_records_lines_and_what_is_none() -> None:
    assert [block.text for block in read("a.json", '[{"a": "\\u4f60\\ud800"}, {"b": 2}]').blocks] == [
        '{\n "a": "你"\n}',
        '{\n "b": 2\n}',
    ]
    assert read("a.json", "[" * 100_000).receipt.notes
    parsed = read("a.jsonl", '{"t":"ok"}\nnot json\n{"t":1}\n')
    assert [block.text for block in parsed.blocks] == ['{\n "t": "ok"\n}', "not json", '{\n "t": 1\n}']
    assert "1 lines" in parsed.receipt.notes[0]


def test_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["1\n"]}, {"data": {"image/png": "xx"}}]},
    ]
    parsed = read("a.ipynb", json.dumps({"cells": cells}))
    assert kinds(parsed) == [("title", 1, "Title"), ("text", 0, "words"), ("code", 0, "print(1)"), ("code", 0, "1")]
    assert parsed.receipt.images_skipped == 1


def test_mail_with_alternatives_and_attachments() -> None:
    source = (
        "From: Ada <a@example.org>\nTo: b@example.org\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMIME-Version: 1.0\n"
        'Content-Type: multipart/mixed; boundary="m"\n\n--m\nContent-Type: multipart/alternative; boundary="a"\n\n'
        "--a\nContent-Type: text/plain\n\nThe body.\n--a\nContent-Type: text/html\n\n<p>HTML body</p>\n--a--\n"
        '--m\nContent-Type: text/plain\nContent-Disposition: attachment; filename="notes.txt"\n\nattached\n'
        '--m\nContent-Type: application/zip\nContent-Disposition: attachment; filename="x.zip"\n\nUEs=\n--m--\n'
    )
    parsed = read("a.eml", source)
    assert [block.text for block in parsed.blocks] == [
        "Grüße",
        "From: Ada <a@example.org>\nTo: b@example.org\nAttachments: notes.txt, x.zip",
        "The body.",
    ]
    assert [(part.name, part.data) for part in parsed.parts] == [("notes.txt", b"attached"), ("x.zip", b"UEs=")]


# Tables, code, office


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.csv", 'name,note\nAda,"says, ""hi""\nthere"\n'),
        ("a.csv", 'name;note\nAda;"says, ""hi"" there"\n'),
        ("a.tsv", 'name\tnote\nAda\tsays, "hi" there\n'),
        ("a.csv", 'name|note\nAda|"says, ""hi"" there"\n'),
    ],
)
def test_delimited_rows(name: str, source: str) -> None:
    assert kinds(read(name, source)) == [("table", 0, 'name | note\nAda | says, "hi" there')]


def test_code_is_parted_where_something_begins() -> None:
    source = "import os\n\n\ndef one():\n    a = 1\n\n    return a\n\n\n@deco\nclass Two:\n    x = [\n\n    ]\n"
    assert [block.text for block in read("a.py", source).blocks] == [
        "import os",
        "def one():\n    a = 1\n\n    return a",
        "@deco\nclass Two:\n    x = [\n\n    ]",
    ]


def test_word_document() -> None:
    document = docx.Document()
    document.add_heading("Report", 1)
    document.add_paragraph("Plain words.")
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    document.add_heading("Part", 2)
    table = document.add_table(2, 2)
    for row, cells in enumerate((("h", "i"), ("1", "2"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    buffer = io.BytesIO()
    document.save(buffer)
    assert kinds(read("a.docx", buffer.getvalue())) == [
        ("title", 1, "Report"),
        ("text", 0, "Plain words."),
        ("list", 0, "- first\n- second"),
        ("title", 2, "Part"),
        ("table", 0, "h | i\n1 | 2"),
    ]


def test_slides() -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Slide title"
    slide.placeholders[1].text = "A point of some length."
    slide.notes_slide.notes_text_frame.text = "What the speaker says."
    buffer = io.BytesIO()
    deck.save(buffer)
    parsed = read("a.pptx", buffer.getvalue())
    assert kinds(parsed)[0] == ("title", 1, "Slide title")
    assert {"A point of some length.", "What the speaker says."} <= {block.text.removeprefix("- ") for block in parsed.blocks}
    assert {block.page for block in parsed.blocks} == {1}


def test_spreadsheet() -> None:
    book = openpyxl.Workbook()
    book.active.title = "First"
    book.active.append(["name", "count", None])
    book.active.append(["Ada", 3.0, None])
    book.create_sheet("Second").append(["x"])
    buffer = io.BytesIO()
    book.save(buffer)
    book.close()
    parsed = read("a.xlsx", buffer.getvalue())
    assert [(block.kind, block.page, block.text) for block in parsed.blocks] == [
        ("title", 1, "First"),
        ("table", 1, "name | count\nAda | 3"),
        ("title", 2, "Second"),
        ("table", 2, "x"),
    ]


def test_a_spreadsheet_with_a_stray_far_cell_is_read_without_the_places_between() -> None:
    book = openpyxl.Workbook()
    book.active.append(["Ada", 3.0, dt.date(2026, 3, 1)])
    book.active["XFD1048576"] = "stray"
    buffer = io.BytesIO()
    book.save(buffer)
    book.close()
    parsed = read("a.xlsx", buffer.getvalue())
    assert [(block.kind, block.text) for block in parsed.blocks] == [
        ("title", "Sheet"),
        ("table", "Ada | 3 | 2026-03-01\nstray"),
    ]


def test_damaged_archives_and_bombs_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "x")
        archive.writestr("word/document.xml", b"A" * (64 << 20))
    with pytest.raises(DocumentTooLarge, match="unpacks to 64 MB"):
        read("bomb.docx", buffer.getvalue())
    with pytest.raises(UnreadableDocument, match="cut short"):
        read("half.docx", buffer.getvalue()[:1000])


# The corpus


def _flat(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _whole(name: str, data: bytes) -> str:
    """The text of a file and of the files in it."""
    parsed = read(name, data)
    return parsed.text + "".join(_whole(part.name, part.data) for part in parsed.parts)


def _manifest() -> list[tuple[str, str]]:
    if not CORPUS.is_dir():
        return []
    rows = [line.split("\t") for line in (CORPUS / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return [
        (row[0], row[4]) for row in rows if row[4] and row[1] != "pdf" and (row[5] == "ok" or row[1] in {"jpg", "png", "tif"})
    ]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus ../shared/corpora/files is not on this machine")
@pytest.mark.parametrize(("name", "sentence"), _manifest())
def test_the_sentence_of_each_real_file_is_in_its_text(name: str, sentence: str) -> None:
    for program in {each.program for each in FORMATS.values() if Path(name).suffix[1:] in each.extensions}:
        require(program)
    assert _flat(sentence) in _flat(_whole(name, (CORPUS / name).read_bytes()))


PROSE = "The harbour of Ostrava was dug in one winter by four thousand men, of whom eleven hundred were paid in salt. " * 3


@pytest.mark.parametrize(
    "text",
    [
        f"Salt and harbours\n{PROSE}",
        f"How the harbour of Ostrava was dug.\n{PROSE}",
        f"Salt and harbours\n\n{PROSE}\n\nCHAPTER 2\n\n{PROSE}",
    ],
)
def test_the_line_before_a_text_that_is_no_line_of_it_is_its_title(text):
    parsed = read("harbours.txt", text.encode())
    first = parsed.blocks[0]
    assert (first.kind, first.depth, first.text) == ("title", 1, text.split("\n")[0])
    assert [block.depth for block in parsed.blocks[1:] if block.kind == "title"] in ([], [2])
    assert all(parsed.text[block.start : block.end] == block.text for block in parsed.blocks)


@pytest.mark.parametrize(
    "text",
    [
        "The harbour of Ostrava was dug in one winter by four thousand men,\nof whom eleven hundred were paid\nin salt.",
        f"It was cold.\n\n{PROSE}",
        f"- one of the things\n{PROSE}",
        f"{PROSE}\n{PROSE}",
        "Salt and harbours\nand more",
        "Salt and harbours",
    ],
)
def test_a_first_line_that_belongs_to_the_text_is_no_title(text):
    assert [block.kind for block in read("harbours.txt", text.encode()).blocks if block.kind == "title"] == []


@pytest.mark.parametrize("blank", [" ", "\n", " \n", "\t"])
def test_any_amount_of_white_space_before_a_text_is_passed_over_at_once(blank):
    """Where every end of it was tried, a million took hours: the time limit of each test is the bound."""
    [block] = read("blank.txt", blank * 1_000_000 + "x").blocks
    assert block.text.strip() == "x"
