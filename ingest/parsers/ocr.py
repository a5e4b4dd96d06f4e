"""Text of images, by tesseract."""

from __future__ import annotations

import io
import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ingest.parsers.parsed import Bookmark, Box, Draft, File, Parsed, Receipt, assemble
from ingest.parsers.programs import STDOUT, run, version
from retrieval.errors import DocumentTooLarge, MissingProgram, UnreadableDocument

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_MAX_PIXELS = 100_000_000
"""Of one page, which then takes 300 MB; a sheet of A0 at 200 dpi has 62 million."""
_MAX_PAGES = 1000
_PORTION_SECONDS = 10.0
"""After so long a portion of a TIFF ends; each has a limit of wall time."""
_ENOUGH_PIXELS = 25_000_000
"""A sheet of A3 at 400 dpi; tesseract reads no better what has more, and takes longer."""
_LONG_EDGE = 2000
"""Pixels to which smaller images are enlarged, three-fold at most: on screenshots tesseract then finds a fifth more words."""
_PAGE_INCHES = 11
"""The long edge of an image that does not say how large it is."""
_DOUBTFUL = 0.6
"""Mean confidence below which about half of the words are wrong."""
_CJK = "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60]"
_CJK_GAP = re.compile(f"(?<={_CJK}) (?={_CJK})")


@dataclass(frozen=True, slots=True)
class Recognised:
    """What was read on one image."""

    paragraphs: tuple[tuple[str, Box], ...]
    """In reading order, the box of each in points from the top left."""
    words: int
    confidence: float | None
    """Mean over the words, 0 to 1; None if there are none."""


class _Word(NamedTuple):
    """A line of tesseract's table; coordinates in pixels."""

    paragraph: tuple[str, str]
    line: str
    left: int
    top: int
    right: int
    bottom: int
    confidence: float
    text: str


def parse_image(file: File) -> Parsed:
    """An image, or as many pages of a TIFF as one portion takes; `Parsed.rest` says where to go on."""
    with (
        warnings.catch_warnings(action="ignore"),
        _open(file) as image,
    ):  # Pillow warns of sizes below our limit, and of odd tags
        # Only a TIFF has pages: the frames of a GIF or WebP move, those of a telephone's JPEG are previews.
        count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        if count > _MAX_PAGES:
            raise DocumentTooLarge(f"{file.name} has more than {_MAX_PAGES:,} pages. Split it and upload the parts.")
        first = file.bookmark.done if file.bookmark else 0
        ends = time.monotonic() + _PORTION_SECONDS
        pages: list[Recognised] = []
        while first + len(pages) < count and (not pages or time.monotonic() < ends):
            image.seek(first + len(pages))
            pages.append(_page(image, file))
    done = first + len(pages)
    parsed = assemble(_drafts(pages, first), _receipt(pages))
    return replace(parsed, rest=Bookmark(done, count, None)) if done < count else parsed


def _drafts(pages: Sequence[Recognised], first: int) -> Iterator[Draft]:
    for number, page in enumerate(pages, first + 1):
        yield from (Draft("text", text, number, 0, box) for text, box in page.paragraphs)


def _receipt(pages: Sequence[Recognised]) -> Receipt:
    return Receipt(
        version("tesseract"),
        pages=len(pages),
        pages_without_text=sum(not page.words for page in pages),
        page_characters=tuple(sum(len(text) for text, _ in page.paragraphs) for page in pages),
        ocr_pages=len(pages),
        ocr_words=sum(page.words for page in pages),
        ocr_confidence=mean_confidence(pages),
    )


def recognise(image: Image.Image, *, dpi: int, languages: str, name: str = "the image") -> Recognised:
    """Read an image on which `dpi` pixels make an inch; `languages` are tesseract's codes joined by `+`.

    What was hard to read is read upside down as well; tesseract finds out by itself about lines that run upward.
    `name` is the document's, for errors: `MissingProgram` also when a language is not installed, and what `run` raises.
    """
    _require(languages, name)
    grey = _grey(image)
    words, upside_down = _read(grey, dpi, languages, name), False
    if words and _mean(words) < _DOUBTFUL:
        turned = _read(grey.rotate(180), dpi, languages, name)
        if turned and _mean(turned) > _mean(words):
            words, upside_down = turned, True
    paragraphs = [list(group) for _, group in groupby(words, key=lambda word: word.paragraph)]
    boxes = (_box(each, grey.size if upside_down else None, 72 / dpi) for each in paragraphs)
    found = tuple(zip(map(_text, paragraphs), boxes, strict=True))
    return Recognised(found, len(words), _mean(words) if words else None)


