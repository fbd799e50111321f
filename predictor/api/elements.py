"""Numbers and strings as JSON has them ⇄ a tensor's bytes as V2 and the workers have them: little endian, row-major.

No numpy: the front would pay 90 ms of its start for it, and for requests of a few KiB `struct` is faster (5 µs for
784 floats, where converting the list alone takes numpy 20).

NaN and infinities: JSON has none. In an answer they become `null`, as orjson, JavaScript and the V2 clients (who read
`null` back as NaN) have it; a request that needs them sends the tensor as binary data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from predictor.api.message import Buffer
from predictor.errors import MalformedRequest, SchemaMismatch

_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""V2 datatype → struct code. BF16 is missing: struct cannot, and JSON would only blow up what is small on purpose."""
_RANGES: Final = {
    "BOOL": "true and false",
    "FP16": "numbers within ±65504",
    "FP32": "numbers within ±3.4e38",
    "FP64": "numbers within ±1.8e308",
    "BYTES": "strings",
} | {
    f"{sign}INT{bits}": f"integers from {0 if sign else -(1 << bits - 1)} to {(1 << (bits if sign else bits - 1)) - 1}"
    for sign in ("", "U")
    for bits in (8, 16, 32, 64)
}
_LENGTH: Final = struct.Struct("<I")
MAX_SHOWN: Final = 40
"""Characters of a wrong value that an error message repeats."""


@lru_cache(maxsize=512)
def _layout(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def flat(name: str, shape: Sequence[int], values: list[Any]) -> list[Any]:
    """The elements of JSON ``data`` in row-major order, whether they came flat or nested as ``shape`` says.

    Raises MalformedRequest when the nesting is not the shape's.
    """
    if not values or type(values[0]) is not list:
        return values
    level = [values]
    for axis, length in enumerate(shape):
        for part in level:
            if type(part) is not list or len(part) != length:
                found = f"an array of {len(part)}" if type(part) is list else _shown(part)
                raise MalformedRequest(
                    f"input {name!r}: data is nested otherwise than its shape {list(shape)} says: "
                    f"at level {axis + 1} arrays of {length} are expected, found {found}"
                )
        level = list(chain.from_iterable(level))
    return level


def pack(name: str, datatype: str, values: list[Any]) -> bytes:
    """Flat JSON values → bytes. Numbers must fit the datatype; for numbers, true and false count as 1 and 0.

    Raises MalformedRequest, naming the input, the element and what would fit.
    """
    if datatype == "BYTES":
        return _pack_strings(name, values)
    code = _CODES.get(datatype)
    if code is None:
        raise MalformedRequest(f"input {name!r}: {datatype} has no form in JSON; send it as binary data (binary_data_size)")
    if code == "?" and values.count(True) + values.count(False) != len(values):
        raise _misfit(name, datatype, values)  # struct would take anything for a truth value
    try:
        return _layout(code, len(values)).pack(*values)
    except (struct.error, OverflowError, TypeError):
        raise _misfit(name, datatype, values) from None


def unpack(name: str, datatype: str, count: int, part: Buffer) -> Sequence[Any]:
    """Bytes → what JSON holds. SchemaMismatch where JSON cannot hold it: BF16, or BYTES that are not UTF-8."""
    if datatype == "BYTES":
        return _unpack_strings(name, part)
    code = _CODES.get(datatype)
    if code is None:
        raise SchemaMismatch(f"output {name!r}: {datatype} has no form in JSON; ask for it as binary_data")
    return _layout(code, count).unpack(part)


def check_strings(name: str, part: memoryview, count: int) -> None:
    """Check that binary BYTES data is ``count`` elements, each a u32 length and as many bytes."""
    at, size_bytes = 0, len(part)
    for index in range(count):
        end = at + 4
        if end > size_bytes:
            raise MalformedRequest(
                f"input {name!r}: its shape holds {count} elements, the binary data ends within element {index}"
            )
        at = end + _LENGTH.unpack_from(part, at)[0]
    if at != size_bytes:
        raise MalformedRequest(
            f"input {name!r}: its {count} elements take {at} bytes by their lengths, the binary data is {size_bytes} bytes"
        )


def _pack_strings(name: str, values: list[Any]) -> bytes:
    pieces: list[bytes] = []
    for index, value in enumerate(values):
        if type(value) is not str:
            raise MalformedRequest(f"input {name!r}: element {index} is {_shown(value)}, BYTES takes strings")
        text = value.encode()  # cannot fail: the JSON decoder lets no lone surrogate through
        pieces += (_LENGTH.pack(len(text)), text)
    return b"".join(pieces)


def _unpack_strings(name: str, part: Buffer) -> list[str]:
    at, texts, view = 0, [], memoryview(part)
    while at < len(view):
        end = at + 4 + _LENGTH.unpack_from(view, at)[0]
        try:
            texts.append(str(view[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise SchemaMismatch(
                f"output {name!r}: element {len(texts)} is not UTF-8 text; ask for it as binary_data"
            ) from None
        at = end
    return texts


def _misfit(name: str, datatype: str, values: list[Any]) -> MalformedRequest:
    """The error that names the first element that does not fit; only ever built for a request that is refused."""
    one = struct.Struct("<" + _CODES[datatype])
    for index, value in enumerate(values):
        try:
            one.pack(value)
            fits = datatype != "BOOL" or value in (True, False)
        except (struct.error, OverflowError, TypeError):
            fits = False
        if not fits:
            return MalformedRequest(f"input {name!r}: element {index} is {_shown(value)}, {datatype} takes {_RANGES[datatype]}")
    raise AssertionError(f"{len(values)} elements of {datatype} fit one by one, not together")


def _shown(value: object) -> str:
    text = "an array" if isinstance(value, list) else "an object" if isinstance(value, dict) else repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
