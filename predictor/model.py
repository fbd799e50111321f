"""What a model is, in words every part of Hearth shares. Plain data: nothing here reads, waits or decides."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

PAGE_BYTES: Final = 4096
"""Files start on a page inside an arena, so that each can be mapped and read with direct I/O."""

ELEMENT_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""V2 datatype → bytes per element. BYTES is missing on purpose: its elements carry their own length."""

DATATYPES: Final = frozenset(ELEMENT_BYTES) | {"BYTES"}


class Tier(enum.Enum):
    """A place weights can be, nearest to the computation last."""

    DISK = "disk"
    RAM = "ram"
    DEVICE = "device"


class ModelFormat(enum.Enum):
    """How a model's files are to be read. The value is what ``hearth.json`` and the API call it."""

    PYTORCH = "pytorch"
    ONNX = "onnx"


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """Which model: unique in a pool, hashable, cheap.

    namespace  the pool's own namespace
    name       as clients ask for it
    version    the integer folder in the model store; 1 where a model has no version level
    revision   digest of the objects' ETags: contents overwritten in place are another model to the
               cache, so that old and new bytes can never be mixed
    """

    namespace: str
    name: str
    version: int
    revision: str = ""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.namespace, self.name, self.version, self.revision)))

    def __hash__(self) -> int:
        """Reckoned once: a request looks its model up a dozen times, at 0.5 µs each."""
        return self._hash

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def key(self) -> str:
        """One string that names this very copy, also to a worker process."""
        return f"{self.namespace}/{self.name}/{self.version}@{self.revision}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. ``shape`` holds -1 where any length is accepted."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartChecksums:
    """What hearth.json says of each run of ``part_bytes`` of a file; the last part is what remains.

    algorithm  ``xxh3_64``
    parts      16 hexadecimal digits each, lower case, in the file's order
    """

    algorithm: str
    part_bytes: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One object of a model: its path inside the model's folder, and what S3 said of it when listed.

    sha256     hexadecimal, from hearth.json; "" where the manifest does not say
    checksums  of its parts, from hearth.json; None where the manifest does not say. They are verified instead of ``sha256``
    """

    path: str
    key: str
    etag: str
    size_bytes: int
    sha256: str = ""
    checksums: PartChecksums | None = None

    @property
    def is_provable(self) -> bool:
        """Whether the manifest says enough to prove the contents, wherever they came from."""
        return bool(self.sha256) or self.checksums is not None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one file lies inside its model's arena."""

    path: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is and needs; made by the catalogue, the same for every part that handles it.

    bucket           where the files are
    scope            which declared credentials they are read with; "": the pool's own
    origin           which bucket of which server that is
    inputs, outputs  the schema of hearth.json; empty where nobody declared one
    parameters_json  the manifest's ``parameters`` object as JSON text (hashable, crosses processes as it is);
                     "" where the manifest has none: a builder then gets config.json
    max_batch_size   rows that may run as one; 0 or 1: the model does not batch
    max_delay_s      how long a request may wait, on a free device, for others to run with it
    weight           its share of a device, relative to the other models that wait for it
    priority         of requests that do not tell theirs
    max_concurrency  its requests inside a pod at once; None: the pod's own limit alone
    max_queued       of those, how many may wait for the device; None: the pod's own limit alone
    tenant           whose it is, as hearth.json says; "": the namespace's
    idempotent       a request that was being computed when its worker ended may be computed again
    """

    ref: ModelRef
    format: ModelFormat
    bucket: str
    files: tuple[FileSpec, ...]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters_json: str = ""
    max_batch_size: int = 0
    max_delay_s: float = 0.0
    weight: float = 1.0
    priority: str = "normal"
    max_concurrency: int | None = None
    max_queued: int | None = None
    tenant: str = ""
    scope: str = ""
    origin: str = ""
    idempotent: bool = False

    def layout(self) -> tuple[Placed, ...]:
        """The files one after another, each on a page of its own: an arena's contents."""
        placed, offset = [], 0
        for file in self.files:
            placed.append(Placed(file.path, offset, file.size_bytes))
            offset += page_aligned(file.size_bytes)
        return tuple(placed)

    @property
    def arena_bytes(self) -> int:
        """Exactly what the model takes in RAM."""
        return sum(page_aligned(file.size_bytes) for file in self.files)


def page_aligned(size_bytes: int) -> int:
    """``size_bytes`` rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
