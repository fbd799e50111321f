"""What lies in the disk tier's folder: the names, the sidecar that says what an image holds, and what can be wrong with it.

One model is two files: ``<digest>.arena``, its arena byte for byte, and ``<digest>.json``, the sidecar. The sidecar is
renamed into place last, so where it stands, the image is whole. What stays out: system calls (disk_folder.py,
disk_image.py), threads (disk.py).
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from predictor.model import PAGE_BYTES, ModelRef, ModelSpec

FORMAT: Final = 1
"""Counted up when a sidecar or an image means something else than before; a copy of any other format is removed."""

PART_BYTES: Final = 16 * 2**20
"""What one checksum covers, and what is read or written at a time."""

MAX_PART_BYTES: Final = 2**30
MAX_SIDECAR_BYTES: Final = 64 * 2**20
"""A sidecar of a terabyte has 1.2 MB of checksums. Whatever is larger is no sidecar."""

IMAGE: Final = ".arena"
SIDECAR: Final = ".json"
PARTIAL: Final = ".partial"
LOCK: Final = "lock"
OURS: Final = re.compile(rf"([0-9a-f]{{64}})({re.escape(IMAGE)}|{re.escape(SIDECAR)})({re.escape(PARTIAL)})?")
"""Names that only this tier gives. Whatever else lies in the folder is somebody else's and stays."""

_LATEST_S: Final = 9_999_999_999
"""The largest time of writing that has ten digits, as all have from 2001 to 2286."""


class Fault(enum.Enum):
    """What became of a copy, or of the wish for one."""

    DAMAGED = "damaged"
    """The contents are not what was written, or not what the model is now. Drop it."""
    MISSING = "missing"
    """There is no such copy."""
    IO = "io"
    """The volume failed."""
    FULL = "full"
    """The volume, or its quota, has no room."""
    REFUSED = "refused"
    """Nothing was tried: the tier is degraded, or closed."""


class DiskFault(Exception):
    """The disk could not do it. Never a client's business: the model comes from the model store instead."""

    def __init__(self, kind: Fault, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole copy on the disk.

    size_bytes  what it takes of the volume, image and sidecar in whole blocks
    written_s   when it was written, in seconds since the epoch
    """

    ref: ModelRef
    size_bytes: int
    written_s: float


class KeptFile(msgspec.Struct, frozen=True):
    """One file of the model, as the store listed it. The manifest's sha256 was checked before the image was written."""

    path: str
    key: str
    etag: str
    size_bytes: int


class Sidecar(msgspec.Struct, frozen=True):
    """What an image holds.

    origin      which bucket of which server the model came from; part of what it is
    part_bytes  bytes of the image that each of ``xxh3_64`` covers, the last one fewer
    xxh3_64     checksums in hexadecimal, 16 digits each
    """

    format: int
    origin: str
    namespace: str
    name: str
    version: int
    revision: str
    bucket: str
    files: tuple[KeptFile, ...]
    image_bytes: int
    part_bytes: int
    xxh3_64: tuple[str, ...]
    written_s: int

    @property
    def ref(self) -> ModelRef:
        """Whose image it is."""
        return ModelRef(self.namespace, self.name, self.version, self.revision)


def digest(ref: ModelRef) -> str:
    """The name of a model's files: 64 hexadecimal digits, so that no name of a model can be a path."""
    return hashlib.sha256(ref.key.encode()).hexdigest()


def describe(spec: ModelSpec, part_bytes: int, checksums: Sequence[str], written_s: float) -> Sidecar:
    """The sidecar of a model's image."""
    return Sidecar(
        format=FORMAT,
        origin=spec.origin,
        namespace=spec.ref.namespace,
        name=spec.ref.name,
        version=spec.ref.version,
        revision=spec.ref.revision,
        bucket=spec.bucket,
        files=tuple(KeptFile(file.path, file.key, file.etag, file.size_bytes) for file in spec.files),
        image_bytes=spec.arena_bytes,
        part_bytes=part_bytes,
        xxh3_64=tuple(checksums),
        written_s=max(0, min(int(written_s), _LATEST_S)),
    )


def encode(sidecar: Sidecar) -> bytes:
    """As it is written. The length depends on the model alone, so that it can be charged before it exists."""
    longest = msgspec.structs.replace(sidecar, written_s=_LATEST_S)
    return msgspec.json.encode(sidecar).ljust(len(msgspec.json.encode(longest)))


def decode(text: bytes) -> Sidecar:
    """Raises ValueError: not a sidecar, of another format, or one that contradicts itself."""
    sidecar = msgspec.json.decode(text, type=Sidecar)  # its errors are ValueErrors
    if sidecar.format != FORMAT:
        raise ValueError(f"format {sidecar.format}, this version of Hearth reads {FORMAT}")
    if not (PAGE_BYTES <= sidecar.part_bytes <= MAX_PART_BYTES) or sidecar.part_bytes % PAGE_BYTES:
        raise ValueError(f"parts of {sidecar.part_bytes} bytes")
    if sidecar.image_bytes < 0 or sidecar.image_bytes % PAGE_BYTES:
        raise ValueError(f"an image of {sidecar.image_bytes} bytes")
    if len(sidecar.xxh3_64) != count_parts(sidecar.image_bytes, sidecar.part_bytes):
        raise ValueError(f"{len(sidecar.xxh3_64)} checksums for {sidecar.image_bytes} bytes")
    return sidecar


def difference(sidecar: Sidecar, spec: ModelSpec) -> str:
    """In what the copy differs from the model; "" when it is this model's."""
    wanted = describe(spec, sidecar.part_bytes, sidecar.xxh3_64, sidecar.written_s)
    names = [name for name in Sidecar.__struct_fields__ if getattr(sidecar, name) != getattr(wanted, name)]
    return ", ".join(names)


def count_parts(size_bytes: int, part_bytes: int) -> int:
    """How many checksums an image has."""
    return -(-size_bytes // part_bytes)


def charged_bytes(image_bytes: int, sidecar_bytes: int, block_bytes: int) -> int:
    """What the two files take of a volume that gives whole blocks; without the folder's entry, some 150 bytes."""
    return sum(-(-size_bytes // block_bytes) * block_bytes for size_bytes in (image_bytes, sidecar_bytes))


def disk_bytes(spec: ModelSpec, part_bytes: int, block_bytes: int) -> int:
    """What a copy of the model will take: ``Kept.size_bytes`` beforehand."""
    checksums = ["0" * 16] * count_parts(spec.arena_bytes, part_bytes)
    return charged_bytes(spec.arena_bytes, len(encode(describe(spec, part_bytes, checksums, 0))), block_bytes)
