"""PDF: text layers, tables, what is left out, scanned pages by tesseract itself, and long documents in portions."""

from __future__ import annotations

import io
import time
import unicodedata
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image, ImageDraw, ImageFont

from ingest.parsers import DEFAULTS, Draft, Parsed, Receipt, assemble, finish, parse, parse_portion
from ingest.parsers.media import PDF
from ingest.parsers.parsed import Box
from ingest.parsers.pdf_layout import Line, join_lines, reading_order
from ingest.parsers.pdf_numbers import aligned_tables
from ingest.parsers.pdf_tables import ruled_tables
from retrieval.errors import EmptyDocument, EncryptedDocument, UnreadableDocument
from tests.ingest.programs import require

CORPUS = Path(__file__).parents[3] / "shared" / "corpora" / "files"


def read(data: bytes) -> Parsed:
    parsed = parse(data, "a.pdf", PDF)
    assert all(parsed.text[block.start : block.end] == block.text for block in parsed.blocks)
    assert parsed.receipt.pages == len(parsed.receipt.page_characters)
    return parsed


def pdf(*pages: str, encrypt: str = "", boxes: tuple[str, ...] = ("/MediaBox[0 0 612 792]",)) -> bytes:
    """A PDF whose pages have these content streams and, in turn, boxes, with Helvetica as F1 and its bold as F2."""
    kids = " ".join(f"{5 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica-Bold>>",
    ]
    for at, content in enumerate(pages):
        fonts = "<</Font<</F1 3 0 R/F2 4 0 R>>>>"
        objects.append(f"<</Type/Page/Parent 2 0 R{boxes[at % len(boxes)]}/Contents {6 + 2 * at} 0 R/Resources{fonts}>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    body, offsets = "%PDF-1.7\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<</Size {size}/Root 1 0 R{encrypt}>>\n"
        f"startxref\n{len(body)}\n%%EOF\n"
    ).encode("latin-1")


def lines(x: int, y: int, *texts: str, size: int = 10, font: str = "F1") -> str:
    return f"BT /{font} {size} Tf {size + 2} TL {x} {y} Td " + " T* ".join(f"({text}) Tj" for text in texts) + " ET\n"


def row(y: int, *cells: tuple[int, str], size: int = 10) -> str:
    """Texts side by side at one height."""
    return "".join(lines(x, y, text, size=size) for x, text in cells)


PROSE = [
    "Rivers carry sand and stones to the sea, and where they meet it they",
    "lay down a delta. In 1994 the delta grew by 12 metres, in 1995 by 14,",
    "which the report of that year puts down to the floods of the winter.",
]


# What is on a page


def test_pdf_titles_paragraphs_pages_and_boxes() -> None:
    body = [
        "The quick brown fox jumps over the lazy dog and so it goes",
        "on to the next line of this long para-",
        "graph of text.",
    ]
    first = lines(72, 720, "Annual Report", size=20) + lines(72, 680, *body) + lines(72, 620, "Bold section", font="F2")
    parsed = read(pdf(first + lines(72, 600, *body), lines(72, 720, "Second page here.")))
    text = "The quick brown fox jumps over the lazy dog and so it goes on to the next line of this long paragraph of text."
    found = [(block.kind, block.depth, " ".join(block.text.split()), block.page) for block in parsed.blocks]
    assert found == [
        ("title", 1, "Annual Report", 1),
        ("text", 0, text, 1),
        ("title", 2, "Bold section", 1),
        ("text", 0, text, 1),
        ("text", 0, "Second page here.", 2),
    ]
    left, top, right, bottom = parsed.blocks[0].bbox or (0, 0, 0, 0)
    assert left == pytest.approx(72, abs=3)
    assert 50 < top < 72 < bottom + 10
    assert right > 150
    assert parsed.receipt.pages == 2
    assert parsed.receipt.needs_attention is None


def test_pdf_columns_that_the_file_interleaves_are_read_one_after_the_other() -> None:
    rows = "".join(
        lines(72, 700 - 14 * at, f"left column text number {at} ok")
        + lines(330, 700 - 14 * at, f"right column text number {at} ok")
        for at in range(12)
    )
    text = " ".join(read(pdf(rows)).text.split())
    assert text.index("left column text number 11") < text.index("right column text number 0")


