"""Converts a sentence-transformers model for OpenVINO and checks what came out: the child process of `openvino.py`.

python -P -m retrieval.embedders.openvino_conversion <model folder> <empty folder> <accuracy>

The only place where torch, and for integers nncf, meet OpenVINO.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.embedders.batches import TILE, padded
from retrieval.embedders.calibration import passages
from retrieval.embedders.cores import overflows_in_int8
from retrieval.embedders.folder import ModelFolder
from retrieval.embedders.local import ModelTokenizer
from retrieval.embedders.openvino import (
    FULL,
    INPUTS,
    INT8,
    MANIFEST,
    PROBE,
    Accuracy,
    Encode,
    Model,
    Refused,
    Tokens,
    cosines,
    load,
    precisions,
)

# Short and long, of many scripts, of nothing but marks, and nothing at all: what a conversion gets wrong, it gets wrong here.
CHECK_TEXTS = (
    "",
    "x",
    "The cat sat on the mat.",
    "Where does the kitten nap?",
    "Quarterly revenue grew by 12.5 % to EUR 3,480,000 (2023: EUR 3,093,333).",
    "def area(radius: float) -> float: return 3.14159 * radius ** 2",
    "Änderungen der Straßenverkehrsordnung treten übermorgen in Kraft.",
    "L'été dernier, où étiez-vous ? À Besançon, peut-être.",
    "Кошка спит на диване, а собака сторожит дом.",
    "猫はマットの上に座って、窓の外を見ていた。",
    "고양이가 매트 위에 앉아 있었다.",
    "القطة تجلس على السجادة وتنظر من النافذة.",
    "बिल्ली चटाई पर बैठी थी।",
    "👩‍👩‍👧‍👦 🇩🇪 !!! ??? ...",
    "Diffusion tensor imaging shows how the white matter of the newborn brain matures. " * 6,
    "Every sentence of the answer carries a footnote, and every footnote names the page it was taken from. " * 40,
)
_CHECK_BATCH = 4
"""Neighbours of unlike length, so that padding is checked as well."""

SAME = 0.999
"""Least cosine between the vectors of one text that is padded to two lengths. Rounding leaves 0.9997; on a CPU with AMX
OpenVINO 2026.4 computes attention in integers wrongly at 32 tokens, and at no other length: 0.888."""
MOST_TOKENS = 512
"""Up to this length every width of a batch is tried."""
SMOOTH = 0.75
"""How much of the spread of a layer's inputs its weights take over, as in SmoothQuant (arXiv:2211.10438): of 0.65 to 0.95 the
one whose least cosine is best over passages, questions, and texts of each length."""
IN_FLOATS = 1 / 3
"""Share of the layers, the first ones, whose product after the GELU is not in integers: all others pass their error on. With
them in integers the least cosine is 0.991."""


def convert(model: Path, part: Path, accuracy: Accuracy) -> None:
    """Convert and check, in the child: fills the folder `part`, at last with the manifest that says how it went."""
    manifest: dict[str, Any] = {"refused": None}
    try:
        reference, converted = _convert(model, accuracy)
        precision, cosine = _save(converted, model, part, reference, accuracy)
        manifest |= {"precision": precision, "cosine": cosine, "probe": reference([PROBE])[0].tolist()}
    except Refused as exc:
        manifest["refused"] = str(exc)
    for file in part.glob("model.*"):
        _to_disk(file)
    file = part / MANIFEST
    file.write_text(json.dumps(manifest), encoding="utf-8")
    _to_disk(file)


def _convert(model: Path, accuracy: Accuracy) -> tuple[Encode, Any]:
    """sentence-transformers' own encoder, to compare with, and the converted model. Raises `Refused`."""
    import torch

    from retrieval.embedders.local import load_torch

    reference = load_torch(model)
    examples = dict(reference.tokenizer(list(CHECK_TEXTS[2:5]), padding=True, return_tensors="pt"))
    names = [name for name in INPUTS if name in examples]

    class Pooled(torch.nn.Module):
        """All of the model's modules, so pooling, dense layers and normalisation are its own."""

        def __init__(self) -> None:
            super().__init__()
            self.modules_of_model = reference

        def forward(self, *tokens: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.modules_of_model(dict(zip(names, tokens, strict=True)))["sentence_embedding"]
            return vectors

    openvino = load()
    try:
        with torch.no_grad():
            converted = openvino.convert_model(Pooled().eval(), example_input=tuple(examples[name] for name in names))
        for port, name in zip(converted.inputs, names, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_element_type(openvino.Type.i64)
            port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        converted.validate_nodes_and_infer_types()
        if accuracy == INT8:
            converted = _quantised(converted, ModelFolder(model, model.name), names)
    except (OSError, MemoryError):
        raise
    except Exception as exc:  # the border to a compiler, which raises what its parts raise
        raise Refused(f"it cannot be converted: {type(exc).__name__}: {exc}".splitlines()[0]) from exc
    return lambda texts: np.asarray(reference.encode(list(texts), prompt="", show_progress_bar=False), np.float32), converted


def _save(converted: Any, model: Path, part: Path, reference: Encode, accuracy: Accuracy) -> tuple[str, float]:
    """Write `model.xml` and `model.bin` such that the vectors are those of `reference`: the precision, and the least cosine.

    The best precision counts first. Weights as 16-bit floating point are finer than what bfloat16 computes with and take half
    the room; a model with weights beyond their range is written in full. Raises `Refused` if nothing is close enough.
    """
    folder, found = ModelFolder(model, model.name), []
    for precision, small in product(precisions(), (True, False) if accuracy == FULL else (False,)):
        (part / "model.bin").unlink(missing_ok=True)  # a new file, whoever still reads the one before
        load().save_model(converted, part / "model.xml", compress_to_fp16=small)
        twin = Model(folder, part, precision, keep=False)
        cosine = _least_cosine(twin, reference)
        if cosine < accuracy.min_cosine:
            found.append(f"{cosine:.6f} to the original in {precision}, below {accuracy.min_cosine}")
            continue
        same, tokens = _least_same(twin, folder)
        if same < SAME:
            found.append(f"{same:.6f} between a text padded to {tokens} tokens and to more in {precision}, below {SAME}")
        else:
            return precision, cosine
    raise Refused(f"the converted model's least cosine is {'; '.join(found)}")


def _quantised(converted: Any, folder: ModelFolder, names: Sequence[str]) -> Any:
    """Weights and activations as 8-bit integers, in ranges that the calibration texts show.

    Attention stays in floating point, where the graph has it as one operation: in integers it is slower, less exact, and wrong
    where `SAME` says. What comes out of a GELU has rare values far outside the range of the rest: the first layers' products
    of it stay in floating point as well, and the others share the spread with their weights. On a CPU that adds two products
    of 8 bits in 16, where they overflow, the weights take 7 bits.
    """
    import nncf

    ops = converted.get_ordered_ops()  # in the order of computing, which `get_ops` is not
    attention = [op for op in ops if op.get_type_name() == "ScaledDotProductAttention"]
    after_gelu = [op for op in ops if op.get_type_name() == "MatMul" and _follows_gelu(op)]
    spared = attention + after_gelu[: math.ceil(len(after_gelu) * IN_FLOATS)]
    tokens = Tokens(folder)
    # Whatever padding is at work: the same vectors wherever a model of this name was quantised.
    tile = TILE if folder.max_seq_length % TILE == 0 else 1
    tensors = [tokens.tensors([folder.passage_prefix + text], names, tile=tile) for text in passages()]
    return nncf.quantize(
        converted,
        nncf.Dataset(tensors),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(tensors),
        ignored_scope=nncf.IgnoredScope(names=[op.get_friendly_name() for op in spared]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if overflows_in_int8() else nncf.OverflowFix.DISABLE,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH),
        ),
    )


def _follows_gelu(op: Any) -> bool:
    return any(port.get_node().get_type_name() == "Gelu" for port in op.input_values())


def _least_cosine(twin: Model, reference: Encode) -> float:
    """Between vectors of the converted model and of `reference`."""
    expected = reference(CHECK_TEXTS)
    vectors = np.empty_like(expected)
    for start in range(_CHECK_BATCH):
        vectors[start::_CHECK_BATCH] = twin.encode(CHECK_TEXTS[start::_CHECK_BATCH])
    return float(cosines(vectors, expected).min())


def _least_same(twin: Model, folder: ModelFolder) -> tuple[float, int]:
    """The least cosine between vectors of one text alone and beside a longer one, and the tokens that the text was padded to.

    Each length of a batch has kernels of its own.
    """
    tokenizer = ModelTokenizer(folder)
    starts = tokenizer.token_starts(CHECK_TEXTS[-1])
    longest = min(folder.max_seq_length, MOST_TOKENS, len(starts))
    widths = sorted({min(padded(tokens), longest) for tokens in range(tokenizer.special + 1, longest + 1)})
    texts = [CHECK_TEXTS[-1][: starts[width - tokenizer.special]] for width in widths]
    alone = np.concatenate([twin.encode([text]) for text in texts])
    beside = np.concatenate([twin.encode(pair)[:1] for pair in pairwise(texts)])
    same = cosines(alone[:-1], beside)
    return float(same.min()), widths[int(same.argmin())]


def _to_disk(file: Path) -> None:
    """The rename that publishes the folder may survive a power cut that its contents do not."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), next(each for each in (FULL, INT8) if each.name == sys.argv[3]))
