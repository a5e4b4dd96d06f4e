"""Loads every parser; imported by the fork server, whose children then start at once."""

from __future__ import annotations

from importlib import import_module
from multiprocessing import spawn

from PIL import Image

from ingest.parsers.elements import load
from ingest.parsers.media import FORMATS

for each in FORMATS.values():
    import_module(each.parser.partition(":")[0])
import_module("charset_normalizer")
import_module("python_calamine")
import_module("trafilatura")
Image.init()
load()


def _keep_main(*_: object) -> None:
    """A worker needs nothing from the program that started it, and importing that again (the whole service) takes seconds."""


for name in ("_fixup_main_from_name", "_fixup_main_from_path"):
    if hasattr(spawn, name):
        setattr(spawn, name, _keep_main)
