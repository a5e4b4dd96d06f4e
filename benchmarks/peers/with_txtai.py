"""txtai. It cuts each text at the model's window without a word, so the texts come in pieces."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from threading import Lock

from txtai import Embeddings


class Peer:
    def __init__(self, model: str) -> None:
        self.embeddings = Embeddings(path=model, content=True)  # the model comes with the first text, or with what was saved

    def ingest(self, documents: list[dict], folder: str) -> None:
        pieces = ((each["name"], piece) for each in documents for piece in textwrap.wrap(each["text"], 800))
        self.embeddings.index((f"{name}#{number}", piece, None) for number, (name, piece) in enumerate(pieces))
        self.embeddings.save(folder)

    def open(self, folder: str) -> Callable[[str, int], list[str]]:
        self.embeddings.load(folder)
        one_by_one = Lock()  # with several threads at once the process dies

        def search(question: str, k: int) -> list[str]:
            with one_by_one:
                return [hit["id"].partition("#")[0] for hit in self.embeddings.search(question, k)]

        return search