def test_pdf_without_text_needs_attention_and_says_what_helps() -> None:
    parsed = read(pdf("0 0 100 100 re f", "0 0 9 9 re f"))
    assert parsed.text == ""
    assert parsed.receipt.pages_without_text == 2
    assert "No text layer" in (parsed.receipt.needs_attention or "")
    assert "OCR" in (parsed.receipt.needs_attention or "")


def test_pdf_with_some_pages_without_text_says_how_many() -> None:
    parsed = read(pdf(lines(72, 720, "Words on a page."), "", "", ""))
    assert "3 of its 4 pages" in (parsed.receipt.needs_attention or "")


def test_pdf_that_cannot_be_opened() -> None:
    with pytest.raises(UnreadableDocument, match="damaged"):
        read(b"%PDF-1.7\n")
    locked = pdf(
        lines(72, 720, "secret"),
        encrypt=f"/Encrypt<</Filter/Standard/V 1/R 2/O<{'41' * 32}>/U<{'42' * 32}>/P -4>>/ID[<00><00>]",
    )
    with pytest.raises(EncryptedDocument, match="password"):
        read(locked)
    with pytest.raises((EmptyDocument, UnreadableDocument)):
        read(pdf())


def test_hyphens_at_the_end_of_lines_part_words_or_belong_to_them() -> None:
    body = ["A well-known case: the well-", "known para-", "graph on non-", "GAAP figures."]
    text = read(pdf(lines(72, 700, *body))).text
    assert " ".join(text.split()) == "A well-known case: the well-known paragraph on non-GAAP figures."
    assert join_lines([Line("soft\xadened words", 0, 0, 90, 10, 10)]) == "softened words"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (("Long term rating BBB-", "Outlook stable"), "Long term rating BBB-Outlook stable"),
        (("His blood type O-", "was rare"), "His blood type O-was rare"),
        (("git commit --no-", "verify"), "git commit --no-verify"),
        (
            ("The letters of a COMPA-", "NY and its COVID-19-", "related costs"),
            "The letters of a COMPANY and its COVID-19-related costs",
        ),
    ],
)
def test_a_minus_or_hyphen_at_the_end_of_a_line_that_parts_no_word_stays(body: tuple[str, ...], text: str) -> None:
    assert " ".join(read(pdf(lines(72, 700, *body))).text.split()) == text
    assert read(pdf(lines(72, 700, "Our rating is A-") + lines(72, 600, "It is stable."))).text.startswith("Our rating is A-\n")


def test_a_minus_at_the_end_of_a_cell_stays() -> None:
    cells = [("Fund", "Yield", "Rating"), ("Alder", "12.5", "A-"), ("Birch", "13.5", "BBB-"), ("Cedar", "14.5", "BB-")]
    page = "".join(row(700 - 14 * at, *zip((72, 300, 400), each, strict=True)) for at, each in enumerate(cells))
    assert "Birch | 13.5 BBB-" in read(pdf(page)).text.replace("13.5 | ", "13.5 ")


def test_lines_that_repeat_on_most_pages_are_left_out_and_told() -> None:
    pages = [
        lines(72, 760, "ACME Annual Report 2024")
        + lines(72, 600, f"Chapter {at} is about rivers.")
        + lines(300, 30, f"Page {at} of 9")
        for at in range(1, 10)
    ]
    parsed = read(pdf(*pages))
    assert [block.text for block in parsed.blocks] == [f"Chapter {at} is about rivers." for at in range(1, 10)]
    running = "18 lines that repeat on most pages were left out (headers, footers, page numbers)"
    assert parsed.receipt.notes == (f"{running}: “ACME Annual Report 2024”, “Page # of 9”.",)
    assert parsed.receipt.needs_attention is None


def test_the_same_line_elsewhere_on_the_page_stays() -> None:
    pages = [lines(72, 770 - 13 * at, "Signed by both parties") + lines(72, 200, f"Contract {at} text") for at in range(6)]
    assert read(pdf(*pages)).text.count("Signed by both parties") == 6


