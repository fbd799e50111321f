"""What is asked and what the right answer is: a *deck* of questions, their bodies in JSON and in binary, the judging.

A deck is a file of JSON lines, one question each, in the words of the V2 protocol::

    {"model": "resnet", "version": "", "tenant": "", "tolerance": 0.001,
     "inputs":  [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [...]}],
     "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [...]}]}

A user writes it with true answers, or lets ``hearth loadtest record`` ask a server once (recording.py). Everything is
encoded before the run: a generator that packs tensors while it should be sending measures itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

BINARY_LENGTH: Final = "Inference-Header-Content-Length"
TOLERANCE: Final = 1e-3
"""Relative and absolute, where a deck says nothing: batches of other sizes round differently, precisions too."""
REMEMBERED_BODIES: Final = 8
REMEMBERED_BYTES: Final = 1 << 16
"""Right answers per question that are recognised byte for byte, without taking them apart, and how long each may be."""

NUMPY_TYPES: Final = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""V2 datatype → numpy's. BYTES is beside them; BF16 has no numpy type and cannot be in a deck."""


class BadDeck(ValueError):
    """A deck cannot be used; the message says where and why."""


class Encoding(StrEnum):
    """How tensors travel. MIXED: each request draws one."""

    JSON = "json"
    BINARY = "binary"
    MIXED = "mixed"


