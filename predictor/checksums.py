"""Checksums of a model's files: how a publisher makes them, and how bytes are held against them.

Part checksums are XXH3 (Y. Collet, 2019), 26 GB/s on one core here: each part is verified in the thread that fetched it, at
the rate at which it comes. They tell torn uploads and broken transfers, not forgers: who can write an object can write its
manifest, too. SHA-256 of a whole file is one chain over all of its bytes, 1.7 GB/s at best.

What stays out: which bytes are verified when (tiers/), the manifest's grammar (manifest.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from predictor.errors import InvalidModel
from predictor.model import PartChecksums

ALGORITHM: Final = "xxh3_64"
PART_BYTES: Final = 16 << 20
PART_BYTES_MIN: Final = 64 << 10
PART_BYTES_MAX: Final = 1 << 30
PART_BYTES_STEP: Final = 4096
"""A page, so that the parts of a file can be read with direct I/O."""


def of_part(windows: Iterable[memoryview]) -> str:
    """The checksum of bytes that may lie in pieces: 16 hexadecimal digits. Others may run meanwhile: no lock is held."""
    # Imported by the thread that has the first part: a pod asks for its first byte before it needs this.
    from xxhash import xxh3_64  # noqa: PLC0415

    digest = xxh3_64()
    for window in windows:
        digest.update(window)
    return digest.hexdigest()


def part_count(size_bytes: int, part_bytes: int) -> int:
    """How many parts a file has; 0 where it is empty."""
    return -(-size_bytes // part_bytes)


def fits(part_bytes: int) -> bool:
    """Whether a manifest may cut files like this."""
    return PART_BYTES_MIN <= part_bytes <= PART_BYTES_MAX and not part_bytes % PART_BYTES_STEP


def entry(path: str, contents: bytes | Path, *, part_bytes: int = PART_BYTES) -> dict[str, Any]:
    """What ``files`` of a hearth.json says of one file: ``path``, ``size``, ``sha256`` and ``checksums``, ready for json.

    path        as the manifest names it, relative to the version's folder
    contents    the bytes, or where they lie; a file is read once, a part at a time
    part_bytes  a multiple of 4096 between 64 KiB and 1 GiB
    """
    assert fits(part_bytes), f"parts of {part_bytes} bytes"
    whole, parts, size_bytes = hashlib.sha256(), [], 0
    for part in _parts_of(contents, part_bytes):
        whole.update(part)
        parts.append(of_part([part]))
        size_bytes += len(part)
    checksums = {"algorithm": ALGORITHM, "part_bytes": part_bytes, "parts": parts}
    return {"path": path, "size": size_bytes, "sha256": whole.hexdigest(), "checksums": checksums}


def _parts_of(contents: bytes | Path, part_bytes: int) -> Iterator[memoryview]:
    if isinstance(contents, bytes):
        whole = memoryview(contents)
        yield from (whole[start : start + part_bytes] for start in range(0, len(whole), part_bytes))
        return
    with contents.open("rb") as file:
        buffer = memoryview(bytearray(min(part_bytes, contents.stat().st_size)))
        while got := file.readinto(buffer):  # buffered: short only at the end
            yield buffer[:got]


def wrong_part(where: str, checksums: PartChecksums, place: int, found: str) -> str:
    """A part that differs, in words; what to do about it is the caller's to say.

    where  the object, for example ``s3://bucket/models/m/1/model.onnx``
    """
    return (
        f"{where}: part {place} of {len(checksums.parts)} (from byte {place * checksums.part_bytes}) has "
        f"{checksums.algorithm} {found}, hearth.json says {checksums.parts[place]}"
    )


def wrong_whole(where: str, sha256: str, found: str) -> InvalidModel:
    """A file whose SHA-256 differs, to be raised."""
    return InvalidModel(f"{where} has sha256 {found}, hearth.json says {sha256}: publish the version again")
