"""Haystack with its in-memory store, saved to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from haystack import Document
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)


class Peer:
    def __init__(self, model: str) -> None:
        self.documents = SentenceTransformersDocumentEmbedder(model=model, progress_bar=False)
        self.questions = SentenceTransformersTextEmbedder(model=model, progress_bar=False)
        self.documents.warm_up()
        self.questions.warm_up()

    def ingest(self, documents: list[dict], folder: str) -> None:
        store = InMemoryDocumentStore(embedding_similarity_function="cosine")
        splitter = DocumentSplitter(split_by="word", split_length=160, split_overlap=0)
        splitter.warm_up()
        texts = [Document(content=each["text"], meta={"name": each["name"]}) for each in documents]
        store.write_documents(self.documents.run(splitter.run(texts)["documents"])["documents"])
        Path(folder).mkdir(parents=True, exist_ok=True)
        store.save_to_disk(f"{folder}/documents.json")

    def open(self, folder: str) -> Callable[[str, int], list[str]]:
        retriever = InMemoryEmbeddingRetriever(InMemoryDocumentStore.load_from_disk(f"{folder}/documents.json"))

        def search(question: str, k: int) -> list[str]:
            found = retriever.run(query_embedding=self.questions.run(question)["embedding"], top_k=k)["documents"]
            return [hit.meta["name"] for hit in found]

        return search