def test_lines_at_the_edge_that_differ_in_numbers_other_than_the_page_s_stay() -> None:
    pages = [
        lines(72, 760, f"Invoice No. 2024-{at:03}")
        + lines(72, 400, f"Goods of order {at}")
        + lines(72, 50, f"Total due: ${at * at + 20},137.00", f"{at * 7}")
        + lines(300, 30, f"- {at + 3} -")
        for at in range(1, 9)
    ]
    parsed = read(pdf(*pages))
    assert parsed.text.count("Invoice No. 2024-00") == parsed.text.count("Total due: $") == 8
    assert "56" in parsed.text.split()
    assert parsed.receipt.notes[0].startswith("8 lines")


@pytest.mark.parametrize(
    ("box", "bottom", "height"),
    [
        ("/MediaBox[0 0 612 792]/CropBox[0 400 612 792]", 400, 392),
        ("/MediaBox[0 500 612 1292]", 500, 792),
        ("/MediaBox[-100 -600 512 192]", -600, 792),
    ],
)
def test_places_count_from_the_box_of_the_page(box: str, bottom: int, height: int) -> None:
    pages = [lines(10, bottom + 200, f"Chapter {at} is about rivers.", "It says what they carry.") for at in range(1, 7)]
    parsed = read(pdf(*pages, boxes=(box,)))
    assert parsed.text.count("It says what they carry.") == 6
    assert parsed.receipt.notes == ()
    assert parsed.blocks[0].bbox is not None
    assert parsed.blocks[0].bbox[1] == pytest.approx(height - 200 - 10, abs=5)


@pytest.mark.parametrize(("turned", "matrix"), [(90, "0 1 -1 0 {0} 0"), (180, "-1 0 0 -1 612 {0}"), (270, "0 -1 1 0 0 {0}")])
def test_a_turned_page_is_read_as_it_is_seen(turned: int, matrix: str) -> None:
    content = (
        lines(72, 500, *PROSE)
        + row(400, (72, "Alder"), (300, "7"), (400, "9"))
        + row(380, (72, "Birch"), (300, "8"), (400, "6"))
    )
    move = matrix.format(612 if turned == 90 else 792)
    parsed = read(pdf(f"q {move} cm {content} Q", boxes=(f"/MediaBox[0 0 612 792]/Rotate {turned}",)))
    assert [block.kind for block in parsed.blocks] == ["text", "table"]
    assert parsed.blocks[1].text == "Alder | 7 | 9\nBirch | 8 | 6"
    height = 792 if turned == 180 else 612
    assert parsed.blocks[0].bbox == pytest.approx((72, height - 510, 378, height - 474), abs=6)


def test_files_in_a_pdf_are_parts() -> None:
    document = pypdfium2.PdfDocument(pdf(lines(72, 700, *PROSE)))
    document.new_attachment("rows.csv").set_data(b"a,b\n1,2\n")
    buffer = io.BytesIO()
    document.save(buffer)
    parsed = read(buffer.getvalue())
    assert [(part.name, part.data) for part in parsed.parts] == [("rows.csv", b"a,b\n1,2\n")]


def test_files_in_a_pdf_that_are_not_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.parsers.pdf._MAX_ATTACHMENTS", 2)
    document = pypdfium2.PdfDocument(pdf(lines(72, 700, *PROSE)))
    document.new_attachment("a.csv").set_data(b"a,b\n")
    document.new_attachment("b.csv")  # has a name, but no content
    document.new_attachment("c.csv").set_data(b"c,d\n")
    buffer = io.BytesIO()
    document.save(buffer)
    parsed = read(buffer.getvalue())
    assert [part.name for part in parsed.parts] == ["a.csv"]
    assert parsed.receipt.notes == (
        "Of 3 attached files 1 were left out; at most 2 are read.",
        "Damaged attached files, which cannot be read: 1.",
    )