def _read(grey: Image.Image, dpi: int, languages: str, name: str) -> list[_Word]:
    pixels = io.BytesIO()
    grey.save(pixels, "PPM")  # uncompressed, which is the fastest to write and read
    arguments = ["input.pgm", STDOUT, "-l", languages, "--dpi", str(min(max(dpi, 70), 2400)), "tsv"]
    table = run("tesseract", arguments, name=name, files={"input.pgm": pixels.getvalue()}, result=STDOUT)
    return list(_words(table.decode("utf-8", "replace")))


def _mean(words: Sequence[_Word]) -> float:
    return sum(word.confidence for word in words) / len(words)


def mean_confidence(pages: Sequence[Recognised]) -> float | None:
    """Over the words of all pages, 0 to 100 as receipts have it."""
    words = sum(page.words for page in pages)
    return round(100 * sum(page.words * (page.confidence or 0) for page in pages) / words, 1) if words else None


def _open(file: File) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file.data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(file.name) from error
    except UnidentifiedImageError as error:
        raise UnreadableDocument(f"{file.name} is a damaged image. Open and save it again, then upload it.") from error


def _too_large(name: str) -> DocumentTooLarge:
    return DocumentTooLarge(f"{name} has more than {_MAX_PIXELS // 10**6} million pixels. Save it smaller, or cut it in parts.")


def _page(image: Image.Image, file: File) -> Recognised:
    if image.width * image.height > _MAX_PIXELS:
        raise _too_large(file.name)
    dpi = _dpi(image)
    upright = _grey(ImageOps.exif_transpose(image))
    factor = _scale(upright)
    if factor != 1:
        size = (max(1, round(upright.width * factor)), max(1, round(upright.height * factor)))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    return recognise(upright, dpi=round(dpi * factor), languages=file.options.ocr_languages, name=file.name)


def _dpi(image: Image.Image) -> float:
    written = float(image.info.get("dpi", (0, 0))[0])
    told = round(written) if math.isfinite(written) else 0  # a TIFF may say 0/0
    # 72 and 96 are written by programs that do not know.
    return told if 100 <= told <= 2400 else max(image.size) / _PAGE_INCHES


def _scale(image: Image.Image) -> float:
    edge, pixels = max(image.size), image.width * image.height
    if edge < _LONG_EDGE:
        return min(3.0, _LONG_EDGE / edge)
    return min(1.0, math.sqrt(_ENOUGH_PIXELS / pixels))


def _grey(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode[0] in "IF":  # 16 bits and more, of which converting would keep the lowest 8
        values = np.asarray(image, np.float32)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))
    return image if image.mode == "L" else image.convert("L")


def _require(languages: str, name: str) -> None:
    missing = sorted(set(languages.split("+")) - _installed())  # tesseract itself reads on with the others
    if missing:
        packages = " ".join(f"tesseract-ocr-{each.replace('_', '-')}" for each in missing)
        raise MissingProgram(
            f"{name} is to be read in a language that tesseract lacks here ({', '.join(missing)}). Install it with "
            f"`apt-get install {packages}` on Debian and Ubuntu, `brew install tesseract-lang` on macOS."
        )


@cache
def _installed() -> frozenset[str]:
    listed = run("tesseract", ["--list-langs"], name="the image", files={}, result=STDOUT)
    return frozenset(listed.decode("utf-8", "replace").split("\n")[1:])


def _words(table: str) -> Iterator[_Word]:
    for row in table.splitlines()[1:]:
        level, _, block, paragraph, line, _, left, top, width, height, confidence, text = row.split("\t", 11)
        if level == "5" and text.strip():
            x, y = int(left), int(top)
            yield _Word((block, paragraph), line, x, y, x + int(width), y + int(height), float(confidence) / 100, text.strip())


def _text(words: Iterable[_Word]) -> str:
    """Words as running text: those parted by a hyphen whole again; a line that ends early keeps its end."""
    lines = [list(line) for _, line in groupby(words, key=lambda word: word.line)]
    margin = max(line[-1].right for line in lines)
    width = margin - min(line[0].left for line in lines)
    text = _line(lines[0])
    for above, line in pairwise(lines):
        if text.endswith("-") and text[-2:-1].isalpha() and line[0].text[0].islower():
            text = text[:-1]
        else:
            text += " " if above[-1].right > margin - 0.2 * width else "\n"
        text += _line(line)
    return _CJK_GAP.sub("", text)


def _line(words: Iterable[_Word]) -> str:
    return " ".join(word.text for word in words)


def _box(words: Sequence[_Word], upside_down: tuple[int, int] | None, points: float) -> Box:
    """Around the words, which were read on an image of the size `upside_down` that had been turned, if that is given."""
    left, top = min(word.left for word in words), min(word.top for word in words)
    right, bottom = max(word.right for word in words), max(word.bottom for word in words)
    if upside_down:
        width, height = upside_down
        left, top, right, bottom = width - right, height - bottom, width - left, height - top
    return round(left * points, 1), round(top * points, 1), round(right * points, 1), round(bottom * points, 1)
