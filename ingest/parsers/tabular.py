"""Rows and cells: delimited text and spreadsheets."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from itertools import groupby

from ingest.parsers.decode import decode
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble, table_text
from retrieval.errors import EncryptedDocument, UnreadableDocument

_DELIMITERS = ",;\t|"
_FAR_CELL = re.compile(rb'\br="(?:([A-Z]{3})(\d+)|([A-Z]{1,2})(\d{6,}))"')
_MAX_PLACES = 20_000_000
"""Between the first cell and the farthest; calamine has room for each of them, used or not, and ends its process without."""


def parse_csv(file: File) -> Parsed:
    """Comma-, semicolon-, tab- or bar-separated rows as one table."""
    text, encoding, replaced, removed = decode(file.data)
    delimiter = _delimiter(text, "\t" if file.name.lower().endswith((".tsv", ".tab")) else ",")
    csv.field_size_limit(sys.maxsize)  # an unclosed quote makes one field of the rest; the memory limit bounds it
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    receipt = Receipt("csv", encoding=encoding, replaced_characters=replaced, removed_characters=removed)
    return assemble([Draft("table", table_text(rows))], receipt)


def _delimiter(text: str, preferred: str) -> str:
    """The delimiter that occurs equally often in most of the first lines; `preferred` if none stands out."""
    lines = [line for line in text[:65536].split("\n")[:40] if line.strip()][:30]
    best, best_score = preferred, 0.0
    for delimiter in _DELIMITERS:
        counts = Counter(_outside_quotes(line, delimiter) for line in lines)
        count, agreeing = counts.most_common(1)[0] if counts else (0, 0)
        score = agreeing / len(lines) + min(count, 50) / 1000 + (delimiter == preferred) / 2000 if count else 0.0
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _outside_quotes(line: str, delimiter: str) -> int:
    return sum(part.count(delimiter) for part in line.split('"')[::2])


def parse_spreadsheet(file: File) -> Parsed:
    """Excel (new and old) and OpenDocument sheets: each sheet a title and a table; `page` counts the sheets."""
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    if _places(file.data) > _MAX_PLACES:
        return _scattered(file)
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(file.data))
        drafts = list(_sheets(book))
    except PasswordError as error:
        raise EncryptedDocument(f"{file.name} is protected by a password. Save it without one and upload it again.") from error
    except CalamineError as error:
        raise UnreadableDocument(
            f"{file.name} is not a readable spreadsheet ({error}). Open and save it again, then upload it."
        ) from error
    receipt = Receipt(f"calamine {version('python-calamine')}", pages=len(book.sheet_names))
    return assemble(drafts, receipt)


def _sheets(book: object) -> Iterator[Draft]:
    for number, sheet_name in enumerate(book.sheet_names, 1):  # type: ignore[attr-defined]
        rows = book.get_sheet_by_name(sheet_name).iter_rows()  # type: ignore[attr-defined]
        text = table_text([_shown(cell) for cell in row] for row in rows)
        if text:
            yield Draft("title", sheet_name, number, 1)
            yield Draft("table", text, number)


def _places(data: bytes) -> int:
    """Cells of the largest sheet of an Excel file, were all used up to the farthest one; 0 for a usual size."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        return max((_reach(archive.read(name)) for name in sheets), default=0)


def _reach(sheet: bytes) -> int:
    columns = rows = 0
    for far in _FAR_CELL.finditer(sheet):
        number = 0
        for letter in far[1] or far[3]:
            number = 26 * number + letter - ord("A") + 1
        columns, rows = max(columns, number), max(rows, int(far[2] or far[4]))
    return columns * rows


def _scattered(file: File) -> Parsed:
    """Excel sheets whose few cells lie far apart, which is what a slip on the keyboard makes: only those that are used."""
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(file.data), data_only=True)
    drafts = []
    for number, sheet in enumerate(book.worksheets, 1):
        used = sorted((place, cell.value) for place, cell in sheet._cells.items() if cell.value is not None)  # noqa: SLF001
        rows = ([_shown(value) for _, value in row] for _, row in groupby(used, key=lambda item: item[0][0]))
        if text := table_text(rows):
            drafts += [Draft("title", sheet.title, number, 1), Draft("table", text, number)]
    return assemble(drafts, Receipt(f"openpyxl {version('openpyxl')}", pages=len(book.worksheets)))


def _shown(cell: object) -> object:
    """A cell as a person reads it: 3 for 3.0, a day without midnight."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return int(cell)
    if isinstance(cell, dt.datetime) and cell.time() == dt.time():
        return cell.date()
    return cell
