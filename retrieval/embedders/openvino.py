"""sentence-transformers models on OpenVINO: on a CPU with bf16 twice as fast as torch, and loaded in well under a second.

A model is converted once per machine and version of OpenVINO, in a process of its own (`openvino_conversion.py`), so that
neither the server nor the worker ever imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from retrieval.embedders.batches import padded
from retrieval.embedders.cores import available_cores
from retrieval.embedders.folder import ModelFolder
from retrieval.embedders.local import INT8_NAME, REFERENCE_NAME, Engine
from retrieval.embedders.unit import unit_rows
from retrieval.errors import ConfigurationError, EmbedderUnavailable, MissingDependency
from retrieval.types import Matrix

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How near a converted model's vectors come to those of sentence-transformers, and what such vectors are called."""

    name: str
    min_cosine: float


# One name for torch, OpenVINO in f32 and in bf16, and so one fingerprint: their vectors were compared at the conversion and
# differ less than a reordered sum does, so an index may be filled by one and asked by another (a worker with bf16, a server
# without). bf16 gives 0.99996 on all-MiniLM-L6-v2, and integers 0.995: those need a name of their own.
FULL = Accuracy(REFERENCE_NAME, 0.9999)
INT8 = Accuracy(INT8_NAME, 0.994)

STREAMS = 2
"""Batches that are computed side by side, where there are as many cores: a fifth less time than one by one."""

KEPT_KERNELS = 64
"""OpenVINO keeps what it makes for each shape of a batch, 2 MB and more; its own limit of 5,000 is hundreds of MB."""

CONVERSION_SECONDS = 900
"""After that a conversion is given up: an import of torch on a busy machine takes a minute, a large model some more."""

PROBE = "Before it serves, a converted model must give the vector that was noted when it was converted."

INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What models call it, and what `tokenizers` does."""
MANIFEST = "manifest.json"

Encode = Callable[[Sequence[str]], Matrix]
Convert = Callable[[Path, Path, Accuracy], None]
"""Takes the model's folder and an empty one; leaves there the converted model, or the reason why there is none."""


class Refused(Exception):
    """The model cannot be converted faithfully, and trying again will not help."""


class Damaged(Exception):
    """What lies in the cache is not a converted model, or not the one that was written there."""


class ConversionFailed(Exception):
    """The conversion did not end; it may the next time."""