def test_what_is_typed_into_forms_and_onto_pages_is_told() -> None:
    notes = "<</Subtype/Widget/FT/Tx/T(name)/V(Ann)/Rect[9 9 99 30]>><</Subtype/Widget/FT/Tx/T(age)/V()/Rect[9 40 99 60]>>"
    notes += "<</Subtype/FreeText/Contents(Paid)/Rect[9 70 99 90]>><</Subtype/Text/Contents(Why?)/Rect[9 70 99 90]>>"
    parsed = read(pdf(lines(72, 700, *PROSE), boxes=(f"/MediaBox[0 0 612 792]/Annots[{notes}]",)))
    assert "not read: 2." in parsed.receipt.notes[0]


# Tables


def test_a_table_with_rules_is_rows_in_its_place() -> None:
    rules = "".join(f"72 {y} 300 0.5 re f\n" for y in (620, 640, 660, 680)) + "".join(
        f"{x} 620 0.5 60 re f\n" for x in (72, 172, 272, 372)
    )
    cells = row(665, (76, "Animal"), (176, "Legs"), (276, "Voice")) + row(
        645, (76, "Heron"), (176, "2"), (276, "A harsh croak")
    )
    cells += row(625, (76, "Beetle"), (176, "6"), (276, "None"))
    parsed = read(pdf(lines(72, 720, *PROSE) + rules + cells + lines(72, 590, "After the table.")))
    assert [block.kind for block in parsed.blocks] == ["text", "table", "text"]
    assert parsed.blocks[1].text == "Animal | Legs | Voice\nHeron | 2 | A harsh croak\nBeetle | 6 | None"
    assert parsed.receipt.tables == parsed.receipt.tables_seen == 1
    assert parsed.text.count("Heron") == 1


def _ruled(columns: tuple[int, ...], rows: tuple[int, ...]) -> str:
    """The rules of a grid; both from the smallest on."""
    width, height = columns[-1] - columns[0], rows[-1] - rows[0]
    return "".join(f"{columns[0]} {y} {width} 0.5 re f\n" for y in rows) + "".join(
        f"{x} {rows[0]} 0.5 {height} re f\n" for x in columns
    )


def test_a_table_in_a_cell_of_another_is_one_of_its_own() -> None:
    outer = _ruled((72, 500), (*range(380, 501, 20), 620, *range(640, 701, 20)))
    outer += "272 620 0.5 80 re f 272 380 0.5 120 re f\n"  # between them is one cell, as wide as the table
    inner = _ruled((200, 290, 380), (530, 550, 570, 590))
    cells = "".join(row(y + 5, (76, f"Town{y}"), (276, f"People{y}")) for y in (*range(620, 700, 20), *range(380, 500, 20)))
    cells += row(600, (76, "South consists of two parts:"))
    cells += row(575, (204, "Part"), (294, "Amount")) + row(555, (204, "East"), (294, "Rising"))
    cells += row(535, (204, "West"), (294, "Falling"))
    for rules in (outer + inner, inner + outer):
        text = read(pdf(lines(72, 750, *PROSE) + rules + cells)).text
        assert "Town680 | People680\n" in text
        words = ("Town380", "People680", "South", "Part", "Amount", "Rising", "Falling")
        assert [text.count(word) for word in words] == [1] * len(words)


def test_columns_up_and_down_many_rules_and_many_numbers_are_laid_out_at_once() -> None:
    zigzag = [Line("7", x, y, x + 0.5, y + 10, 10) for x in range(2_000) for y in (0, 14)]
    rules: list[Box] = [(0, y, 1600, y) for y in range(0, 401, 20)]
    rules += [(x, 100, x, 400) for x in range(0, 1601, 4)] + [(0, 0, 0, 400), (1600, 0, 1600, 400)]
    cells = [Line("seven", 1300 + at, 5 + 20 * (at % 4), 1302 + at, 15 + 20 * (at % 4), 10) for at in range(280)]
    numbers = [Line("12", 7 * at, 14 * y, 7 * at + 5, 14 * y + 10, 10) for y in range(40) for at in range(100)]
    start = time.process_time()
    reading_order(zigzag)
    ruled_tables(cells, rules, lambda line: [line])
    aligned_tables(numbers)
    assert time.process_time() - start < 2


