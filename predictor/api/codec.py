"""V2 inference bodies ⇄ tensors: JSON, the binary tensor data extension, and both in one body.

A body is read as what it is, whatever its Content-Type says: JSON up to the length that Inference-Header-Content-Length
gives (without that header: all of it), then the binary inputs one after another. Bytes are not copied: tensors are views
of the body.

What stays out: whether the model takes such inputs (schema.py), single elements (elements.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from predictor.api.elements import check_strings, flat, pack, unpack
from predictor.api.message import Buffer
from predictor.errors import MalformedRequest, SchemaMismatch
from predictor.model import DATATYPES, ELEMENT_BYTES, ModelRef
from predictor.wire import Tensor

MAX_RANK: Final = 32
MAX_STRINGS: Final = 1 << 20
"""BYTES elements per input: their lengths are walked one by one, 0.1 s of the event loop for so many."""
MAX_JSON_ELEMENTS: Final = 1 << 23
"""Of all outputs of one answer: so many FP32 are 0.9 s of the event loop, 160 MB of text, and 0.5 GB of the front meanwhile.
What a model answers is its own to choose, and twenty times as much would end the front."""
_MAX_LENGTH_DIGITS: Final = 12

_Dimension = Annotated[int, Meta(ge=0, lt=1 << 31)]


class _InputParameters(Struct, gc=False):
    binary_data_size: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    shared_memory_region: Any = UNSET


class _Input(Struct, gc=False):
    name: str
    shape: Annotated[tuple[_Dimension, ...], Meta(max_length=MAX_RANK)]
    datatype: str
    data: list[Any] | UnsetType = UNSET
    parameters: _InputParameters | None = None


class _OutputParameters(Struct, gc=False):
    binary_data: bool | UnsetType = UNSET
    shared_memory_region: Any = UNSET
    classification: Any = UNSET


class _Output(Struct, gc=False):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(Struct, gc=False):
    binary_data_output: bool = False


class _Body(Struct, gc=False):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


_decoder: Final = msgspec.json.Decoder(_Body)


class InferenceRequest(NamedTuple):
    """What a client wants computed.

    id       echoed; None where the client gave none
    inputs   as the worker gets them, with their bytes in ``body``, one piece each
    elements of all inputs, as profiles count them: for BYTES, bytes
    outputs  names of the wanted ones; empty: all
    binary   whether an output is wanted as binary data, where the client said so by name
    binary_otherwise  the same for all other outputs
    """

    id: str | None
    inputs: tuple[Tensor, ...]
    body: tuple[Buffer, ...]
    elements: int
    outputs: tuple[str, ...]
    binary: dict[str, bool]
    binary_otherwise: bool


class InferenceBody(NamedTuple):
    """An answer's body. ``json_bytes``: length of the JSON before the binary outputs; None where there are none."""

    pieces: tuple[Buffer, ...]
    json_bytes: int | None


def decode(body: Buffer, json_length: bytes | None = None) -> InferenceRequest:
    """Read a request's body. ``json_length``: the header Inference-Header-Content-Length as sent, None without it.

    Raises MalformedRequest, telling which input, what was expected and what came.
    """
    text, rest = (body, None) if json_length is None else _split(body, json_length)
    try:
        request = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"the request's JSON is not a V2 inference request: {error}") from None
    except RecursionError:
        raise MalformedRequest("the request's JSON is not a V2 inference request: nested too deeply") from None
    tensors, parts, at, elements = [], [], 0, 0
    for item in request.inputs:
        count = math.prod(item.shape)
        size_bytes = _binary_size(item)
        if size_bytes is None:
            part: Buffer = _packed(item, count)
        else:
            part, at = _binary_part(item, count, rest, slice(at, at + size_bytes)), at + size_bytes
        elements += len(part) if item.datatype == "BYTES" else count
        tensors.append(Tensor(item.name, item.datatype, item.shape, len(part)))
        parts.append(part)
    if rest is not None and at != len(rest):
        raise MalformedRequest(
            f"the inputs' binary_data_size add up to {at} bytes, the body has {len(rest)} bytes after its JSON of {len(text)}"
        )
    if len(tensors) > 1 and len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedRequest(f"the request has inputs of the same name: {_names(tensors)}")
    outputs, binary = _wanted(request.outputs) if request.outputs else ((), {})
    binary_otherwise = request.parameters is not None and request.parameters.binary_data_output
    return InferenceRequest(request.id, tuple(tensors), tuple(parts), elements, outputs, binary, binary_otherwise)


