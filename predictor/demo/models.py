"""The demo's data and models: handwritten digits, two dozen trained classifiers, and their files as they go into S3.

What stays out: uploading (s3.py) and asking (traffic.py). Only this file and model.py import torch here.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.adam import adam

from predictor import checksums
from predictor.demo import model as builder

DESIGNS: Final[dict[str, dict[str, Any]]] = {
    "cosines-1k": {"kind": "cosines", "width": 1024},
    "cosines-4k": {"kind": "cosines", "width": 4096},
    "mlp-256x2": {"kind": "mlp", "widths": [256, 256]},
    "mlp-512x2": {"kind": "mlp", "widths": [512, 512]},
    "mlp-512x3": {"kind": "mlp", "widths": [512, 512, 512]},
    "mlp-512x4": {"kind": "mlp", "widths": [512, 512, 512, 512]},
    "mlp-768x2": {"kind": "mlp", "widths": [768, 768]},
    "mlp-1024x2": {"kind": "mlp", "widths": [1024, 1024]},
    "mlp-1400x2": {"kind": "mlp", "widths": [1400, 1400]},
    "conv-16": {"kind": "conv", "channels": [16, 32], "hidden": 256},
    "conv-32": {"kind": "conv", "channels": [32, 64], "hidden": 512},
    "conv-48": {"kind": "conv", "channels": [48, 96], "hidden": 768},
}
"""0.3 to 8 MB each. Every design is trained twice, from two seeds: once for PyTorch, once for ONNX."""

FORMATS: Final = ("pytorch", "onnx")
MODEL_COUNT: Final = len(DESIGNS) * len(FORMATS)
TEST_IMAGES: Final = 360
EPOCHS: Final = 6
BATCH: Final = 96
LEARNING_RATE: Final = 3e-3

# Opset 17 and IR 8 are of 2022: any onnxruntime that Hearth accepts reads them, also one older than this onnx.
ONNX_OPSET: Final = 17
ONNX_IR: Final = 8

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's scans, 1,797 images of 64 pixels from 0 to 16, cut once into training and test images."""

    train_images: Floats
    train_labels: Labels
    test_images: Floats
    test_labels: Labels


@dataclass(frozen=True)
class DemoModel:
    """One trained model.

    files     name → contents, in the order of upload; hearth.json, which makes the version eligible, is the last
    expected  what the model, run alone, answers to each test image
    accuracy  share of test images it names rightly
    """

    name: str
    format: str
    files: dict[str, bytes]
    expected: tuple[int, ...]
    accuracy: float

    @property
    def size_bytes(self) -> int:
        """What it takes in S3."""
        return sum(len(content) for content in self.files.values())


def load(seed: int) -> Digits:
    """The images in an order that the seed decides; the last ones are for testing."""
    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    images, labels = bunch.data.astype(np.float32)[order], bunch.target.astype(np.int64)[order]
    cut = len(order) - TEST_IMAGES
    return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])


def trained(digits: Digits, *, seed: int) -> Generator[DemoModel, None, None]:
    """Train all models; each is ready to upload as it comes.

    One model per core rather than one after another on all cores: the layers are small, and where the cores are
    shared with others, threads that wait for each other at every layer took 20 times as long as one alone.
    """
    torch.set_num_threads(1)
    cores = min(len(os.sched_getaffinity(0)), MODEL_COUNT)
    with ThreadPoolExecutor(cores, thread_name_prefix="training") as training:
        waiting = []
        for format_index, format_name in enumerate(FORMATS):
            for design_index, (design, config) in enumerate(DESIGNS.items()):
                own_seed = 1000 * seed + 100 * format_index + design_index
                waiting.append(training.submit(_trained, f"{design}-{format_name}", config, digits, own_seed))
        try:
            for model in waiting:
                yield model.result()
        finally:
            training.shutdown(cancel_futures=True)


_building: Final = threading.Lock()
"""torch draws first weights from one generator that all threads share: seeding and drawing must be one step."""


def train(config: dict[str, Any], digits: Digits, seed: int) -> nn.Sequential:
    """Train one classifier with Adam. The same seed gives the same model on the same machine."""
    with _building:
        torch.manual_seed(seed)
        module = builder.build(config)
    assert isinstance(module, nn.Sequential), f"built a {type(module)}"
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    optimizer = _Adam(module)
    shuffling = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(labels), generator=shuffling), BATCH):
            optimizer.step(nn.functional.cross_entropy(module(images[batch]), labels[batch]))
    return module.eval()


