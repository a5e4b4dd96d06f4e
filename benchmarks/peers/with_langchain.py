"""LangChain with Chroma, as its own tutorials put them together."""

from __future__ import annotations

from collections.abc import Callable

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter


class Peer:
    def __init__(self, model: str) -> None:
        self.embedding = HuggingFaceEmbeddings(model_name=model, encode_kwargs={"normalize_embeddings": True})

    def ingest(self, documents: list[dict], folder: str) -> None:
        splitter = RecursiveCharacterTextSplitter(chunk_size=800, chunk_overlap=80)
        texts = [Document(page_content=each["text"], metadata={"name": each["name"]}) for each in documents]
        Chroma.from_documents(splitter.split_documents(texts), self.embedding, persist_directory=folder)

    def open(self, folder: str) -> Callable[[str, int], list[str]]:
        store = Chroma(persist_directory=folder, embedding_function=self.embedding)
        return lambda question, k: [hit.metadata["name"] for hit in store.similarity_search(question, k=k)]
