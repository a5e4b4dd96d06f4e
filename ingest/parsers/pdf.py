"""PDF by pypdfium2, in portions of pages, so that a long document is neither too slow nor too large to be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pypdfium2

from ingest.parsers.ocr import Recognised, mean_confidence
from ingest.parsers.parsed import Bookmark, Draft, File, Parsed, Part, Receipt, assemble
from ingest.parsers.pdf_layout import BULLET, Line, box, join_lines, paragraphs_of
from ingest.parsers.pdf_page import Page, read_page, recognise_page
from ingest.parsers.pdf_survey import Survey, sample, survey
from retrieval.errors import DocumentTooLarge, EmptyDocument, EncryptedDocument, MissingProgram, UnreadableDocument

_MAX_PAGES = 20_000
_PORTION_PAGES = 32
_PORTION_SECONDS = 10.0
"""After so long a portion ends: OCR takes seconds for a page, and each portion has a limit of wall time."""
_USELESS = 0.4
"""Mean confidence of words below which they are the lines of a drawing taken for letters."""
_MAX_ATTACHMENTS = 1_000
_PASSWORD_ERROR = 4
VERSION = f"pypdfium2 {version('pypdfium2')}"


@dataclass(frozen=True, slots=True)
class _Known:
    """What one portion hands to the next."""

    survey: Survey
    running: int = 0
    """Headers, footers and page numbers left out so far."""
    filled: int = 0
    """Form fields and free text so far, which are not read."""
    undrawn: int = 0
    """Pictures of text so far that could not be drawn or recognised."""


def parse_pdf(file: File) -> Parsed:
    """The pages from `file.bookmark` on, as many as one portion takes; `Parsed.rest` says where to go on."""
    with closing(_open(file.data, file.name)) as document:
        portion = _Portion(document, file).read()
        return portion if file.bookmark else _with_attachments(portion, document)


def _open(data: bytes, name: str) -> Any:
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # PDFium keeps its last error: of a file without pages it tells what was wrong with the one before.
        if getattr(error, "err_code", None) == _PASSWORD_ERROR and b"/Encrypt" in data:
            raise EncryptedDocument(f"{name} is protected by a password. Save it without one and upload it again.") from error
        raise UnreadableDocument(f"{name} is a damaged PDF ({error}). Open and save it again, then upload it.") from error
    pages = len(document)
    if not pages:
        raise EmptyDocument(f"{name} has no pages.")
    if pages > _MAX_PAGES:
        raise DocumentTooLarge(f"{name} has {pages:,} pages; at most {_MAX_PAGES:,} are read. Split it and upload the parts.")
    return document


def _with_attachments(portion: Parsed, document: Any) -> Parsed:
    """A portion and the files in its PDF, which in a portfolio are all that matters."""
    count = document.count_attachments()
    looked = min(count, _MAX_ATTACHMENTS)
    parts = tuple(_attachments(document, looked))
    notes = []
    if count > looked:
        notes.append(f"Of {count:,} attached files {count - looked:,} were left out; at most {looked:,} are read.")
    if len(parts) < looked:
        notes.append(f"Damaged attached files, which cannot be read: {looked - len(parts):,}.")
    return replace(portion, parts=parts, receipt=replace(portion.receipt, notes=(*notes, *portion.receipt.notes)))


def _attachments(document: Any, count: int) -> Iterator[Part]:
    """The first files in a PDF but for damaged ones."""
    for at in range(count):
        with suppress(pypdfium2.PdfiumError):
            attachment = document.get_attachment(at)
            yield Part(attachment.get_name(), bytes(attachment.get_data()))


class _Portion:
    """Pages that are read in one go, and what is counted meanwhile."""

    def __init__(self, document: Any, file: File) -> None:
        self._document = document
        self._file = file
        self._pages = len(document)
        self._ends = time.monotonic() + _PORTION_SECONDS
        self._sample: dict[int, Page] = {}
        """Pages that were read for the survey."""
        self._known: _Known = file.bookmark.known if file.bookmark else _Known(self._surveyed())
        self._characters: list[int] = []
        self._recognised: list[Recognised] = []
        self._figures = 0
        self._unread: str | None = None
        """Why pages that are pictures of text were not read."""

    def _surveyed(self) -> Survey:
        for at in sample(self._pages):
            self._sample[at] = read_page(self._document, at, self._file.name)
            if time.monotonic() > self._ends:  # of pages this slow a few must do
                break
        pages = self._sample.values()
        return survey(list(pages), [paragraph for page in pages for paragraph in paragraphs_of(page.lines)])

    def read(self) -> Parsed:
        first = done = self._file.bookmark.done if self._file.bookmark else 0
        drafts: list[Draft] = []
        while done < min(first + _PORTION_PAGES, self._pages) and (done == first or time.monotonic() < self._ends):
            drafts += self._page(done)
            done += 1
        if done == self._pages:
            return assemble(drafts, self._receipt(self._notes()))
        return replace(assemble(drafts, self._receipt()), rest=Bookmark(done, self._pages, self._known))

    def _page(self, at: int) -> list[Draft]:
        page = self._sample.pop(at, None) or read_page(self._document, at, self._file.name)
        body = [line for line in page.lines if not self._known.survey.is_running(line, page)]
        drafts = [_draft(paragraph, page.number, self._known.survey) for paragraph in paragraphs_of(body)]
        self._known = replace(
            self._known,
            running=self._known.running + len(page.lines) - len(body),
            filled=self._known.filled + page.filled,
        )
        self._figures += page.figures
        if page.is_picture:
            held = _visible("".join(line.text for line in page.lines))
            drafts += (draft for draft in self._read_picture(at) if _visible(draft.text) not in held)
        self._characters.append(sum(len(draft.text) for draft in drafts))
        return drafts

    def _read_picture(self, at: int) -> list[Draft]:
        """What OCR reads on a page; nothing where it cannot, which is remembered."""
        if self._unread:
            return []
        try:
            found = recognise_page(self._document, at, self._file.options.ocr_languages, self._file.name)
        except MissingProgram as error:
            self._unread = error.message
            return []
        except (UnreadableDocument, pypdfium2.PdfiumError, ValueError):  # one odd page does not cost the document
            self._known = replace(self._known, undrawn=self._known.undrawn + 1)
            return []
        if (found.confidence or 0.0) < _USELESS:
            return []
        self._recognised.append(found)
        return [Draft("text", text, at + 1, 0, place) for text, place in found.paragraphs]

    def _receipt(self, notes: tuple[str, ...] = ()) -> Receipt:
        return Receipt(
            VERSION,
            pages=len(self._characters),
            pages_without_text=self._characters.count(0),
            page_characters=tuple(self._characters),
            images_skipped=self._figures,
            ocr_pages=len(self._recognised),
            ocr_words=sum(page.words for page in self._recognised),
            ocr_confidence=mean_confidence(self._recognised),
            notes=notes,
            needs_attention=f"Pages that are pictures of text were left out. {self._unread}" if self._unread else None,
        )

    def _notes(self) -> tuple[str, ...]:
        """What was left out on purpose in the whole document."""
        notes = []
        if self._known.running:
            lines = f"{self._known.running:,} lines that repeat on most pages were left out"
            notes.append(f"{lines} (headers, footers, page numbers): {self._known.survey.examples}.")
        if self._known.filled:
            what = f"Filled-in form fields and typed comments that were not read: {self._known.filled:,}"
            notes.append(f"{what}. Print the file to a new PDF to have them read.")
        if self._known.undrawn:
            notes.append(f"Pages that are pictures of text and could not be read: {self._known.undrawn:,}.")
        return tuple(notes)


def _visible(text: str) -> str:
    return "".join(text.split())


def _draft(paragraph: Sequence[Line], page: int, known: Survey) -> Draft:
    place = box(paragraph)
    if paragraph[0].table:
        return Draft("table", paragraph[0].text, page, 0, place)
    text = join_lines(paragraph, known.compounds)
    depth = known.depth(paragraph)
    if depth:
        return Draft("title", " ".join(text.split()), page, depth, place)
    return Draft("list" if BULLET.match(text) else "text", text, page, 0, place)
