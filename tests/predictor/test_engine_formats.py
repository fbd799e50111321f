"""Building and running models of each format, without a worker process around them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from predictor.engine.device import Files
from predictor.engine.formats import Built, build
from predictor.errors import HearthError, LoadFailed, ModelFailed, SchemaMismatch
from predictor.wire import Field, Load, Tensor
from tests.fakes.zoo import affine_onnx, affine_pytorch, safetensors

X = Field("x", "FP32", (-1, 4))


def built(
    format_: str,
    files: dict[str, bytes],
    *,
    inputs: tuple[Field, ...] = (),
    outputs: tuple[Field, ...] = (),
    parameters: object = None,
) -> Built:
    load = Load(1, "n/m/1@r", format_, (), 0, False, inputs, outputs, json.dumps(parameters) if parameters is not None else "")  # noqa: FBT003 (Load.copy)
    tensors = {path: torch.frombuffer(bytearray(data), dtype=torch.uint8) for path, data in files.items()}
    return build(load, Files(tensors), threads=1)


def python(source: str, tensors: dict[str, list[float]] | None = None) -> dict[str, bytes]:
    return {"model.py": ("import torch\n" + source).encode(), "model.safetensors": safetensors(tensors or {})}


def ask(model: Built, *values: float, name: str = "x", wanted: tuple[str, ...] = ()) -> dict[str, list[float]]:
    data = struct.pack(f"<{len(values)}f", *values)
    outputs = model.run([(Tensor(name, "FP32", (1, len(values)), len(data)), memoryview(data))], wanted)
    return {tensor.name: list(struct.unpack(f"<{len(data) // 4}f", data)) for tensor, data in outputs}


# ---- pytorch


def test_a_module_gets_its_weights_and_its_parameters() -> None:
    model = built("pytorch", affine_pytorch(scale=3.0), parameters={"width": 4, "sleep_s": 0})
    assert ask(model, 1, 2, 3, 4) == {"OUTPUT__0": [4.0, 7.0, 10.0, 13.0]}


def test_without_parameters_config_json_is_the_config() -> None:
    files = {**affine_pytorch(scale=1.0), "config.json": b'{"width": 4, "sleep_s": 0}'}
    assert ask(built("pytorch", files), 1, 1, 1, 1) == {"OUTPUT__0": [2.0] * 4}


TWO = """
class Two(torch.nn.Module):
    def forward(self, a, b):
        return {"difference": a - b, "sum": a + b}
