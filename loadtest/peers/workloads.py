"""What is asked: models, request bodies in V2 JSON and V2 binary, and whether an answer is the right one.

Pure but for torch, which makes the weights and says what is right. No server, no socket, no clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from loadtest.peers.model import build

Encoding = Literal["json", "binary"]
Floats = NDArray[np.float32]

INPUT: Final = "x"
OUTPUT: Final = "y"
SEED: Final = 20_260
SLOW_S: Final = 6
DIGITS: Final = 5
"""Of inputs, so that 784 of them make the 6 KB of JSON that a client sends who rounds a little."""
RTOL: Final = 1e-4
ATOL: Final = 1e-5
"""Sums of 512 products of order 0.1, added in another order, differ by about 1e-7; zeros need an absolute bound."""


class WrongAnswer(Exception):
    """A server answered something else than the model run alone. Nothing of it may be timed."""


@dataclass(frozen=True)
class Workload:
    """One model, and how it is asked.

    name          the model's name on every server
    config        what ``build`` gets
    shape         of one request's input: one item, the first number is the batch
    output        of one answer
    encodings     which bodies are sent
    connections   how many are open at once, one run each
    told          for the table
    slow          one request takes milliseconds: it is timed for SLOW_S, whatever the others are
    """

    name: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    output: tuple[int, ...]
    encodings: tuple[Encoding, ...]
    connections: tuple[int, ...]
    told: str
    slow: bool = False


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload(
            "mlp",
            {"kind": "mlp", "widths": [784, 512, 512, 10]},
            (1, 784),
            (1, 10),
            ("json", "binary"),
            (1, 16, 64),
            "MLP 784-512-512-10, fp32, one row a request",
        ),
        Workload(
            "mlp8",
            {"kind": "mlp", "widths": [784, 512, 512, 10]},
            (8, 784),
            (8, 10),
            ("json", "binary"),
            (16,),
            "the same MLP, eight rows a request",
        ),
        Workload(
            "resnet18",
            {"kind": "resnet18", "classes": 1000},
            (1, 3, 224, 224),
            (1, 1000),
            ("binary",),
            (1, 16),
            "ResNet-18 with random weights, fp32, one image of 224 by 224 a request",
            slow=True,
        ),
        Workload(
            "echo10mb",
            {"kind": "echo"},
            (1, 2_500_000),
            (1, 2_500_000),
            ("binary",),
            (1, 4),
            "10 MB of fp32 there and back",
            slow=True,
        ),
    )
}


@dataclass(frozen=True)
class Request:
    """A POST's body and headers."""

    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Case:
    """A workload made real: weights, one input and what it gives."""

    workload: Workload
    weights: bytes
    input: Floats
    expected: Floats


def made(workload: Workload) -> Case:
    """Draw weights and an input, the same in every run, and compute the answer with torch alone."""
    torch.manual_seed(SEED)
    module = build(workload.config).eval()
    drawn = np.random.default_rng(SEED).random(workload.shape, dtype=np.float32).round(DIGITS)
    with torch.inference_mode():
        expected: Floats = module(torch.from_numpy(drawn)).numpy()
    return Case(workload, save(module.state_dict()), drawn, expected)


def request(values: Floats, encoding: Encoding) -> Request:
    """The V2 inference request for one input: JSON, or JSON followed by the tensor's little-endian bytes."""
    tensor: dict[str, Any] = {"name": INPUT, "shape": list(values.shape), "datatype": "FP32"}
    if encoding == "json":
        tensor["data"] = [round(float(value), DIGITS) for value in values.ravel()]
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        return Request(body, {"Content-Type": "application/json"})
    raw = values.astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    wanted = [{"name": OUTPUT, "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(head + raw, headers)


def answer(body: bytes, header_bytes: int | None) -> Floats:
    """The output tensor of a V2 answer.

    header_bytes  the answer's Inference-Header-Content-Length; None: it had none and is JSON
    """
    head = json.loads(body if header_bytes is None else body[:header_bytes])
    (output,) = head["outputs"]
    if header_bytes is None:
        values = np.asarray(output["data"], dtype=np.float32)
    else:
        values = np.frombuffer(body, dtype="<f4", offset=header_bytes)
    if prod(output["shape"]) != values.size:
        raise WrongAnswer(f"shape {output['shape']} with {values.size} values")
    return values.reshape(output["shape"])


def compare(found: Floats, expected: Floats) -> None:
    """WrongAnswer: shapes differ, or a value differs by more than RTOL (or ATOL, near zero)."""
    if found.shape != expected.shape:
        raise WrongAnswer(f"shape {found.shape} instead of {expected.shape}")
    if not np.allclose(found, expected, rtol=RTOL, atol=ATOL):
        worst = float(np.abs(found - expected).max())
        raise WrongAnswer(f"values differ by up to {worst:.2g} (rtol {RTOL:g}, atol {ATOL:g})")