def encode(ref: ModelRef, request: InferenceRequest, tensors: Sequence[Tensor], parts: Sequence[Buffer]) -> InferenceBody:
    """Write an answer's body: ``tensors`` are the outputs, ``parts`` their bytes, one each.

    Raises SchemaMismatch when an output asked for in JSON has no form there, or is too large for that.
    """
    json_elements = 0
    outputs: list[dict[str, object]] = []
    blobs: list[Buffer] = []
    for tensor, part in zip(tensors, parts, strict=True):
        output: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if request.binary.get(tensor.name, request.binary_otherwise):
            output["parameters"] = {"binary_data_size": tensor.size_bytes}
            blobs.append(part)
        else:
            count = math.prod(tensor.shape)
            json_elements += count
            if json_elements > MAX_JSON_ELEMENTS:
                raise SchemaMismatch(
                    f"model {ref} answers with {json_elements} elements or more, and JSON has {MAX_JSON_ELEMENTS} at most: "
                    'ask for binary data ("parameters": {"binary_data_output": true})'
                )
            output["data"] = unpack(tensor.name, tensor.datatype, count, part)
        outputs.append(output)
    answer: dict[str, object] = {"model_name": ref.name, "model_version": str(ref.version)}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = outputs
    text = orjson.dumps(answer)
    return InferenceBody((text, *blobs), len(text) if blobs else None)


def _split(body: Buffer, json_length: bytes) -> tuple[Buffer, memoryview]:
    if not json_length.isdigit() or len(json_length) > _MAX_LENGTH_DIGITS:
        shown = json_length[:MAX_RANK].decode("latin-1")
        raise MalformedRequest(f"Inference-Header-Content-Length is {shown!r}, it must be the JSON's length in bytes")
    length, view = int(json_length), memoryview(body)
    if not 0 < length <= len(view):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {length}, the body has {len(view)} bytes"
            + ("" if length else "; binary data without a JSON part is not understood")
        )
    # A copy of the JSON: a body in shared memory can be written by model code, and must not change under the parser.
    return bytes(view[:length]), view[length:]


def _binary_size(item: _Input) -> int | None:
    """Bytes of the input's binary data; None: it is in the JSON."""
    if item.parameters is None:
        return None
    if item.parameters.shared_memory_region is not UNSET:
        raise MalformedRequest(f"input {item.name!r} is in shared memory, which this server does not map: send data")
    size_bytes = item.parameters.binary_data_size
    if isinstance(size_bytes, UnsetType):
        return None
    if item.data is not UNSET:
        raise MalformedRequest(f"input {item.name!r} has both data and binary_data_size: send one of them")
    return size_bytes


def _packed(item: _Input, count: int) -> bytes:
    if item.datatype not in DATATYPES:
        raise _unknown_datatype(item)
    if item.data is UNSET:
        raise MalformedRequest(f"input {item.name!r} has neither data nor the parameter binary_data_size")
    values = flat(item.name, item.shape, item.data)
    if len(values) != count:
        raise MalformedRequest(f"input {item.name!r}: shape {list(item.shape)} holds {count} elements, data has {len(values)}")
    if item.datatype == "BYTES":
        _check_string_count(item.name, count)
    return pack(item.name, item.datatype, values)


def _binary_part(item: _Input, count: int, rest: memoryview | None, where: slice) -> memoryview:
    size_bytes = where.stop - where.start
    if rest is None:
        raise MalformedRequest(
            f"input {item.name!r} has binary_data_size {size_bytes}, "
            "but the request has no header Inference-Header-Content-Length"
        )
    if item.datatype not in DATATYPES:
        raise _unknown_datatype(item)
    if where.stop > len(rest):
        raise MalformedRequest(
            f"input {item.name!r}: binary_data_size is {size_bytes}, only {len(rest) - where.start} bytes are left for it"
        )
    part = rest[where]
    if item.datatype == "BYTES":
        _check_string_count(item.name, count)
        check_strings(item.name, part, count)
    elif size_bytes != (expected := count * ELEMENT_BYTES[item.datatype]):
        raise MalformedRequest(
            f"input {item.name!r}: {item.datatype} of shape {list(item.shape)} takes {expected} bytes, "
            f"binary_data_size is {size_bytes}"
        )
    return part


def _check_string_count(name: str, count: int) -> None:
    if count > MAX_STRINGS:
        raise MalformedRequest(f"input {name!r} has {count} BYTES elements, this server takes {MAX_STRINGS}")


def _wanted(outputs: Sequence[_Output]) -> tuple[tuple[str, ...], dict[str, bool]]:
    names: list[str] = []
    binary: dict[str, bool] = {}
    for output in outputs:
        if output.name in names:
            raise MalformedRequest(f"the request asks twice for output {output.name!r}")
        names.append(output.name)
        parameters = output.parameters
        if parameters is None:
            continue
        if parameters.classification is not UNSET:
            raise MalformedRequest(f"output {output.name!r}: classification is not understood; take the scores")
        if parameters.shared_memory_region is not UNSET:
            raise MalformedRequest(f"output {output.name!r} is wanted in shared memory, which this server does not map")
        if not isinstance(parameters.binary_data, UnsetType):
            binary[output.name] = parameters.binary_data
    return tuple(names), binary


def _unknown_datatype(item: _Input) -> MalformedRequest:
    return MalformedRequest(
        f"input {item.name!r} has datatype {item.datatype[:MAX_RANK]!r}, V2 knows {', '.join(sorted(DATATYPES))}"
    )


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(tensor.name for tensor in tensors)
