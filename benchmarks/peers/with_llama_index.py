"""LlamaIndex with its default vector store."""

from __future__ import annotations

from collections.abc import Callable

from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.huggingface import HuggingFaceEmbedding


class Peer:
    def __init__(self, model: str) -> None:
        self.embedding = HuggingFaceEmbedding(model_name=model, embed_batch_size=32)

    def ingest(self, documents: list[dict], folder: str) -> None:
        texts = [Document(text=each["text"], metadata={"name": each["name"]}) for each in documents]
        splitter = SentenceSplitter(chunk_size=256, chunk_overlap=20)
        index = VectorStoreIndex.from_documents(texts, transformations=[splitter], embed_model=self.embedding)
        index.storage_context.persist(folder)

    def open(self, folder: str) -> Callable[[str, int], list[str]]:
        stored = StorageContext.from_defaults(persist_dir=folder)
        retrievers: dict[int, object] = {}
        index = load_index_from_storage(stored, embed_model=self.embedding)

        def search(question: str, k: int) -> list[str]:
            if k not in retrievers:
                retrievers[k] = index.as_retriever(similarity_top_k=k)
            return [hit.metadata["name"] for hit in retrievers[k].retrieve(question)]

        return search
