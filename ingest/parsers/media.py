"""Which formats are read, by what, and which one a file is: told by its content and its name together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingest.parsers.decode import wide_encoding
from ingest.parsers.programs import find
from retrieval.errors import DocumentTooLarge, EmptyDocument, EncryptedDocument, UnreadableDocument, UnsupportedDocument

HEAD_BYTES = 64 * 1024
"""How much of a file's beginning `detect` wants to see."""

_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Format:
    """A row of the table: a media type, its parser, the extensions that name it, and how large a file may be."""

    media_type: str
    parser: str
    extensions: tuple[str, ...]
    max_bytes: int
    textual: bool = True
    program: str = ""
    """What reads it, if that is a program of its own."""


_OOXML = "application/vnd.openxmlformats-officedocument."
_ODF = "application/vnd.oasis.opendocument."
DOCX, PPTX, XLSX = f"{_OOXML}wordprocessingml.document", f"{_OOXML}presentationml.presentation", f"{_OOXML}spreadsheetml.sheet"
DOC, PPT, XLS, MSG = (
    "application/msword",
    "application/vnd.ms-powerpoint",
    "application/vnd.ms-excel",
    "application/vnd.ms-outlook",
)
ODT, ODP, ODS = f"{_ODF}text", f"{_ODF}presentation", f"{_ODF}spreadsheet"
PDF, RTF, EPUB, ZIP = "application/pdf", "application/rtf", "application/epub+zip", "application/zip"
PNG, JPEG, TIFF, BMP, WEBP, GIF = (f"image/{name}" for name in ("png", "jpeg", "tiff", "bmp", "webp", "gif"))
HTML, TEXT, MARKDOWN, RST, ORG, CODE = "text/html", "text/plain", "text/markdown", "text/x-rst", "text/org", "text/x-source"
XML, MAIL, MBOX = "application/xml", "message/rfc822", "application/mbox"

_CODE_NAMES = (
    "py pyi js mjs cjs jsx ts tsx vue svelte go rs java kt kts scala groovy c h cc cpp cxx hpp hh cs fs swift m mm rb php pl "
    "pm lua r jl ex exs erl hs ml clj dart zig nim sh bash zsh fish ps1 bat cmd sql graphql proto thrift yaml yml toml ini cfg "
    "conf properties env gradle cmake mk tf hcl nix css scss less"
)
_CODE_EXTENSIONS = tuple(_CODE_NAMES.split())


def _image(media_type: str, *extensions: str) -> Format:
    return Format(media_type, "ingest.parsers.ocr:parse_image", extensions, 50 * _MB, textual=False, program="tesseract")


