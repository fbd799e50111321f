"""The evil models: what each does, and what may come of it for those who asked for it.

Pure but for reading the models' code. What stays out: doing it (evil/model.py), watching it happen (scene.py).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
POKE: Final = 666.0  # as evil/model.py has it, which imports torch
WIDTH: Final = 4
SCHEMA: Final = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, WIDTH]}],
}


@dataclass(frozen=True)
class Evil:
    """One evil model.

    deed     of evil/model.py; "": it harms by being imported
    when     it does it: ``asked`` for it, or ``built``
    kills    its worker ends of it; None: that depends on the machine (which pages are writable, whose memory ends first)
    hangs    it is ended by a time limit
    told     for the table
    source   its code, in this folder
    """

    name: str
    told: str
    deed: str = ""
    when: str = "asked"
    kills: bool | None = True
    hangs: bool = False
    source: str = "model.py"


EVILS: Final = {
    evil.name: evil
    for evil in (
        Evil("abort", "os.abort()", "abort"),
        Evil("segfault", "reads address 0", "segfault"),
        Evil("exit", "os._exit(0)", "exit"),
        Evil("sleep", "computes for ever", "sleep", hangs=True),
        Evil("hung-build", "build() never returns", "sleep", when="built", hangs=True),
        Evil("hung-import", "import model.py never returns", when="built", hangs=True, source="hanging_import.py"),
        Evil("crash-build", "os.abort() in build()", "abort", when="built"),
        Evil("allocate", "allocates without end", "allocate", kills=None),
        Evil("recurse", "recurses without end", "recurse"),
        Evil("flood", "prints 2 GiB", "flood", kills=None),
        Evil("fill", "fills its folder", "fill"),
        Evil("fork", "forks children that stay, and aborts", "fork"),
        Evil("twin", "forks, and both go on", "twin", kills=None),
        Evil("close", "closes every descriptor", "close"),
        Evil("ignore-sigterm", "ignores SIGTERM, computes for ever", "ignore-sigterm", hangs=True),
        Evil("write-inputs", "overwrites its inputs", "write-inputs", kills=None),
        Evil("write-weights", "overwrites its weights", "write-weights", kills=None),
        Evil("system-exit", "raises SystemExit", "system-exit", kills=False),
        Evil("long-message", "raises with 64 MB of words", "long-message", kills=None),
    )
}


def evil_files(evil: Evil, **declared: Any) -> dict[str, bytes]:
    """A version's files. ``declared``: fields of its hearth.json."""
    return _files({"width": WIDTH, "deed": evil.deed, "when": evil.when}, 1.0, evil.source, declared)


def healthy_files(scale: float, **declared: Any) -> dict[str, bytes]:
    """The same of a model that never does anything but ``y = scale · x + 1``."""
    return _files({"width": WIDTH, "deed": "", "when": "asked"}, scale, "model.py", declared)


def body(value: float, others: float | None = None) -> bytes:
    """One request in V2 JSON: a row of ``value``, or of one such number and ``others``."""
    rest = value if others is None else others
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [value] + [rest] * (WIDTH - 1)}
    return json.dumps({"inputs": [tensor]}).encode()


def _files(config: Mapping[str, Any], scale: float, source: str, declared: Mapping[str, Any]) -> dict[str, bytes]:
    manifest = {"format": "pytorch", "parameters": config, **SCHEMA, **declared}
    return {
        "model.safetensors": _weights(scale),
        "model.py": (FOLDER / source).read_bytes(),
        "hearth.json": json.dumps(manifest).encode(),
    }


def _weights(scale: float) -> bytes:
    """The safetensors format: the header's length, the header, the bytes."""
    body = struct.pack(f"<{WIDTH}f", *[scale] * WIDTH)
    head = json.dumps({"scale": {"dtype": "F32", "shape": [WIDTH], "data_offsets": [0, len(body)]}}).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body
