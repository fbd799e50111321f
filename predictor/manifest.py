"""hearth.json: read strictly at the edge, every field optional, faults told with the object's name and the JSON path.

What stays out: what a manifest means beside the files that lie there (repository.py). Fields that are not known are
skipped, so that a manifest written for a later version can still be served.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from predictor import checksums
from predictor.errors import InvalidModel
from predictor.model import DATATYPES, PartChecksums, TensorSpec

NAME: Final = "hearth.json"
MAX_BYTES: Final = 1 << 20

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_BatchSize = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Length = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
_Delay = Annotated[float, msgspec.Meta(ge=0, le=10_000)]
_Weight = Annotated[float, msgspec.Meta(ge=0.001, le=1000)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Tenant = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,63}\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{16}\Z")]
_Shape = Annotated[tuple[_Length, ...], msgspec.Meta(max_length=32)]


class _Checksums(msgspec.Struct, frozen=True):
    algorithm: str
    part_bytes: int
    parts: tuple[_Digest, ...]


class ManifestFile(msgspec.Struct, frozen=True):
    """One file of the model, as written. ``size`` in bytes; None, and "" for ``sha256``: not told."""

    path: _Name
    size: _Size | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{64})?\Z")] = ""
    checksums: _Checksums | None = None

    @property
    def part_checksums(self) -> PartChecksums | None:
        """The checksums of its parts, in lower case; None: not told."""
        said = self.checksums
        if said is None:
            return None
        return PartChecksums(said.algorithm, said.part_bytes, tuple(part.lower() for part in said.parts))


class _Tensor(msgspec.Struct, frozen=True):
    name: _Name
    datatype: str
    shape: _Shape


class _Batching(msgspec.Struct, frozen=True):
    max_batch_size: _BatchSize | None = None
    max_delay_ms: _Delay = 0.0


class _Limits(msgspec.Struct, frozen=True):
    concurrency: _Count | None = None
    queue: _Count | None = None


class _Document(msgspec.Struct, frozen=True):
    format: str = ""
    files: tuple[ManifestFile, ...] = ()
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()
    parameters: msgspec.Raw = msgspec.Raw(b"")
    max_batch_size: _BatchSize | None = None
    tenant: _Tenant | None = None
    batching: _Batching | None = None
    weight: _Weight = 1.0
    priority: Literal["high", "normal", "batch"] = "normal"
    limits: _Limits = _Limits()
    idempotent: bool = False


class Manifest(msgspec.Struct, frozen=True):
    """What a hearth.json says; defaults where it says nothing.

    format           as written; "": to be recognised from the files
    files            what to fetch, in this order; empty: what the format needs
    parameters_json  the ``parameters`` object as it stands there; "" where there is none
    tenant           whose the model is; "" where it does not say
    max_delay_s      and what follows: as ModelSpec has it
    """

    format: str = ""
    files: tuple[ManifestFile, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters_json: str = ""
    max_batch_size: int = 0
    tenant: str = ""
    max_delay_s: float = 0.0
    weight: float = 1.0
    priority: str = "normal"
    max_concurrency: int | None = None
    max_queued: int | None = None
    idempotent: bool = False


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
    for place, file in enumerate(read.files):
        if file.checksums is not None:
            _check_checksums(where, f"$.files[{place}].checksums", file.checksums, file.size)
    _check_tensors(where, "inputs", read.inputs)
    _check_tensors(where, "outputs", read.outputs)
    return Manifest(
        read.format,
        read.files,
        tuple(TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in read.inputs),
        tuple(TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in read.outputs),
        parameters,
        _batch_size(where, read),
        read.tenant or "",
        read.batching.max_delay_ms / 1000 if read.batching is not None else 0.0,
        read.weight,
        read.priority,
        read.limits.concurrency,
        read.limits.queue,
        read.idempotent,
    )


def _check_checksums(where: str, field: str, said: _Checksums, size_bytes: int | None) -> None:
    if said.algorithm != checksums.ALGORITHM:
        raise InvalidModel(
            f"{where}: {said.algorithm[:32]!a} is no checksum that is verified here, only {checksums.ALGORITHM} is "
            f"- at `{field}.algorithm`"
        )
    if not checksums.fits(said.part_bytes):
        raise InvalidModel(
            f"{where}: parts of {said.part_bytes} bytes; a multiple of {checksums.PART_BYTES_STEP} between "
            f"{checksums.PART_BYTES_MIN} and {checksums.PART_BYTES_MAX} is allowed - at `{field}.part_bytes`"
        )
    if size_bytes is not None and len(said.parts) != (count := checksums.part_count(size_bytes, said.part_bytes)):
        raise InvalidModel(
            f"{where}: {len(said.parts)} checksums; {size_bytes} bytes have {count} parts of {said.part_bytes} "
            f"- at `{field}.parts`"
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
