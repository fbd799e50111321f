"""V2 datatypes and what torch and numpy call them; bytes of a request into tensors, tensors into bytes of an answer."""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np
import torch

from predictor.engine.formats import Output
from predictor.errors import ModelFailed, SchemaMismatch
from predictor.wire import Tensor

TORCH: Final = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
FROM_TORCH: Final = {dtype: datatype for datatype, dtype in TORCH.items()}

NUMPY: Final = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
FROM_NUMPY: Final = {dtype: datatype for datatype, dtype in NUMPY.items()}

LENGTH: Final = struct.Struct("<I")


def to_torch(tensor: Tensor, data: memoryview) -> torch.Tensor:
    """The request's tensor as a view of its bytes. Raises SchemaMismatch for BYTES, which torch has no tensors of."""
    dtype = TORCH.get(tensor.datatype)
    if dtype is None:
        raise SchemaMismatch(f"input {tensor.name!r} has datatype {tensor.datatype}, which PyTorch models do not take")
    if not data:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(tensor.shape)


def from_torch(name: str, value: torch.Tensor) -> Output:
    """The model's tensor and its bytes. Raises ModelFailed for dtypes that V2 has no name for."""
    datatype = FROM_TORCH.get(value.dtype)
    if datatype is None:
        raise ModelFailed(f"output {name!r} has dtype {value.dtype}, for which V2 has no datatype: convert it in the model")
    if value.device.type != "cpu" or not value.is_contiguous():
        value = value.cpu().contiguous()
    if not value.numel():
        return Tensor(name, datatype, tuple(value.shape), 0), memoryview(b"")
    # numpy knows no bfloat16; for the rest, viewing the array as bytes is cheaper than viewing the tensor.
    array = value.detach().view(torch.int16).numpy() if value.dtype is torch.bfloat16 else value.detach().numpy()
    data = array.reshape(-1).data.cast("B")
    return Tensor(name, datatype, tuple(value.shape), len(data)), data


def to_numpy(tensor: Tensor, data: memoryview) -> np.ndarray[Any, Any]:
    """The request's tensor as an array; BYTES become an array of str. Raises SchemaMismatch for BF16."""
    if tensor.datatype == "BYTES":
        return np.array(_strings(tensor, data), dtype=object).reshape(tensor.shape)
    dtype = NUMPY.get(tensor.datatype)
    if dtype is None:
        raise SchemaMismatch(
            f"input {tensor.name!r} has datatype {tensor.datatype}, which ONNX Runtime does not take from here"
        )
    return np.frombuffer(data, dtype=dtype).reshape(tensor.shape)


def from_numpy(name: str, value: np.ndarray[Any, Any]) -> Output:
    """The session's array and its bytes."""
    if value.dtype.kind in "OSU":
        parts = [element if isinstance(element, bytes) else str(element).encode() for element in value.reshape(-1).tolist()]
        joined = b"".join(LENGTH.pack(len(part)) + part for part in parts)
        return Tensor(name, "BYTES", value.shape, len(joined)), memoryview(joined)
    datatype = FROM_NUMPY.get(value.dtype)
    if datatype is None:
        raise ModelFailed(f"output {name!r} has dtype {value.dtype}, for which V2 has no datatype: convert it in the model")
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else memoryview(b"")
    return Tensor(name, datatype, value.shape, data.nbytes), data


def _strings(tensor: Tensor, data: memoryview) -> list[str]:
    """V2's BYTES: each element a little-endian u32 length, then its bytes. The front has checked the lengths."""
    strings, begin = [], 0
    for _ in range(math.prod(tensor.shape)):
        (length,) = LENGTH.unpack_from(data, begin)
        begin += LENGTH.size + length
        try:
            strings.append(str(data[begin - length : begin], "utf-8"))
        except UnicodeDecodeError as error:
            raise SchemaMismatch(f"input {tensor.name!r} holds bytes that are not UTF-8: {error}") from None
    return strings
