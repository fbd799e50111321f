"""``hearth loadtest record``: ask a server each of its models a few times, and keep questions and answers as a deck.

The answers are this server's own: a run against it, or against another server of the same models, then checks that every
answer is the same as that one, under load, after evictions, from every tier. Whether the first one was right only a deck
with true answers can tell. Recording asks every model, so it wakes and loads them: record before, not during, what is
measured.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from loadtest import payloads
from loadtest.draws import Draw

MAX_ANSWER_BYTES: Final = 256 << 20
FREE_EXTENT: Final = 1
"""What a dimension without a size becomes, where it is not the first."""
SMALL_INTEGERS: Final = 10
"""Whole numbers are drawn below this: they may be places in a small table."""


class CannotRecord(Exception):
    """A server does not tell or answer what a deck needs; the message says what, and what to do."""


@dataclass(frozen=True)
class Recording:
    """What to ask.

    models     names, or name:version; empty: everything in the server's repository index
    rows       sizes of the first dimension, where it is free: a question for each
    questions  for each of these sizes
    context    for https; None: Python's own
    shapes     name of a model → its inputs, where its metadata does not tell: ``x:FP32:1,4;...``
    """

    host: str
    host_header: str = ""
    models: tuple[str, ...] = ()
    rows: tuple[int, ...] = (1,)
    questions: int = 2
    shapes: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    tolerance: float = payloads.TOLERANCE
    timeout_s: float = 180.0
    seed: int = 1
    context: ssl.SSLContext | None = None


def record(recording: Recording, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The deck's lines, one after another as they are answered. Raises CannotRecord."""
    names = list(recording.models) or _index(recording)
    for place, name in enumerate(names, 1):
        model, _, version = name.partition(":")
        described = (recording.shapes or {}).get(model) or _metadata(recording, model, version)
        for inputs in _questions(recording, name, described):
            outputs = _ask(recording, model, version, inputs)
            yield {
                "model": model,
                "version": version,
                "tolerance": recording.tolerance,
                "inputs": inputs,
                "outputs": outputs,
            }
        say(f"{place} of {len(names)}: {name}")


def _questions(recording: Recording, name: str, described: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    draw = Draw(recording.seed, "questions", name)
    free = any(tensor["shape"] and int(tensor["shape"][0]) < 0 for tensor in described)
    for rows in recording.rows if free else (1,):
        for _ in range(recording.questions):
            yield [_tensor(tensor, rows, draw) for tensor in described]


def _tensor(described: Mapping[str, Any], rows: int, draw: Draw) -> dict[str, Any]:
    shape = [int(extent) for extent in described["shape"]]
    shape = [(rows if place == 0 else FREE_EXTENT) if extent < 0 else extent for place, extent in enumerate(shape)]
    count = 1
    for extent in shape:
        count *= extent
    datatype = described["datatype"]
    return {
        "name": described["name"],
        "datatype": datatype,
        "shape": shape,
        "data": [_value(datatype, draw) for _ in range(count)],
    }


def _value(datatype: str, draw: Draw) -> float | int | bool | str:
    if datatype == "BYTES":
        return f"text {draw.below(1000)}"
    if datatype == "BOOL":
        return draw.below(2) == 1
    if datatype.startswith("FP"):
        return round(2.0 * draw.uniform() - 1.0, 4)
    return draw.below(SMALL_INTEGERS)


def _index(recording: Recording) -> list[str]:
    told = _call(recording, "/v2/repository/index", {})
    names = [str(model["name"]) for model in told] if isinstance(told, list) else []
    if not names:
        raise CannotRecord(f"{recording.host} lists no models; name them with --models")
    return sorted(set(names))


def _path(model: str, version: str) -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _metadata(recording: Recording, model: str, version: str) -> list[Mapping[str, Any]]:
    told = _call(recording, _path(model, version), None)
    inputs = told.get("inputs") if isinstance(told, dict) else None
    if not inputs:
        raise CannotRecord(
            f"{recording.host} does not say what {model} takes: give --input {model}=NAME:DATATYPE:SHAPE, or write a deck"
        )
    return list(inputs)


def _ask(recording: Recording, model: str, version: str, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    told = _call(recording, _path(model, version) + "/infer", {"inputs": list(inputs)})
    outputs = told.get("outputs") if isinstance(told, dict) else None
    if not outputs or any("data" not in tensor for tensor in outputs):
        raise CannotRecord(f"{model} answered without outputs in JSON: {str(told)[:200]}")
    return [{key: tensor[key] for key in ("name", "datatype", "shape", "data")} for tensor in outputs]


def _call(recording: Recording, path: str, body: Mapping[str, Any] | None) -> Any:
    if not recording.host.startswith(("http://", "https://")):
        raise CannotRecord(f"{recording.host!r} is no address: it begins with http:// or https://")
    headers = {"Content-Type": "application/json"} | ({"Host": recording.host_header} if recording.host_header else {})
    request = urllib.request.Request(  # noqa: S310 (http or https: looked at above)
        recording.host.rstrip("/") + path, None if body is None else json.dumps(body).encode(), headers
    )
    secure = urllib.request.HTTPSHandler(context=recording.context)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
    try:
        with opener.open(request, timeout=recording.timeout_s) as response:
            return json.loads(response.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as refusal:
        with refusal:
            raise CannotRecord(f"{path}: HTTP {refusal.code}: {refusal.read(500).decode(errors='replace')}") from refusal
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise CannotRecord(f"{recording.host}{path}: {problem}") from problem


def shape_of(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Read ``MODEL=NAME:DATATYPE:1,4;NAME:...``. Raises CannotRecord."""
    model, equals, told = text.partition("=")
    inputs = []
    try:
        for item in told.split(";"):
            name, datatype, shape = item.split(":")
            inputs.append({"name": name, "datatype": datatype, "shape": [int(extent) for extent in shape.split(",")]})
    except ValueError:
        equals = ""
    if not (model and equals):
        raise CannotRecord(f"--input is MODEL=NAME:DATATYPE:1,4;NAME:..., not {text!r}")
    return model, inputs