def test_rows_of_numbers_without_rules_are_a_table_under_its_years() -> None:
    page = lines(72, 740, *PROSE)
    page += row(690, (350, "Years ended December 31"))
    page += row(678, (72, "Millions"), (362, "2024"), (452, "2023"))
    page += row(666, (72, "Net sales"), (340, "$"), (360, "32,765"), (430, "$"), (450, "31,657"))
    page += row(654, (72, "Operating expenses"))
    page += row(642, (80, "Cost of sales"), (356, "(16,682)"), (446, "(16,055)"))
    page += row(630, (80, "Research, development and"))
    page += row(618, (80, "related expenses"), (366, "1,821"), (456, "1,870"))
    page += row(606, (72, "Margin"), (368, "22.4"), (394, "%"), (460, "-"))
    parsed = read(pdf(page + lines(72, 560, *PROSE)))
    assert [block.kind for block in parsed.blocks] == ["text", "table", "text"]
    assert parsed.blocks[1].text.split("\n") == [
        "Millions | Years ended December 31 2024 | Years ended December 31 2023",
        "Net sales | $32,765 | $31,657",
        "Operating expenses",
        "Cost of sales | (16,682) | (16,055)",
        "Research, development and related expenses | 1,821 | 1,870",
        "Margin | 22.4 % | -",
    ]


def test_columns_of_cells_that_the_file_holds_one_after_the_other_are_rows() -> None:
    labels = [f"Item number {at}" for at in range(5)]
    columns = (
        lines(72, 700, *labels)
        + lines(300, 700, *(f"1{at}" for at in range(5)))
        + lines(400, 700, *(f"{at}0.5" for at in range(5)))
    )
    assert read(pdf(columns)).text.split("\n")[1] == "Item number 1 | 11 | 10.5"


def test_prose_with_numbers_and_a_numbered_list_are_no_tables() -> None:
    numbered = "".join(row(600 - 14 * at, (72, f"{at}."), (100, "A step that is told in words")) for at in range(1, 6))
    parsed = read(pdf(lines(72, 740, *PROSE) + numbered))
    assert parsed.receipt.tables == 0
    assert "12 metres, in 1995 by 14" in parsed.text


# Scanned pages


