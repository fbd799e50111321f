"""The models of the end-to-end test: the same digits classifier in both formats, with the answers it gives outside Hearth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from predictor.demo import model as builder
from predictor.demo import models as demo

DESIGN: Final = {"kind": "mlp", "widths": [1024, 1024]}  # 4.6 MB
SEED: Final = 11
ASKED_IMAGES: Final = 5
INPUT: Final = "pixels"
OUTPUT: Final = "logits"


@dataclass(frozen=True)
class Model:
    """One model as it lies in S3, a question, and the right answer.

    files     name → contents in the order of upload; hearth.json, which makes the version eligible, comes last
    images    [n, 64]
    expected  [n, 10], computed here by the format's own library
    """

    name: str
    files: Mapping[str, bytes]
    images: NDArray[np.float32]
    expected: NDArray[np.float32]


def both() -> tuple[Model, Model]:
    """A safetensors + model.py model and an ONNX model, trained on the same digits."""
    torch.set_num_threads(1)
    digits = demo.load(SEED)
    module = demo.train(DESIGN, digits, SEED)
    images = digits.test_images[:ASKED_IMAGES]
    assert builder.__file__ is not None, "the demo's model.py is a file"
    with torch.inference_mode():
        pytorch = Model(
            name="digits-pytorch",
            files={
                "model.safetensors": demo.safetensors(module),
                "model.py": Path(builder.__file__).read_bytes(),
                "hearth.json": _manifest("pytorch"),
            },
            images=images,
            expected=module(torch.from_numpy(images)).numpy(),
        )
    graph = demo.onnx_graph(module)
    onnx = Model(
        name="digits-onnx",
        files={"model.onnx": graph, "hearth.json": _manifest("onnx")},
        images=images,
        expected=demo.onnx_logits(graph, images),
    )
    return pytorch, onnx


def _manifest(format_name: str) -> bytes:
    manifest = {
        "format": format_name,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, builder.SIDE**2]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, builder.CLASSES]}],
        "parameters": DESIGN,
    }
    return json.dumps(manifest).encode()
