"""Tiny models with known answers, as the files they are published as. Everybody computes ``y = scale · x + 1``."""

from __future__ import annotations

import json
import struct

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

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


def tensors_file(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """The safetensors format: name → dtype as the format names it, shape, bytes."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body


def safetensors(tensors: dict[str, list[float]]) -> bytes:
    """One-dimensional FP32 tensors in the safetensors format."""
    packed = {name: struct.pack(f"<{len(values)}f", *values) for name, values in tensors.items()}
    return tensors_file({name: ("F32", [len(data) // 4], data) for name, data in packed.items()})


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


MLP_PY = """
import torch

class Mlp(torch.nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.rise = torch.nn.Linear(width, hidden, bias=False)
        self.fall = torch.nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.fall(torch.tanh(self.rise(x)))

def build(config):
    return Mlp(config["width"], config["hidden"])
"""


class Mlp:
    """``y = tanh(x · rise) · fall`` with weights drawn from ``seed``: a model of 512 · hidden bytes, width 64."""

    width = 64

    def __init__(self, hidden: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.hidden = hidden
        self.rise = draw.standard_normal((self.width, hidden), dtype=np.float32) / 8
        self.fall = draw.standard_normal((hidden, self.width), dtype=np.float32) / np.float32(hidden**0.5)

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        y: npt.NDArray[np.float32] = np.tanh(x @ self.rise) @ self.fall
        return y


def mlp_pytorch(mlp: Mlp) -> dict[str, bytes]:
    """safetensors + model.py + hearth.json."""
    tensors = {"rise.weight": np.ascontiguousarray(mlp.rise.T), "fall.weight": np.ascontiguousarray(mlp.fall.T)}
    shape = [-1, mlp.width]
    manifest = {
        "format": "pytorch",
        "parameters": {"width": mlp.width, "hidden": mlp.hidden},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": shape}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": shape}],
    }
    return {
        "model.safetensors": save(tensors),
        "model.py": MLP_PY.encode(),
        "hearth.json": json.dumps(manifest).encode(),
    }


def mlp_onnx(mlp: Mlp) -> dict[str, bytes]:
    """model.onnx alone."""
    nodes = [
        helper.make_node("MatMul", ["x", "rise"], ["risen"]),
        helper.make_node("Tanh", ["risen"], ["bent"]),
        helper.make_node("MatMul", ["bent", "fall"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", mlp.width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", mlp.width])],
        [numpy_helper.from_array(mlp.rise, "rise"), numpy_helper.from_array(mlp.fall, "fall")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return {"model.onnx": data}


GREEDY_PY = """
import torch

class Greedy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(4))

    def forward(self, x):
        spare = torch.ones(len(x), BYTES, dtype=torch.uint8)
        return x * self.scale + spare[:, :1]

def build(config):
    return Greedy()
"""


def greedy_pytorch(row_bytes: int) -> dict[str, bytes]:
    """Takes ``row_bytes`` of memory for each row while it computes."""
    return {
        "model.safetensors": safetensors({"scale": [1.0] * WIDTH}),
        "model.py": GREEDY_PY.replace("BYTES", str(row_bytes)).encode(),
    }
