"""Names of documents: relative paths without tricks. They never become paths of ours."""

from __future__ import annotations

import re
import unicodedata

_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Turn the direction of text, so that `exe.pdf` reads as `fdp.exe`."""


def clean_name(name: str) -> str:
    """A name in NFC, perhaps empty: `../../etc/x.pdf` and `C:\\x.pdf` lose what leads out of their folder.

    Control characters and overrides of the text direction go.
    """
    kept = "".join(
        c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in {"Cc", "Cs"} and c not in _OVERRIDES
    )
    parts = [part.strip() for part in re.sub(r"^[A-Za-z]:", "", kept.replace("\\", "/")).split("/")]
    return "/".join(part for part in parts if part not in {"", ".", ".."})
