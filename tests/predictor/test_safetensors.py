"""Our safetensors reader against the library's writer, and against broken files."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.safetensors import DTYPES, read
from predictor.errors import LoadFailed
from tests.fakes.zoo import safetensors


def file(header: object, body: bytes = b"") -> torch.Tensor:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return torch.frombuffer(bytearray(struct.pack("<Q", len(head)) + head + body), dtype=torch.uint8)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(name: str) -> None:
    dtype = DTYPES[name]
    data = bytes(range(1, 1 + 6 * dtype.itemsize)) if name != "BOOL" else b"\x00\x01\x01\x00\x01\x00"
    tensors = read(file({"t": {"dtype": name, "shape": [2, 3], "data_offsets": [0, len(data)]}}, data))
    assert (tensors["t"].dtype, tensors["t"].shape) == (dtype, (2, 3))
    assert bytes(tensors["t"].view(torch.uint8).reshape(-1).tolist()) == data


def test_tensors_are_views_when_aligned_and_copies_when_not() -> None:
    data = struct.pack("<2f", 1.0, 2.0)
    header = {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for padding in range(4):
        padded = json.dumps(header).encode() + b" " * padding
        whole = file(padded, data)
        assert read(whole)["t"].tolist() == [1.0, 2.0]


def test_zero_length_and_zero_dimensional_tensors_are_read() -> None:
    header = {
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "__metadata__": {"format": "pt"},
    }
    tensors = read(file(header, struct.pack("<q", -7)))
    assert tensors["empty"].shape == (0, 3)
    assert tensors["scalar"].item() == -7
    assert set(tensors) == {"empty", "scalar"}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (torch.zeros(3, dtype=torch.uint8), "not even a header length"),
        (torch.full((16,), 255, dtype=torch.uint8), "says its header has"),
        (file(b"{"), "cannot be read"),
        (file({"t": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "F31"),
        (file({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"), "claims bytes 0 to 8"),
        (file({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "but 4 bytes"),
        (file({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"1234"), "claims bytes 4 to 0"),
        (file({"t": {"dtype": "F32"}}), "cannot be read"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong_where(broken: torch.Tensor, told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        read(broken)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_crashes(garbage: bytes) -> None:
    with contextlib.suppress(LoadFailed):
        read(torch.frombuffer(bytearray(garbage), dtype=torch.uint8) if garbage else torch.empty(0, dtype=torch.uint8))


@given(st.integers(0, 2**64 - 1), st.binary(max_size=64))
def test_a_valid_file_with_one_broken_length_never_crashes(length: int, tail: bytes) -> None:
    whole = bytearray(safetensors({"scale": [1.0] * 4}) + tail)
    whole[:8] = struct.pack("<Q", length)
    with contextlib.suppress(LoadFailed):
        read(torch.frombuffer(whole, dtype=torch.uint8))
