"""Tiny models with known answers, as the files they are published as. Everybody computes ``y = scale · x + 1``."""

from __future__ import annotations

import json
import struct

import onnx
from onnx import TensorProto, helper

WIDTH = 4
SCHEMA = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, WIDTH]}],
}

MODEL_PY = """
import time
import torch

class Affine(torch.nn.Module):
    def __init__(self, width, sleep_s):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(width))
        self.sleep_s = sleep_s

    def forward(self, x):
        time.sleep(self.sleep_s)
        return x * self.scale + 1

def build(config):
    return Affine(config["width"], config["sleep_s"])
"""


def safetensors(tensors: dict[str, list[float]]) -> bytes:
    """One-dimensional FP32 tensors in the safetensors format."""
    header, body = {}, b""
    for name, values in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body


def affine_pytorch(*, scale: float, sleep_s: float = 0.0) -> dict[str, bytes]:
    """safetensors + model.py + hearth.json."""
    manifest = {"format": "pytorch", "parameters": {"width": WIDTH, "sleep_s": sleep_s}, **SCHEMA}
    return {
        "model.safetensors": safetensors({"scale": [scale] * WIDTH}),
        "model.py": MODEL_PY.encode(),
        "hearth.json": json.dumps(manifest).encode(),
    }


def affine_onnx(*, scale: float) -> dict[str, bytes]:
    """model.onnx alone: its schema is in the file."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Add", ["scaled", "one"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale]),
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return {"model.onnx": data}
