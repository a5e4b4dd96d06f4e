"""JSON, lines of JSON, notebooks and XML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from lxml import etree

from ingest.parsers.code import code_drafts
from ingest.parsers.decode import Decoded, decode
from ingest.parsers.html import html_drafts
from ingest.parsers.markdown import markdown_drafts
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble
from retrieval.errors import UnreadableDocument

_MARKUP = re.compile(r"<(?:p|div|br|a|img|ul|ol|h[1-6])\b[^<>]{0,500}>", re.IGNORECASE)


def _receipt(parser: str, decoded: Decoded, *notes: str) -> Receipt:
    return Receipt(
        parser, encoding=decoded.encoding, replaced_characters=decoded.replaced, removed_characters=decoded.removed, notes=notes
    )


def _loads(text: str) -> Any:
    """Raises ValueError for what is no JSON that we read: broken, nested too deeply, numbers of thousands of digits."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_json(file: File) -> Parsed:
    """JSON, indented; each item of a top-level list is a block. What is no valid JSON stays as it is."""
    decoded = decode(file.data)
    try:
        value = _loads(decoded.text)
        drafts = [Draft("code", _dumped(item)) for item in (value if isinstance(value, list) else [value])]
    except ValueError as error:
        note = f"Not valid JSON ({str(error)[:200]}); kept as plain text."
        return assemble(code_drafts(decoded.text), _receipt("json", decoded, note))
    return assemble(drafts, _receipt("json", decoded))


def _dumped(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=1)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_ndjson(file: File) -> Parsed:
    """One JSON value a line; lines that are none stay as they are."""
    decoded = decode(file.data)
    drafts, broken = [], 0
    for line in decoded.text.split("\n"):
        try:
            drafts.append(Draft("code", _dumped(_loads(line)) if line.strip() else ""))
        except ValueError:
            broken += 1
            drafts.append(Draft("code", line))
    notes = [f"{broken} lines are not valid JSON; kept as plain text."] if broken else []
    return assemble(drafts, _receipt("json lines", decoded, *notes))


def parse_notebook(file: File) -> Parsed:
    """A Jupyter notebook: its Markdown, its code and what the code printed."""
    decoded = decode(file.data)
    try:
        notebook = _loads(decoded.text)
        cells = notebook.get("cells") or [cell for sheet in notebook.get("worksheets", ()) for cell in sheet["cells"]]
        drafts = [draft for cell in cells for draft in _cell(cell)]
        images = sum(
            key.startswith("image/") for cell in cells for output in cell.get("outputs", ()) for key in output.get("data", ())
        )
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UnreadableDocument(
            f"{file.name} is not a Jupyter notebook ({error}). Open and save it again, then upload it."
        ) from error
    return assemble(drafts, replace(_receipt("notebook", decoded), images_skipped=images))


def _cell(cell: Any) -> Iterator[Draft]:
    source = _joined(cell.get("source", cell.get("input", "")))
    if cell.get("cell_type") == "markdown":
        yield from markdown_drafts(source)
        return
    yield Draft("code", source)
    for output in cell.get("outputs", ()):
        shown = output.get("text") or output.get("data", {}).get("text/plain") or ""
        yield Draft("code", _joined(shown))


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def parse_xml(file: File) -> Parsed:
    """XML: an element with running text is a paragraph, neighbouring leaves are lines of `tag: text`.

    Entities are not expanded, nothing is fetched.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(file.data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableDocument(f"{file.name} is not well-formed XML ({error}). Mend it, or upload it as .txt.") from error
    encoding = root.getroottree().docinfo.encoding or "utf-8"
    return assemble(_xml_drafts(root), Receipt(f"lxml {version('lxml')}", encoding=encoding.lower()))


def _xml_drafts(root: Any) -> Iterator[Draft]:
    stack = [root]  # the parser allows a depth of 256 at most, yet an own stack costs nothing
    leaves: list[str] = []
    while stack:
        element = stack.pop()
        if isinstance(element, str):  # the end of a parent: its leaves are a block
            yield Draft("text", "\n".join(leaves))
            leaves = []
        elif not isinstance(element.tag, str):
            continue  # an entity that was not expanded
        elif len(element) and not _has_running_text(element):
            yield Draft("text", "\n".join(leaves))
            leaves = []
            stack += ["", *reversed(element)]
        else:
            text = " ".join("".join(element.itertext(with_tail=False)).split())
            tag = etree.QName(element).localname
            if tag in {"title", "article-title"} and text:
                yield Draft("text", "\n".join(leaves))
                leaves = []
                yield Draft("title", text, None, min(sum(1 for _ in element.iterancestors("sec", "section", "item")) + 1, 6))
            elif len(element) or _MARKUP.search(text):
                yield Draft("text", "\n".join(leaves))
                leaves = []
                yield from html_drafts(text)[0] if _MARKUP.search(text) else [Draft("text", text)]
            elif text:
                leaves.append(f"{tag}: {text}")
    yield Draft("text", "\n".join(leaves))


def _has_running_text(element: Any) -> bool:
    return bool((element.text or "").strip()) or any((child.tail or "").strip() for child in element)
