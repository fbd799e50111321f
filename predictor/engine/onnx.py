"""Format onnx: ONNX Runtime sessions. Weights in external data files are taken from the arena, not from paths."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch

from predictor.engine.device import Files
from predictor.engine.formats import Input, Output
from predictor.engine.tensors import from_numpy, to_numpy
from predictor.errors import LoadFailed, SchemaMismatch
from predictor.wire import Field, Load

log = logging.getLogger(__name__)

GRAPH: Final = "model.onnx"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


IDENTITY: Final = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""An ONNX model, ``y = x``: opset 17, one FP32 element."""


@functools.cache
def warm_up() -> None:
    """Have ONNX Runtime set up what it keeps for all sessions (1.4 MB: its schemas), so that no model is charged for it."""
    ort.InferenceSession(IDENTITY, providers=["CPUExecutionProvider"]).run(None, {"x": np.zeros(1, np.float32)})


def build_session(load: Load, files: Files, *, threads: int) -> OnnxModel:
    """Make a session. Raises LoadFailed with what ONNX Runtime says of the file."""
    if GRAPH not in files:
        raise LoadFailed(f"the model has no {GRAPH}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads of one session must not burn the cores of the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An arena per session would keep its peak for ever; with many small sessions the allocator is not the bottleneck.
    options.enable_cpu_mem_arena = False
    external = {path: files[path] for path in files if path != GRAPH and not path.endswith((".py", ".json"))}
    if external:
        buffers = [bytes(data.numpy().data) for data in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), buffers, [len(data) for data in buffers])
    try:
        # ONNX Runtime takes bytes only; it copies the weights out of them, and this copy is gone when it is done.
        session = ort.InferenceSession(bytes(files[GRAPH].numpy().data), options, providers=_providers(files.device))
    except Exception as error:  # noqa: BLE001 (its exceptions share no base class)
        raise LoadFailed(f"{GRAPH} cannot be loaded: {error}") from None
    session._model_bytes = b""  # noqa: SLF001 (kept only to make the session anew with other providers: a copy of the file)
    # Whatever the device, the session has copied what the files hold.
    return OnnxModel(session, load, own_bytes=files.own_bytes + sum(len(files[path]) for path in (GRAPH, *external)))


def _providers(device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if CUDA_PROVIDER in ort.get_available_providers():
        return [(CUDA_PROVIDER, {"device_id": device.index or 0}), "CPUExecutionProvider"]
    _warn_without_cuda()
    return ["CPUExecutionProvider"]


@functools.cache
def _warn_without_cuda() -> None:
    """Once per worker."""
    log.warning("this ONNX Runtime has no %s: ONNX models compute on the host's processor", CUDA_PROVIDER)


class OnnxModel:
    """A session ready to run. The manifest's schema wins over the file's where it says something."""

    def __init__(self, session: Any, load: Load, *, own_bytes: int) -> None:
        self.own_bytes = own_bytes
        self._session = session
        own_inputs = _fields(session.get_inputs())
        self._outputs = tuple(field.name for field in _fields(session.get_outputs()))
        self.inputs = load.inputs or own_inputs
        self.outputs = load.outputs or _fields(session.get_outputs())
        known = {field.name for field in own_inputs}
        foreign = [field.name for field in self.inputs if field.name not in known]
        if foreign:
            raise LoadFailed(f"hearth.json declares input {foreign[0]!r}; {GRAPH} has {', '.join(sorted(known))}")

    def run(self, inputs: list[Input], wanted: tuple[str, ...]) -> list[Output]:
        """Inputs and outputs are matched by name."""
        unknown = [name for name in wanted if name not in self._outputs]
        if unknown:
            raise SchemaMismatch(f"the model has no output {unknown[0]!r}; it has {', '.join(self._outputs)}")
        names = wanted or self._outputs
        arrays = {tensor.name: to_numpy(tensor, data) for tensor, data in inputs}
        return [from_numpy(name, value) for name, value in zip(names, self._session.run(list(names), arrays), strict=True)]


def _fields(arguments: Any) -> tuple[Field, ...]:
    """Dimensions that are symbols accept any length. A datatype that V2 cannot say (BF16, sequences) is LoadFailed."""
    fields = []
    for argument in arguments:
        datatype = DATATYPES.get(argument.type)
        if datatype is None:
            raise LoadFailed(f"{GRAPH}: {argument.name!r} is a {argument.type}, which cannot be served over V2")
        shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in argument.shape or ())
        fields.append(Field(argument.name, datatype, shape))
    return tuple(fields)