class Target(NamedTuple):
    """What a request is sent to. ``version`` "": the one that the server chooses; ``tenant``: for the report alone."""

    model: str
    version: str
    tenant: str

    @property
    def path(self) -> str:
        """Of the URL."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.model, safe='')}{version}/infer"


class Body(NamedTuple):
    """Ready to be sent."""

    content: bytes
    headers: Mapping[str, str]


@dataclass
class Question:
    """One thing to ask, its right answer, and what was already found to be right."""

    bodies: tuple[Body, ...]
    expected: Mapping[str, NDArray[Any]]
    tolerance: float
    _right: dict[bytes, str | None] = field(default_factory=dict)

    def judge(self, content: bytes, json_length: str | None) -> str:
        """What is wrong with an answer; "" where nothing is.

        json_length  the answer's Inference-Header-Content-Length; None where it has none
        """
        if content in self._right and self._right[content] == json_length:
            return ""
        try:
            given = outputs(content, json_length)
        except (ValueError, KeyError, TypeError, IndexError):
            return "unreadable answer"
        for name, expected in self.expected.items():
            if name not in given or not _alike(given[name], expected, self.tolerance):
                return "wrong answer"
        if len(self._right) < REMEMBERED_BODIES and len(content) <= REMEMBERED_BYTES:
            self._right[content] = json_length
        return ""


@dataclass(frozen=True)
class Deck:
    """Questions by target, in the file's order."""

    targets: tuple[Target, ...]
    questions: tuple[tuple[Question, ...], ...]

    def question(self, target: int, pick: int) -> tuple[Question, Body]:
        """The one that ``pick`` points at, in the encoding that it points at."""
        asked = self.questions[target]
        question = asked[pick % len(asked)]
        return question, question.bodies[pick // len(asked) % len(question.bodies)]


def read(path: Path, encoding: Encoding, models: Sequence[str] = ()) -> Deck:
    """Read a deck and encode it. ``models``: only these, in this order; empty: all. Raises BadDeck."""
    found: dict[Target, list[Question]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    target, question = _parsed(line, encoding, f"{path}:{number}")
                    found.setdefault(target, []).append(question)
    except (OSError, UnicodeDecodeError) as problem:
        raise BadDeck(f"the deck {path} cannot be read: {problem}") from problem
    if models:
        missing = set(models) - {target.model for target in found}
        if missing:
            raise BadDeck(f"{path} has no question for {', '.join(sorted(missing))}")
        found = {target: found[target] for name in models for target in found if target.model == name}
    if not found:
        raise BadDeck(f"{path} has no question")
    return Deck(tuple(found), tuple(tuple(questions) for questions in found.values()))


def _parsed(line: str, encoding: Encoding, where: str) -> tuple[Target, Question]:
    try:
        told = json.loads(line)
        target = Target(str(told["model"]), str(told.get("version", "")), str(told.get("tenant", "")))
        tolerance = float(told.get("tolerance", TOLERANCE))
        expected = {tensor["name"]: array(tensor) for tensor in told["outputs"]}
        bodies = encoded(told["inputs"], list(expected), encoding)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        raise BadDeck(f"{where}: no question as a deck has them: {type(problem).__name__}: {problem}") from problem
    if not expected:
        raise BadDeck(f"{where}: without outputs no answer can be judged")
    return target, Question(bodies, expected, tolerance)


def encoded(inputs: Sequence[Mapping[str, Any]], wanted: Sequence[str], encoding: Encoding) -> tuple[Body, ...]:
    """A request's bodies: one, or with MIXED the JSON one and the binary one."""
    makers = {Encoding.JSON: [_json_body], Encoding.BINARY: [_binary_body], Encoding.MIXED: [_json_body, _binary_body]}
    return tuple(maker(inputs, wanted) for maker in makers[encoding])


def _json_body(inputs: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> Body:
    tensors = [{key: tensor[key] for key in ("name", "datatype", "shape", "data")} for tensor in inputs]
    body = json.dumps({"inputs": tensors, "outputs": [{"name": name} for name in wanted]}, separators=(",", ":")).encode()
    return Body(body, {"Content-Type": "application/json", "Accept-Encoding": "identity"})


def _binary_body(inputs: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> Body:
    tensors, pieces = [], []
    for tensor in inputs:
        piece = _packed(array(tensor), tensor["datatype"])
        pieces.append(piece)
        described = {key: tensor[key] for key in ("name", "datatype", "shape")}
        tensors.append(described | {"parameters": {"binary_data_size": len(piece)}})
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in wanted]
    header = json.dumps({"inputs": tensors, "outputs": outputs}, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Encoding": "identity",
        BINARY_LENGTH: str(len(header)),
    }
    return Body(b"".join([header, *pieces]), headers)


def array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    """A JSON tensor's elements, flat. Raises ValueError where data, shape and datatype disagree."""
    shape = [int(extent) for extent in tensor["shape"]]
    values = np.array(tensor["data"], dtype=_type(tensor["datatype"])).ravel()
    if values.size != int(np.prod(shape)):
        raise ValueError(f"tensor {tensor['name']!r} has {values.size} elements, its shape {shape} says otherwise")
    return values


def outputs(content: bytes, json_length: str | None) -> dict[str, NDArray[Any]]:
    """An answer's tensors by name, flat. Raises ValueError, KeyError, TypeError or IndexError where it is none."""
    length = len(content) if json_length is None else int(json_length)
    told = json.loads(content[:length])
    found, at = {}, length
    for tensor in told["outputs"]:
        size_bytes = tensor.get("parameters", {}).get("binary_data_size")
        if size_bytes is None:
            found[tensor["name"]] = array(tensor)
            continue
        piece = content[at : at + size_bytes]
        at += size_bytes
        if len(piece) != size_bytes:
            raise ValueError(f"output {tensor['name']!r} is {size_bytes} bytes long, {len(piece)} came")
        found[tensor["name"]] = _unpacked(piece, tensor["datatype"])
    return found


def _type(datatype: str) -> Any:
    if datatype == "BYTES":
        return object
    if datatype not in NUMPY_TYPES:
        raise ValueError(f"datatype {datatype!r} is not one of {', '.join(NUMPY_TYPES)}, BYTES")
    return np.dtype(NUMPY_TYPES[datatype])


def _packed(values: NDArray[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return values.tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in map(_raw, values))


def _unpacked(piece: bytes, datatype: str) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(piece, dtype=_type(datatype))
    items, at = [], 0
    while at < len(piece):
        size_bytes = int.from_bytes(piece[at : at + 4], "little")
        items.append(piece[at + 4 : at + 4 + size_bytes])
        at += 4 + size_bytes
    return np.array(items, dtype=object)


def _raw(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _alike(given: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    """Floats within the tolerance, everything else exactly."""
    if given.size != expected.size:
        return False
    if expected.dtype == object:
        return all(_raw(one) == _raw(other) for one, other in zip(given, expected, strict=True))
    if expected.dtype.kind != "f":
        return bool(np.array_equal(given, expected))
    return bool(np.allclose(given, expected, rtol=tolerance, atol=tolerance, equal_nan=True))


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Keep questions as a deck."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