_FORMATS = (
    Format(TEXT, "ingest.parsers.text:parse_text", ("txt", "text", "log", "adoc", "asciidoc", "tex"), 20 * _MB),
    Format(MARKDOWN, "ingest.parsers.markdown:parse_markdown", ("md", "markdown", "mdx", "mkd", "qmd", "rmd"), 20 * _MB),
    Format(HTML, "ingest.parsers.html:parse_html", ("html", "htm", "xhtml"), 20 * _MB),
    Format("text/csv", "ingest.parsers.tabular:parse_csv", ("csv",), 20 * _MB),
    Format("text/tab-separated-values", "ingest.parsers.tabular:parse_csv", ("tsv", "tab"), 20 * _MB),
    Format("application/json", "ingest.parsers.structured:parse_json", ("json", "geojson", "jsonld"), 20 * _MB),
    Format("application/x-ndjson", "ingest.parsers.structured:parse_ndjson", ("ndjson", "jsonl"), 20 * _MB),
    Format("application/x-ipynb+json", "ingest.parsers.structured:parse_notebook", ("ipynb",), 50 * _MB),
    Format(XML, "ingest.parsers.structured:parse_xml", ("xml", "rss", "atom"), 20 * _MB),
    Format("text/vtt", "ingest.parsers.text:parse_subtitles", ("vtt", "srt"), 20 * _MB),
    Format(MAIL, "ingest.parsers.mail:parse_mail", ("eml", "mhtml", "mht"), 50 * _MB),
    Format(MBOX, "ingest.parsers.mail:parse_mbox", ("mbox",), 200 * _MB),
    Format(RST, "ingest.parsers.pandoc:parse_rst", ("rst", "rest"), 20 * _MB, program="pandoc"),
    Format(ORG, "ingest.parsers.pandoc:parse_org", ("org",), 20 * _MB, program="pandoc"),
    Format(CODE, "ingest.parsers.code:parse_code", _CODE_EXTENSIONS, 20 * _MB),
    Format(PDF, "ingest.parsers.pdf:parse_pdf", ("pdf",), 200 * _MB, textual=False),
    Format(DOCX, "ingest.parsers.office:parse_docx", ("docx", "docm"), 100 * _MB, textual=False),
    Format(PPTX, "ingest.parsers.office:parse_pptx", ("pptx", "pptm"), 200 * _MB, textual=False),
    Format(XLSX, "ingest.parsers.tabular:parse_spreadsheet", ("xlsx", "xlsm"), 50 * _MB, textual=False),
    Format(XLS, "ingest.parsers.tabular:parse_spreadsheet", ("xls",), 50 * _MB, textual=False),
    Format(ODS, "ingest.parsers.tabular:parse_spreadsheet", ("ods",), 50 * _MB, textual=False),
    Format(ODT, "ingest.parsers.pandoc:parse_odt", ("odt",), 100 * _MB, textual=False, program="pandoc"),
    Format(EPUB, "ingest.parsers.pandoc:parse_epub", ("epub",), 100 * _MB, textual=False, program="pandoc"),
    Format(RTF, "ingest.parsers.pandoc:parse_rtf", ("rtf",), 50 * _MB, textual=False, program="pandoc"),
    Format(DOC, "ingest.parsers.legacy:parse_doc", ("doc", "dot"), 50 * _MB, textual=False, program="soffice"),
    Format(PPT, "ingest.parsers.legacy:parse_ppt", ("ppt", "pps"), 100 * _MB, textual=False, program="soffice"),
    Format(ODP, "ingest.parsers.legacy:parse_odp", ("odp",), 100 * _MB, textual=False, program="soffice"),
    Format(MSG, "ingest.parsers.mail:parse_msg", ("msg",), 50 * _MB, textual=False),
    Format(ZIP, "ingest.parsers.archive:parse_zip", ("zip",), 200 * _MB, textual=False),
    _image(PNG, "png"),
    _image(JPEG, "jpg", "jpeg"),
    _image(TIFF, "tif", "tiff"),
    _image(BMP, "bmp"),
    _image(WEBP, "webp"),
    _image(GIF, "gif"),
)
FORMATS = {each.media_type: each for each in _FORMATS}
_BY_EXTENSION = {extension: each for each in _FORMATS for extension in each.extensions}
SUPPORTED = (
    " ".join(f".{extension}" for each in _FORMATS if each.media_type != CODE for extension in each.extensions[:3])
    + " and source code"
)

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", JPEG), (b"GIF8", GIF), (b"BM", BMP),
    (b"II*\0", TIFF), (b"MM\0*", TIFF), (b"II+\0", TIFF), (b"MM\0+", TIFF), (b"{\\rtf", RTF),
)  # fmt: skip
_UNPACK = "Unpack it and upload the files in it."
_REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x7fELF", "a program", ""), (b"MZ", "a program", ""), (b"\xca\xfe\xba\xbe", "a program", ""),
    (b"\x1f\x8b", "a gzip archive", _UNPACK), (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK), (b"Rar!", "a RAR archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK), (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"%!PS", "a PostScript file", "Convert it to PDF and upload that."),
    (b"SQLite format 3", "a database", "Export its tables as .csv and upload those."),
    (b"ID3", "a sound file", ""), (b"OggS", "a sound file", ""), (b"fLaC", "a sound file", ""),
)  # fmt: skip
_TEXT_SIGNATURES = frozenset({b"BM", b"MZ", b"ID3", b"GIF8", b"BZh", b"OggS", b"Rar!"})
"""Letters with which a text may begin as well; they count only where the rest is no text."""

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_STREAMS = {
    media_type: name.encode("utf-16-le")
    for media_type, name in (
        (MSG, "__properties_version1.0"), (PPT, "PowerPoint Document"), (DOC, "WordDocument"), (XLS, "Workbook"),
    )
}  # fmt: skip
"""What an OLE container of each type has; one that holds others, as attachments, comes before them."""
_HTML_START = re.compile(
    rb"\s*(?:(?><!--.{0,2000}?-->)\s*)*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!doctype\s+html|<html[\s>])", re.IGNORECASE | re.DOTALL
)
_XML_START = re.compile(rb"\s*<\?xml[\s]")
_MAIL_START = re.compile(
    rb"(?:from |return-path:|received:|from:|to:|subject:|date:|message-id:|mime-version:|delivered-to:|x-[\w-]{1,80}:)",
    re.IGNORECASE,
)
_STARTS = {MAIL: _MAIL_START, MBOX: re.compile(rb"\A\s*From ")}
"""What a text of these types must have near its beginning."""
_FIRST_MEMBERS = frozenset({b"mimetype", b"[Content_Types].xml", b"_rels/.rels"})
"""With which an office file or a book begins, but hardly an archive."""
_CONTROLS = bytes(set(range(32)) - {9, 10, 12, 13, 27})