def build(config): return Two()
"""


def test_inputs_bind_by_name_and_dict_outputs_keep_theirs() -> None:
    one, two = struct.pack("<f", 1.0), struct.pack("<f", 2.0)
    tensors = [(Tensor("b", "FP32", (1,), 4), memoryview(two)), (Tensor("a", "FP32", (1,), 4), memoryview(one))]
    outputs = built("pytorch", python(TWO)).run(tensors, ("sum", "difference"))
    assert [(tensor.name, struct.unpack("<f", data)[0]) for tensor, data in outputs] == [("sum", 3.0), ("difference", -1.0)]


def test_foreign_input_names_bind_in_the_manifests_order() -> None:
    one, two = struct.pack("<f", 1.0), struct.pack("<f", 2.0)
    model = built("pytorch", python(TWO), inputs=(Field("left", "FP32", (1,)), Field("right", "FP32", (1,))))
    tensors = [(Tensor("right", "FP32", (1,), 4), memoryview(two)), (Tensor("left", "FP32", (1,), 4), memoryview(one))]
    (difference, data), _ = model.run(tensors, ())
    assert (difference.name, struct.unpack("<f", data)[0]) == ("difference", -1.0)


def test_tuple_outputs_take_the_manifests_names_where_it_has_as_many() -> None:
    source = "class M(torch.nn.Module):\n    def forward(self, x): return x, x + 1\ndef build(config): return M()\n"
    assert set(ask(built("pytorch", python(source)), 1.0)) == {"OUTPUT__0", "OUTPUT__1"}
    named = built("pytorch", python(source), outputs=(X, Field("more", "FP32", (-1,))))
    assert set(ask(named, 1.0)) == {"x", "more"}


TIED = """
class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Linear(2, 2, bias=False)
        self.decode = torch.nn.Linear(2, 2, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("offset", torch.tensor([1.0, 1.0]), persistent=False)
        self.table = torch.tensor([10.0, 10.0])
    def forward(self, x):
        assert self.encode.weight.data_ptr() == self.decode.weight.data_ptr()
        return self.decode(self.encode(x)) + self.offset + self.table
def build(config): return Tied()
"""


def matrix(values: list[float]) -> bytes:
    head = json.dumps({"encode.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + struct.pack("<4f", *values)


def test_tied_weights_stay_tied_and_what_is_in_no_file_is_computed() -> None:
    files = {"model.py": ("import torch\n" + TIED).encode(), "model.safetensors": matrix([2, 0, 0, 3])}
    assert ask(built("pytorch", files), 1, 1) == {"OUTPUT__0": [15.0, 20.0]}


def test_a_builder_that_looks_at_values_is_built_on_the_cpu() -> None:
    source = """
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.width = int(torch.tensor(3).item())
    def forward(self, x): return x * self.width
def build(config): return M()
"""
    assert ask(built("pytorch", python(source)), 2.0) == {"OUTPUT__0": [6.0]}


def test_buffers_are_copies_that_a_forward_may_write() -> None:
    source = """
class Count(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
    def forward(self, x):
        self.seen += 1
        return self.seen.clone()
def build(config): return Count()
"""
    files = python(source, {"seen": [5.0]})
    model = built("pytorch", files)
    assert [ask(model, 1.0)["OUTPUT__0"] for _ in range(2)] == [[6.0], [7.0]]
    assert ask(built("pytorch", files), 1.0) == {"OUTPUT__0": [6.0]}


def test_what_the_module_keeps_beside_its_parameters_sees_the_files_values_too() -> None:
    source = """
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(4))
        self.all = [self.scale]
        self.raw = self.scale.data
        self.register_buffer("last", self.scale[3:], persistent=False)
    def forward(self, x):
        return x * self.all[0], x * self.raw, self.last
def build(config): return M()
"""
    answers = ask(built("pytorch", python(source, {"scale": [1.0, 2.0, 3.0, 4.0]})), 1, 1, 1, 1)
    assert answers == {"OUTPUT__0": [1, 2, 3, 4], "OUTPUT__1": [1, 2, 3, 4], "OUTPUT__2": [4]}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: {"model.py": b"x = 1"}, "no model.safetensors"),
        (lambda: {"model.safetensors": safetensors({})}, "no model.py"),
        (lambda: python("x = 1"), "defines no function build"),
        (lambda: python("def build(config): return 7"), "returned a int"),
        (lambda: python("class M(torch.nn.Module): pass\ndef build(config): return M()", {"a": [1.0]}), "not in the module a"),
        (lambda: {**affine_pytorch(scale=1.0), "model.safetensors": safetensors({})}, "missing scale"),
        (lambda: {**affine_pytorch(scale=1.0), "model.safetensors": safetensors({"scale": [1.0]})}, "size mismatch for scale"),
        (lambda: {**affine_pytorch(scale=1.0), "model.py": b"\xff"}, "not UTF-8"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(make: Callable[[], dict[str, bytes]], told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        built("pytorch", make(), parameters={"width": 4, "sleep_s": 0})


def test_outputs_that_are_no_tensors_are_the_models_failure() -> None:
    source = "class M(torch.nn.Module):\n    def forward(self, x): return 7\ndef build(config): return M()\n"
    with pytest.raises(ModelFailed, match="is a int"):
        ask(built("pytorch", python(source)), 1.0)


def test_bfloat16_and_transposed_outputs_come_back_whole() -> None:
    source = """
class M(torch.nn.Module):
    def forward(self, x): return x.reshape(2, 2).T.to(torch.bfloat16), x[:0], x.sum()
def build(config): return M()
"""
    data = struct.pack("<4f", 1, 2, 3, 4)
    outputs = built("pytorch", python(source)).run([(Tensor("x", "FP32", (4,), 16), memoryview(data))], ())
    assert [(tensor.datatype, tensor.shape) for tensor, _ in outputs] == [("BF16", (2, 2)), ("FP32", (0,)), ("FP32", ())]
    assert torch.frombuffer(bytearray(outputs[0][1]), dtype=torch.bfloat16).tolist() == [1.0, 3.0, 2.0, 4.0]


# ---- onnx


def session(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> dict[str, bytes]:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return {
        "model.onnx": helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    }


def test_an_onnx_file_tells_its_schema_and_computes() -> None:
    model = built("onnx", affine_onnx(scale=3.0))
    assert (model.inputs, model.outputs) == ((X,), (Field("y", "FP32", (-1, 4)),))
    assert ask(model, 1, 2, 3, 4) == {"y": [4.0, 7.0, 10.0, 13.0]}


@pytest.mark.parametrize(
    ("onnx_type", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
    ],
)
def test_onnx_datatypes_are_named_as_v2_names_them(onnx_type: int, datatype: str) -> None:
    info = [helper.make_tensor_value_info(name, onnx_type, [2]) for name in "xy"]
    model = built("onnx", session([helper.make_node("Identity", ["x"], ["y"])], info[:1], info[1:]))
    data = bytes(np.array([0, 1], dtype=helper.tensor_dtype_to_np_dtype(onnx_type)).data.cast("B"))
    ((tensor, answer),) = model.run([(Tensor("x", datatype, (2,), len(data)), memoryview(data))], ())
    assert (tensor.datatype, bytes(answer)) == (datatype, data)


def test_onnx_strings_travel_as_bytes_elements() -> None:
    info = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in "xy"]
    model = built("onnx", session([helper.make_node("Identity", ["x"], ["y"])], info[:1], info[1:]))
    data = b"".join(struct.pack("<I", len(part)) + part for part in ("grün".encode(), b""))
    ((tensor, answer),) = model.run([(Tensor("x", "BYTES", (2,), len(data)), memoryview(data))], ())
    assert (tensor.datatype, bytes(answer)) == ("BYTES", data)


def test_onnx_weights_in_an_external_file_are_taken_from_the_arena() -> None:
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    model = built("onnx", {"model.onnx": data, "model.onnx.data": struct.pack("<4f", 1, 2, 3, 4)})
    assert ask(model, 1, 1, 1, 1) == {"y": [1.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize(
    ("attempt", "error", "told"),
    [
        (lambda: built("onnx", {"model.onnx": b"no protobuf"}), LoadFailed, "cannot be loaded"),
        (lambda: built("onnx", {}), LoadFailed, "no model.onnx"),
        (lambda: built("onnx", affine_onnx(scale=1.0), inputs=(Field("z", "FP32", (4,)),)), LoadFailed, "declares input 'z'"),
        (lambda: built("tflite", {}), LoadFailed, "tflite"),
        (lambda: ask(built("onnx", affine_onnx(scale=1.0)), 1, 2, 3, 4, wanted=("z",)), SchemaMismatch, "no output 'z'"),
    ],
)
def test_onnx_mistakes_are_told(attempt: Callable[[], object], error: type[HearthError], told: str) -> None:
    with pytest.raises(error, match=told):
        attempt()