def scan(*pages: Image.Image) -> bytes:
    buffer = io.BytesIO()
    pages[0].save(buffer, "PDF", resolution=100, save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def picture(text: str) -> Image.Image:
    image = Image.new("L", (850, 500), 255)
    ImageDraw.Draw(image).text((80, 200), text, 0, ImageFont.load_default(32))
    return image


def test_scanned_pages_are_read_also_upside_down() -> None:
    require("tesseract")
    upside_down = picture("The otter sleeps on the bank.").transpose(Image.Transpose.ROTATE_180)
    parsed = read(scan(picture("The heron waits in the shallow water."), upside_down))
    assert [block.text for block in parsed.blocks] == ["The heron waits in the shallow water.", "The otter sleeps on the bank."]
    assert [block.page for block in parsed.blocks] == [1, 2]
    left, top, right, bottom = parsed.blocks[1].bbox or (0, 0, 0, 0)
    assert 0 < left < right < 612
    assert 185 < top < bottom < 220
    receipt = parsed.receipt
    assert (receipt.pages, receipt.ocr_pages, receipt.pages_without_text) == (2, 2, 0)
    assert receipt.ocr_confidence is not None
    assert receipt.ocr_confidence > 80
    assert receipt.needs_attention is None


def _with_form(data: bytes, onto: bytes) -> bytes:
    """The first page of a PDF as a form on that of another."""
    document, source = pypdfium2.PdfDocument(onto), pypdfium2.PdfDocument(data)
    page = document[0]
    page.insert_obj(source.page_as_xobject(0, document).as_pageobject())
    page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def test_scans_with_a_stamp_are_read_in_forms_and_strips_and_keep_the_stamp() -> None:
    require("tesseract")
    image = picture("The heron waits in the shallow water.")
    halves = (image.crop((0, 0, 850, 250)), image.crop((0, 250, 850, 500)))
    strips = "".join(
        f"q 612 0 0 180 0 {y} cm BI /W 850 /H 250 /BPC 8 /CS /G /F /AHx ID {half.tobytes().hex()}> EI Q\n"
        for y, half in zip((180, 0), halves, strict=True)
    )
    stamp = "1 g " + lines(72, 60, "Received by the archive")  # which is white on white, as hidden layers are
    page = ("/MediaBox[0 0 612 360]",)
    for data in (pdf(strips + stamp, boxes=page), _with_form(scan(image), pdf(stamp, boxes=page))):
        parsed = read(data)
        assert [block.text for block in parsed.blocks] == ["Received by the archive", "The heron waits in the shallow water."]
        assert parsed.receipt.ocr_pages == 1


def test_a_page_that_cannot_be_drawn_costs_itself_alone() -> None:
    require("tesseract")
    odd = "0 0 100 100 re f"
    boxes = ("/MediaBox[0 0 200000 1]", "/MediaBox[0 0 4000000 4000000]", "/MediaBox[0 0 612 792]")
    parsed = read(pdf(odd, odd, lines(72, 700, *PROSE), boxes=boxes))
    assert parsed.text.startswith("Rivers")
    assert parsed.receipt.pages_without_text == 2
    assert parsed.receipt.notes == ("Pages that are pictures of text and could not be read: 2.",)


def test_without_tesseract_pages_of_text_are_read_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    parsed = read(scan(picture("Words in a picture.")))
    assert parsed.receipt.pages_without_text == 1
    assert "No text layer" in (parsed.receipt.needs_attention or "")
    assert "apt-get install tesseract-ocr" in (parsed.receipt.needs_attention or "")


@pytest.mark.parametrize(
    ("text", "receipt", "reason"),
    [
        ("fine words", Receipt("x", pages=9, ocr_pages=9, ocr_confidence=41.0), "confidence 41 of 100"),
        ("J u n 2 0 2 1 [ V C . s c ] " * 20, Receipt("x", pages=1), "single letters"),
        ("\ue001\ue002 some" * 20, Receipt("x", pages=1), "unreadable signs"),
        ("fine words", Receipt("x", pages=9, pages_without_text=3), "3 of its 9 pages"),
    ],
)
def test_doubtful_text_needs_attention(text: str, receipt: Receipt, reason: str) -> None:
    assert reason in (finish([assemble([Draft("text", text)], receipt)], "a.pdf").receipt.needs_attention or "")


# Portions


def test_a_long_document_comes_in_portions_that_are_judged_alike() -> None:
    pages = [lines(72, 700, f"Part {at}", size=16) + lines(72, 660, *PROSE) for at in range(70)]
    pages[3] += lines(72, 500, "Larger still", size=24)
    data = pdf(*pages)
    portions = [parse_portion(data, "a.pdf", PDF)]
    while portions[-1].rest:
        portions.append(parse_portion(data, "a.pdf", PDF, DEFAULTS, portions[-1].rest))
    assert [portion.receipt.pages for portion in portions] == [32, 32, 6]
    parsed = read(data)
    assert parsed.text == "\n\n".join(portion.text for portion in portions)
    assert parsed.receipt.pages == 70
    assert {block.depth for block in parsed.blocks if block.text.startswith("Part")} == {parsed.blocks[0].depth}
    assert parsed.blocks[-1].page == 70


# The corpus


def _flat(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _manifest() -> list[tuple[str, str]]:
    if not CORPUS.is_dir():
        return []
    rows = [line.split("\t") for line in (CORPUS / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return [(row[0], row[4]) for row in rows if row[1] == "pdf" and row[4]]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus ../shared/corpora/files is not on this machine")
@pytest.mark.parametrize(("name", "sentence"), _manifest())
def test_the_sentence_of_each_real_file_is_in_its_text(name: str, sentence: str) -> None:
    require("tesseract")
    data = (CORPUS / name).read_bytes()
    portion = parse_portion(data, name, PDF)
    text = portion.text
    while _flat(sentence) not in _flat(text) and portion.rest:
        portion = parse_portion(data, name, PDF, DEFAULTS, portion.rest)
        text += portion.text
    assert _flat(sentence) in _flat(text)