def detect(name: str, head: bytes, size: int, declared: str | None = None) -> str:
    """The media type of a file of `size` bytes that begins with `head` (its first `HEAD_BYTES`).

    `declared` is what the sender calls it; it counts only for text whose name says nothing. Raises `EmptyDocument`,
    `UnsupportedDocument`, `MissingProgram`, `UnreadableDocument` (the content is not what the name says),
    `EncryptedDocument`, `DocumentTooLarge`.
    """
    if size == 0 or (size <= len(head) and not head.strip(b" \t\r\n\0\x0b\x0c\xef\xbb\xbf\xff\xfe")):
        raise EmptyDocument(f"{name} is empty.")
    media_type = _media_type(name, head, declared)
    known = FORMATS[media_type]
    if size > known.max_bytes:
        raise DocumentTooLarge(
            f"{name} has {size / _MB:,.0f} MB; at most {known.max_bytes // _MB:,} MB are read of this type. "
            "Split it and upload the parts."
        )
    if known.program:
        find(known.program, name)
    return media_type


def _media_type(name: str, head: bytes, declared: str | None) -> str:
    extension = _extension(name)
    binary = _binary(name, extension, head)
    if binary:
        return binary
    if not is_text(head):
        raise (
            _unreadable(name, extension)
            if extension in _BY_EXTENSION
            else _unsupported(name, "binary data of an unknown type", "")
        )
    if _HTML_START.match(head) and extension not in {"md", "markdown", "mdx", *_CODE_EXTENSIONS, "eml", "mhtml", "mht"}:
        return HTML
    known = _BY_EXTENSION.get(extension)
    if known is None or known.media_type == TEXT:
        return _plain(head, known, declared)
    start = _STARTS.get(known.media_type)
    if not known.textual or (start and not start.search(head[:4096])):
        raise _unreadable(name, extension)
    return known.media_type


def _extension(name: str) -> str:
    base = re.split(r"[/\\]", name)[-1].strip().lower()
    stem, dot, extension = base.rpartition(".")
    return extension if dot and stem else ""


def _plain(head: bytes, known: Format | None, declared: str | None) -> str:
    if _XML_START.match(head):
        return XML
    told = FORMATS.get((declared or "").partition(";")[0].strip().lower())
    return told.media_type if known is None and told is not None and told.textual else TEXT


