"""What a sentence-transformers folder says about its model, read without importing torch."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The documented prefixes of the E5 family, whose older folders do not declare them (arXiv:2212.03533).
E5_QUERY_PREFIX = "query: "
E5_PASSAGE_PREFIX = "passage: "

_TRANSFORMER_FILES = ("config.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json")


class ModelFolder:
    """A folder with `modules.json`, a transformer, its tokenizer and its weights. `name` is what the operator called it.

    Raises `ConfigurationError` if a file that we need is missing or is not JSON.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        modules = self._json(path / "modules.json", required=True)
        self.transformer = path / str(modules[0]["path"])
        self.modules = [path / str(module["path"]) for module in modules[1:]]
        if not self.weights:
            raise ConfigurationError(f"{path} holds no weights (model.safetensors or pytorch_model.bin)")
        if not self.tokenizer_file.is_file():
            raise ConfigurationError(f"{path} lacks tokenizer.json: save the model again with a fast tokenizer")
        if any(config.get("include_prompt") is False for config in self._module_configs):
            raise ConfigurationError(
                f"{name} keeps its prompt out of the pooling, which is not supported: choose another model"
            )

    @property
    def tokenizer_file(self) -> Path:
        return self.transformer / "tokenizer.json"

    @cached_property
    def weights(self) -> list[Path]:
        """The transformer's weight files: one, or several shards."""
        return sorted(self.transformer.glob("model*.safetensors")) or sorted(self.transformer.glob("pytorch_model*.bin"))

    @cached_property
    def dimension(self) -> int:
        """Length of a vector: a dense layer's output if there is one, else the pooling's."""
        for config in reversed(self._module_configs):
            for key in ("out_features", "embedding_dimension", "word_embedding_dimension"):
                if key in config:
                    return int(config[key])
        return int(self._json(self.transformer / "config.json", required=True)["hidden_size"])

    @cached_property
    def max_seq_length(self) -> int:
        """Tokens that the model reads, special ones included."""
        declared = self._json(self.transformer / "sentence_bert_config.json").get("max_seq_length")
        if declared:
            return int(declared)
        limits = (
            self._json(self.transformer / "tokenizer_config.json").get("model_max_length"),
            self._json(self.transformer / "config.json").get("max_position_embeddings"),
        )
        return min(int(limit) for limit in (*limits, 512) if limit)

    @property
    def tokenizer(self) -> Tokenizer:
        """Neither pads nor cuts. One for all who count and encode: it takes 9 MB."""
        return self._tokenizer_and_padding[0]

    @property
    def pad_token(self) -> str:
        """Masked out, so a model that declares none takes any token; but some compute positions from it."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            declared = self._json(self.transformer / name).get("pad_token")
            if declared:
                return str(declared.get("content", "[PAD]") if isinstance(declared, dict) else declared)
        return self._tokenizer_and_padding[1]

    @property
    def pads_on_the_left(self) -> bool:
        return bool(self._json(self.transformer / "tokenizer_config.json").get("padding_side") == "left")

    @cached_property
    def _tokenizer_and_padding(self) -> tuple[Tokenizer, str]:
        # Forks of a process that tokenised in parallel deadlock, and one thread counts a megabyte a second.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(str(self.tokenizer_file))
        padding = str((loaded.padding or {}).get("pad_token") or "[PAD]")
        loaded.no_truncation()
        loaded.no_padding()
        return loaded, padding

    @property
    def query_prefix(self) -> str:
        return self._prompt(("query",), E5_QUERY_PREFIX)

    @property
    def passage_prefix(self) -> str:
        return self._prompt(("passage", "document"), E5_PASSAGE_PREFIX)

    def fingerprint(self, engine: str) -> str:
        """16 hex digits over all that changes the vectors: weights, configuration, tokenizer, prefixes, engine.

        The same for equal files, wherever they lie. Reads the weights: about a second per gigabyte.
        """
        small = [self.transformer / name for name in _TRANSFORMER_FILES]
        modules = [
            file
            for folder in self.modules
            for file in sorted(folder.glob("*"))
            if file.suffix in {".json", ".safetensors", ".bin"}
        ]
        lines = [f"engine {engine}", f"query {self.query_prefix!r}", f"passage {self.passage_prefix!r}"]
        lines += [
            f"{file.relative_to(self.path).as_posix()} {file_hash(file)}"
            for file in (self.path / "modules.json", *small, *self.weights, *modules)
            if file.is_file()
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @cached_property
    def _module_configs(self) -> list[dict[str, Any]]:
        return [self._json(folder / "config.json") for folder in self.modules]

    def _prompt(self, keys: tuple[str, ...], of_e5: str) -> str:
        prompts = self._json(self.path / "config_sentence_transformers.json").get("prompts") or {}
        declared = next((str(prompts[key]) for key in keys if prompts.get(key)), "")
        return declared or (of_e5 if "e5" in self.name.lower() and not any(prompts.values()) else "")

    def _json(self, file: Path, *, required: bool = False) -> Any:
        if not file.is_file() and not required:
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ConfigurationError(
                f"{self.path} is not a sentence-transformers folder: cannot read {file.name} ({exc})"
            ) from exc


def file_hash(file: Path) -> str:
    """SHA-256 in hex. A file that has not changed is read once: a start asks twice for the default model's weights."""
    now = file.stat()
    with _hashing:
        return _hash_of(file, now.st_ino, now.st_size, now.st_mtime_ns)


_hashing = threading.Lock()
"""Who asks for a hash that another is at waits for it."""


@lru_cache(maxsize=64)
def _hash_of(file: Path, *_: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
