"""Source code and configuration: blocks begin where something begins at the left margin after a blank line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ingest.parsers.decode import decode
from ingest.parsers.parsed import Draft, File, Parsed, Receipt, assemble

_CONTINUES = re.compile(
    r"[\])}]|end\b|else\b|elif\b|except\b|finally\b|catch\b|rescue\b|ensure\b|when\b|then\b|fi\b|done\b|esac\b"
)
"""A line at the margin that belongs to what came before."""


def parse_code(file: File) -> Parsed:
    """Code in any language, verbatim but for the blank lines between blocks."""
    text, encoding, replaced, removed = decode(file.data)
    receipt = Receipt("code", encoding=encoding, replaced_characters=replaced, removed_characters=removed)
    return assemble(code_drafts(text), receipt)


def code_drafts(text: str) -> Iterator[Draft]:
    """One block for each top-level piece: a function, a class, a section, a run of imports."""
    block: list[str] = []
    blank_before = False
    for line in text.split("\n"):
        at_margin = line[:1].strip() != "" and not _CONTINUES.match(line)
        if at_margin and blank_before and block:
            yield Draft("code", "\n".join(block))
            block = []
        blank_before = not line.strip()
        block.append(line)
    yield Draft("code", "\n".join(block))
