"""Reads the safetensors format in place: a header of JSON, then the tensors' bytes.

Our own reader, because the library's either maps a file by path or copies; here the bytes lie in shared memory already.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final, NamedTuple

import msgspec
import torch

from predictor.errors import LoadFailed

DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

LENGTH: Final = struct.Struct("<Q")
MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""


class Entry(msgspec.Struct, frozen=True):
    """One tensor of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Span(NamedTuple):
    """One tensor's bytes, ``begin`` to ``end`` of its file, checked against its shape and the file's length."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def spans(data: torch.Tensor, name: str = "model.safetensors") -> dict[str, Span]:
    """Where the tensors of ``data`` (one-dimensional uint8, on the host) lie, by name.

    Raises LoadFailed that says what is wrong where in ``name``.
    """
    whole = data.numpy().data
    if len(whole) < LENGTH.size:
        raise LoadFailed(f"{name} has {len(whole)} bytes: not even a header length")
    (header_bytes,) = LENGTH.unpack_from(whole)
    begin = LENGTH.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or begin > len(whole):
        raise LoadFailed(f"{name} says its header has {header_bytes} bytes, but the file has {len(whole)}")
    try:
        header = msgspec.json.decode(whole[LENGTH.size : begin], type=dict[str, Any])
        header.pop("__metadata__", None)
        entries = msgspec.convert(header, dict[str, Entry])
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"the header of {name} cannot be read: {error}") from None
    return {key: _span(entry, begin, len(whole), f"tensor {key!r} of {name}") for key, entry in entries.items()}


def read(data: torch.Tensor, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Views of ``data`` by tensor name; a tensor that is not aligned for its dtype is copied. Raises as ``spans`` does."""
    return {key: _view(data, span) for key, span in spans(data, name).items()}


def _span(entry: Entry, body: int, file_bytes: int, name: str) -> Span:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise LoadFailed(f"{name} has dtype {entry.dtype}, which is not one of {', '.join(DTYPES)}")
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= file_bytes - body or any(length < 0 for length in entry.shape):
        raise LoadFailed(
            f"{name} claims bytes {begin} to {end} with shape {entry.shape}; the file has {file_bytes - body} after its header"
        )
    if end - begin != math.prod(entry.shape) * dtype.itemsize:
        raise LoadFailed(f"{name} has shape {entry.shape} of {entry.dtype}, but {end - begin} bytes")
    return Span(dtype, tuple(entry.shape), body + begin, body + end)


def _view(data: torch.Tensor, span: Span) -> torch.Tensor:
    if span.begin == span.end:
        return torch.empty(span.shape, dtype=span.dtype)
    flat = data[span.begin : span.end]
    if flat.data_ptr() % span.dtype.itemsize:
        flat = flat.clone()
    if flat.storage_offset() % span.dtype.itemsize:  # aligned in memory, though not in its storage's own counting
        flat = torch.frombuffer(flat.numpy().data, dtype=torch.uint8)
    return flat.view(span.dtype).view(span.shape)
