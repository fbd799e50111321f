"""hearth.json: read strictly at the edge, every field optional, faults told with the object's name and the JSON path.

What stays out: what a manifest means beside the files that lie there (repository.py). Fields that are not known are
skipped, so that a manifest written for a later version can still be served.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from predictor.errors import InvalidModel
from predictor.model import DATATYPES, TensorSpec

NAME: Final = "hearth.json"
MAX_BYTES: Final = 1 << 20

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_BatchSize = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Length = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
_Shape = Annotated[tuple[_Length, ...], msgspec.Meta(max_length=32)]


class ManifestFile(msgspec.Struct, frozen=True):
    """One file of the model. ``size`` in bytes; None, and "" for ``sha256``: not told."""

    path: _Name
    size: _Size | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{64})?$")] = ""


class _Tensor(msgspec.Struct, frozen=True):
    name: _Name
    datatype: str
    shape: _Shape


class _Batching(msgspec.Struct, frozen=True):
    max_batch_size: _BatchSize = 0


class _Document(msgspec.Struct, frozen=True):
    format: str = ""
    files: tuple[ManifestFile, ...] = ()
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()
    parameters: msgspec.Raw = msgspec.Raw(b"")
    max_batch_size: _BatchSize | None = None
    batching: _Batching | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What a hearth.json says; defaults where it says nothing.

    format           as written; "": to be recognised from the files
    files            what to fetch, in this order; empty: what the format needs
    parameters_json  the ``parameters`` object as it stands there; "" where there is none
    """

    format: str = ""
    files: tuple[ManifestFile, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters_json: str = ""
    max_batch_size: int = 0


_decoder: Final = msgspec.json.Decoder(_Document)


def parse(document: bytes, where: str) -> Manifest:
    """Read a hearth.json. InvalidModel tells ``where`` it is and the path of the fault inside.

    where  the object, for example ``s3://bucket/models/m/1/hearth.json``
    """
    if len(document) > MAX_BYTES:
        raise InvalidModel(f"{where} has {len(document)} bytes, {MAX_BYTES} are allowed")
    try:
        read = _decoder.decode(document.removeprefix(b"\xef\xbb\xbf"))  # some editors write a byte order mark
        parameters = bytes(read.parameters).strip().decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModel(f"{where}: {error}") from None
    if parameters == "null":
        parameters = ""
    if parameters and not parameters.startswith("{"):
        raise InvalidModel(f"{where}: Expected `object` - at `$.parameters`")
    _check_unique(where, "files", [file.path for file in read.files])
    _check_tensors(where, "inputs", read.inputs)
    _check_tensors(where, "outputs", read.outputs)
    return Manifest(
        read.format,
        read.files,
        tuple(TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in read.inputs),
        tuple(TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in read.outputs),
        parameters,
        _batch_size(where, read),
    )


def _check_tensors(where: str, field: str, tensors: tuple[_Tensor, ...]) -> None:
    for place, tensor in enumerate(tensors):
        if tensor.datatype not in DATATYPES:
            raise InvalidModel(
                f"{where}: {tensor.datatype[:32]!r} is no V2 datatype, those are {', '.join(sorted(DATATYPES))} "
                f"- at `$.{field}[{place}].datatype`"
            )
    _check_unique(where, field, [tensor.name for tensor in tensors])


def _check_unique(where: str, field: str, names: list[str]) -> None:
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            raise InvalidModel(f"{where}: {name!r} stands there twice - at `$.{field}[{place}]`")
        seen.add(name)


def _batch_size(where: str, read: _Document) -> int:
    nested = read.batching.max_batch_size if read.batching is not None else None
    if None not in {nested, read.max_batch_size} and nested != read.max_batch_size:
        raise InvalidModel(
            f"{where}: max_batch_size is {read.max_batch_size}, but {nested} - at `$.batching.max_batch_size`: say it once"
        )
    return read.max_batch_size or nested or 0