class _Adam:
    """Adam by torch's functional form: making a torch.optim.Adam imports the machinery of torch.compile, 4.5 s of it."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters: list[torch.Tensor] = list(module.parameters())
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.tensor(0.0) for _ in self._parameters]

    def step(self, loss: torch.Tensor) -> None:
        """Move the parameters against the gradient of ``loss``."""
        gradients = list(torch.autograd.grad(loss, self._parameters))
        with torch.no_grad():
            adam(
                self._parameters,
                gradients,
                self._means,
                self._squares,
                [],
                self._steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=LEARNING_RATE,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


def _trained(name: str, config: dict[str, Any], digits: Digits, seed: int) -> DemoModel:
    module = train(config, digits, seed)
    if name.endswith("onnx"):
        format_name = "onnx"
        files = {"model.onnx": onnx_graph(module)}
        logits = onnx_logits(files["model.onnx"], digits.test_images)
    else:
        format_name = "pytorch"
        assert builder.__file__ is not None, "the demo's model.py is a file"
        files = {"model.safetensors": safetensors(module), "model.py": Path(builder.__file__).read_bytes()}
        with torch.inference_mode():
            logits = module(torch.from_numpy(digits.test_images)).numpy()
    files["hearth.json"] = _manifest(format_name, config, files)
    answers = logits.argmax(axis=1)
    return DemoModel(
        name=name,
        format=format_name,
        files=files,
        expected=tuple(int(answer) for answer in answers),
        accuracy=float((answers == digits.test_labels).mean()),
    )


def _manifest(format_name: str, config: dict[str, Any], files: dict[str, bytes]) -> bytes:
    manifest = {
        "format": format_name,
        "files": [checksums.entry(path, content) for path, content in files.items()],
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, builder.SIDE**2]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, builder.CLASSES]}],
        "parameters": config,
    }
    return json.dumps(manifest, indent=2).encode()


def safetensors(module: nn.Module) -> bytes:
    """The module's state in the safetensors format: length of the header, header, the tensors' bytes.

    Source: the format's description in huggingface/safetensors; a dozen lines, so the demo needs no package for it.
    """
    header: dict[str, object] = {}
    content = bytearray()
    for name, tensor in module.state_dict().items():
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # so that the tensors begin at a multiple of eight, as readers expect
    return struct.pack("<Q", len(head)) + head + bytes(content)


def onnx_graph(module: nn.Sequential) -> bytes:
    """The trained module as an ONNX file, node by node: torch's exporter would be two more packages and seconds a model."""
    nodes, weights = [], []
    flow = "pixels"
    layers = list(module.named_children())
    for place, (name, layer) in enumerate(layers):
        out = "logits" if place == len(layers) - 1 else name
        operator, inputs, attributes = _operator(name, layer)
        nodes.append(helper.make_node(operator, [flow, *inputs], [out], name=name, **attributes))
        weights += [numpy_helper.from_array(value, label) for label, value in inputs.items()]
        flow = out
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", builder.SIDE**2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", builder.CLASSES])],
        weights,
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=ONNX_IR)
    onnx.checker.check_model(file)
    return bytes(file.SerializeToString())


def _operator(name: str, layer: nn.Module) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    """ONNX's operator for one layer, its constant inputs in order, and its attributes."""
    state = {f"{name}.{key}": value.detach().numpy() for key, value in layer.state_dict().items()}
    if type(layer) in _PLAIN:
        return _PLAIN[type(layer)], {}, {}
    match layer:
        case nn.Linear():
            return "Gemm", state, {"transB": 1}
        case nn.Conv2d():
            return "Conv", state, {"pads": [1, 1, 1, 1]}
        case nn.MaxPool2d():
            return "MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}
        case nn.Unflatten():
            return "Reshape", {f"{name}.shape": np.array([-1, *layer.unflattened_size], dtype=np.int64)}, {}
        case builder.Scale():
            return "Div", {f"{name}.range": np.array([builder.RANGE], dtype=np.float32)}, {}
    raise AssertionError(f"no ONNX operator for {layer}")


_PLAIN: Final[dict[type[nn.Module], str]] = {builder.Cosine: "Cos", nn.ReLU: "Relu", nn.Flatten: "Flatten"}
"""Layers that are one ONNX operator without constants or attributes."""


def onnx_logits(file: bytes, images: Floats) -> Floats:
    """What onnxruntime, by itself, answers."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits: Floats = session.run(["logits"], {"pixels": images})[0]
    return logits