class OpenVinoEngine:
    """The model's converted twin; another engine if it cannot be converted. Loaded, and at first converted, when needed."""

    def __init__(
        self,
        folder: ModelFolder,
        cache: Path,
        key: str,
        accuracy: Accuracy = FULL,
        *,
        convert: Convert | None = None,
        fallback: Callable[[Path], Engine] | None = None,
    ) -> None:
        """`key` is the model's fingerprint; below `cache` lies a folder for each converted model.

        `convert` puts a converted model into an empty folder, by default in a process of its own. Without a `fallback` a
        model that cannot be converted is an error.
        """
        self.name = accuracy.name
        self.lanes = min(STREAMS, available_cores())
        self._folder = folder
        self._cache = cache
        self._key = key
        self._accuracy = accuracy
        self._convert = convert or convert_in_child
        self._fallback = fallback
        self._loaded: Encode | None = None
        self._loading = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Raises `ConfigurationError`, `MissingDependency` and `EmbedderUnavailable` if there is no way to compute it."""
        if self._loaded is None:
            with self._loading:
                self._loaded = self._loaded or self._load()
        return self._loaded(texts)

    def _load(self) -> Encode:
        try:
            return open_converted(self._folder, self._cache, self._key, self._accuracy, self._convert)
        except (Refused, Damaged, ConversionFailed, OSError) as exc:
            if self._fallback is None:
                raise _without_fallback(self._folder, exc) from exc
            logger.warning("%s runs on torch, which is slower: OpenVINO cannot be used (%s)", self._folder.name, exc)
            return self._fallback(self._folder.path).encode


def _without_fallback(folder: ModelFolder, why: Exception) -> ConfigurationError | EmbedderUnavailable:
    message = f"OpenVINO cannot run {folder.name} as it is configured: {why}"
    if isinstance(why, Refused):
        return ConfigurationError(f"{message}; leave out ?precision=int8, or set FOOTNOTE_EMBEDDER_ENGINE=auto")
    return EmbedderUnavailable(message)


def open_converted(folder: ModelFolder, cache: Path, key: str, accuracy: Accuracy, convert: Convert) -> Encode:
    """The model of `folder` ready to run, converted first if it is not below `cache` or is damaged there. Blocks.

    One process at a time: of several that start together, one converts and the others load what it wrote.
    Raises `Refused`, `Damaged`, `ConversionFailed`, `MissingDependency` and `OSError`.
    """
    openvino = load()
    best = precisions()[0]
    version = openvino.__version__.partition("-")[0]  # the rest names a branch, with slashes
    target = cache / f"{key}-{version}-{best}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{target.name}.lock"):
        if target.is_dir():
            try:
                return _open(folder, target, accuracy)
            except Damaged as exc:
                logger.warning("the converted model %s is damaged and is made again (%s)", target.name, exc)
        _convert_into(target, folder, accuracy, convert)
        return _open(folder, target, accuracy)


def precisions() -> list[str]:
    """What this CPU computes fast, best first: bf16 halves the time where the CPU has it, and is emulated elsewhere."""
    capable = "BF16" in load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["bf16", "f32"] if capable else ["f32"]


def _open(folder: ModelFolder, target: Path, accuracy: Accuracy) -> Encode:
    """Raises `Refused` if the conversion ended so, `Damaged` if it does not give the vector that was noted then."""
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if manifest["refused"]:
            raise Refused(manifest["refused"])
        model = Model(folder, target, manifest["precision"], keep=True)
        cosine = cosines(model.encode([PROBE]), np.asarray([manifest["probe"]])).min()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as exc:  # OpenVINO's own are RuntimeErrors
        raise Damaged(f"{type(exc).__name__}: {exc}".splitlines()[0]) from exc
    if not cosine >= accuracy.min_cosine:
        raise Damaged(f"a vector has cosine {cosine:.6f} to the one noted at the conversion")
    return model.encode


class Model:
    """A converted model, compiled for this CPU. Raises `RuntimeError` where OpenVINO cannot read it."""

    def __init__(self, folder: ModelFolder, target: Path, precision: str, *, keep: bool) -> None:
        """`keep` writes what is compiled beside the model, which halves the time of the next start."""
        cores = available_cores()
        streams = min(STREAMS, cores)
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": cores,
            # Pinned, the server's and the worker's threads would share the first cores of a machine that has more.
            "ENABLE_CPU_PINNING": False,
        }
        if keep:
            options["CACHE_DIR"] = str(target / "compiled")
        core = load().Core()
        with suppress(RuntimeError):  # not in its documentation, and a version without it only takes more memory
            core.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": KEPT_KERNELS})
        compiled = core.compile_model(target / "model.xml", "CPU", options)
        self._tokens = Tokens(folder)
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def encode(self, texts: Sequence[str]) -> Matrix:
        """From any thread; more than there are streams wait."""
        tensors = self._tokens.tensors(texts, self._inputs)
        request = self._requests.get()
        try:
            outputs = request.infer(tensors)
            return np.array(outputs[0], np.float32)  # a copy: the request writes its next answer over this one
        finally:
            self._requests.put(request)


class Tokens:
    """What a model reads of texts: as much as its window holds. Those of a batch are padded to the longest or little more.

    What tokenizer.json says of both is somebody's training run: all-MiniLM-L6-v2 would pad and cut at 128.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._tokenizer = folder.tokenizer
        self._pad = self._tokenizer.token_to_id(folder.pad_token) or 0
        self._on_the_left = folder.pads_on_the_left
        self._window = folder.max_seq_length
        mask = self._tokenizer.encode("x").special_tokens_mask
        self._tail = len(list(takewhile(bool, reversed(mask))))  # special tokens that end a text

    def tensors(
        self, texts: Sequence[str], inputs: Sequence[str], *, tile: int | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """By the model's name of each input, of shape (len(texts), tokens); padded to multiples of `tile`, if it is given."""
        encodings = self._tokenizer.encode_batch(list(texts))
        longest = max(map(len, encodings))
        width = min(padded(longest, tile), self._window)  # beyond it a model has no positions
        return {name: self._padded([getattr(each, INPUTS[name]) for each in encodings], width, name) for name in inputs}

    def _padded(self, rows: Sequence[Sequence[int]], width: int, name: str) -> npt.NDArray[np.int64]:
        tensor = np.full((len(rows), width), self._pad if name == "input_ids" else 0, np.int64)
        for line, row in zip(tensor, rows, strict=True):
            kept = row if len(row) <= width else [*row[: width - self._tail], *row[len(row) - self._tail :]]
            start = width - len(kept) if self._on_the_left else 0
            line[start : start + len(kept)] = kept
        return tensor


def cosines(some: Matrix, others: Matrix) -> Matrix:
    cosines: Matrix = (unit_rows(some) * unit_rows(others)).sum(axis=1)
    return cosines


def load() -> Any:
    """The package; its import takes a tenth of a second."""
    # OpenVINO imports a package that reports conversions to Google Analytics, and does without it where it is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keeps the other processes of this machine out; freed by the system if this one dies."""
    if sys.platform == "win32":  # no flock: two may convert at once, and the later rename finds the target there
        yield
        return
    import fcntl

    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _convert_into(target: Path, folder: ModelFolder, accuracy: Accuracy, convert: Convert) -> None:
    """Put the converted model, or the reason why there is none, where `target` is. The caller holds the lock."""
    for stale in target.parent.glob(f"{target.name}.part-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    part = target.with_name(f"{target.name}.part-{uuid4().hex}")
    part.mkdir()
    logger.info("converting %s for OpenVINO, once: this takes up to a minute", folder.name)
    try:
        convert(folder.path, part, accuracy)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def convert_in_child(model: Path, part: Path, accuracy: Accuracy, *, program: str = sys.executable) -> None:
    """Convert by a Python of its own, `program`, so that this process never imports torch.

    Raises `ConversionFailed`, and `MissingDependency` if nothing can quantise.
    """
    if accuracy == INT8 and find_spec("nncf") is None:
        raise MissingDependency("int8 needs the package 'nncf' once, to quantise the model: pip install 'footnote[int8]'")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [program, "-P", "-m", "retrieval.embedders.openvino_conversion", str(model), str(part), accuracy.name]
    try:
        child = subprocess.run(  # noqa: S603 - our own module, and no shell
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONVERSION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise ConversionFailed(f"the conversion took longer than {CONVERSION_SECONDS} s") from exc
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ConversionFailed(f"the conversion ended with status {child.returncode}: {said[-1]}")