def _binary(name: str, extension: str, head: bytes) -> str | None:
    """The type of a binary format that we read; None for what may be text. Raises for all others."""
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith(b"PK\x03\x04"):
        return _zip(name, extension, head)
    if head.startswith(b"PK\x05\x06"):
        raise EmptyDocument(f"{name} is an empty archive.")
    if head.startswith(_OLE):
        return _ole(name, extension, head)
    for signature, media_type in _SIGNATURES:
        if _begins(head, signature):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    for signature, what, hint in _REFUSED:
        if _begins(head, signature):
            raise _unsupported(name, what, hint)
    if head[4:12] in {b"ftypheic", b"ftypmif1", b"ftypavif"}:
        raise _unsupported(name, "a HEIC or AVIF image", "Save it as .jpg and upload that.")
    if head[257:262] == b"ustar":
        raise _unsupported(name, "a tar archive", _UNPACK)
    return None


def _begins(head: bytes, signature: bytes) -> bool:
    return head.startswith(signature) and not (signature in _TEXT_SIGNATURES and is_text(head[:4096]))


def _zip(name: str, extension: str, head: bytes) -> str:
    """Office formats are ZIP archives; the names inside tell which."""
    members = [head[at + 30 : at + 30 + int.from_bytes(head[at + 26 : at + 28], "little")] for at in _all(head, b"PK\x03\x04")]
    if members and members[0] == b"mimetype":
        length = int.from_bytes(head[22:26], "little")
        stored = head[38 + int.from_bytes(head[28:30], "little") :][: length or 80].decode("ascii", "replace")
        if stored in FORMATS:
            return stored
    if extension in {"", "zip"} and not (members and members[0] in _FIRST_MEMBERS):  # its folders only look like Office's
        return ZIP
    for prefix, media_type in ((b"word/", DOCX), (b"ppt/", PPTX), (b"xl/", XLSX)):
        if any(member.startswith(prefix) for member in members):
            return media_type
    known = _BY_EXTENSION.get(extension)
    is_office = any(member in {b"[Content_Types].xml", b"_rels/.rels"} for member in members)
    if is_office and known is not None and known.media_type in {DOCX, PPTX, XLSX}:  # its own parts lie beyond the head
        return known.media_type
    packed_by_hand = any(member in {b"META-INF/container.xml", b"content.xml"} for member in members)
    if packed_by_hand and known is not None and known.media_type in {EPUB, ODT, ODP, ODS}:  # the type should have come first
        return known.media_type
    if extension in {"", "zip"}:
        return ZIP
    raise _unsupported(name, "a ZIP archive", _UNPACK)


def _all(head: bytes, needle: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(needle), head)]


def _ole(name: str, extension: str, head: bytes) -> str:
    """The container of old Office formats, and of new ones that are encrypted."""
    known = _BY_EXTENSION.get(extension)
    if (known is not None and known.media_type in {DOCX, PPTX, XLSX}) or "EncryptedPackage".encode("utf-16-le") in head:
        raise EncryptedDocument(f"{name} is protected by a password. Save it without one and upload it again.")
    held = [media_type for media_type, stream in _STREAMS.items() if stream in head]
    if known is not None and (known.media_type in held or (not held and known.media_type in _STREAMS)):
        return known.media_type
    if held:
        return held[0]
    raise _unsupported(name, "an old Office document of an unknown type", "Save it in a newer format and upload that.")


def is_text(head: bytes) -> bool:
    """Whether bytes are text in some encoding, with a control character here and there at most."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or wide_encoding(head[:4096]):
        return True
    if head.count(0) > len(head) * 0.1:
        return False
    try:
        head.decode("utf-8")
        return True
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 3:  # the head ends inside a character
            return True
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return controls <= len(head) * 0.02


def _unsupported(name: str, what: str, hint: str) -> UnsupportedDocument:
    return UnsupportedDocument(f"{name} is {what}, which is not supported. {hint or f'Supported are {SUPPORTED}.'}")


def _unreadable(name: str, extension: str) -> UnreadableDocument:
    return UnreadableDocument(
        f"{name} is called .{extension}, but its content is something else, or damaged. "
        "Give it its right name, or save it again."
    )
