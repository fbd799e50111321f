"""What models take: drawn by a seed, or measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.draws import Draw

GB: Final = 1_000_000_000
_LINE: Final = re.compile(r"(?P<base>\d+(\.\d*)?|\.\d+)s(\+(?P<per_gb>\d+(\.\d*)?|\.\d+)s/GB)?", re.ASCII)
_SIZE: Final = re.compile(r"(?P<number>[\d.]+(e[+-]?\d+)?) ?((?P<prefix>[KMGT])(?P<binary>i)?)?B?", re.ASCII | re.IGNORECASE)
SIZES: Final = "80e9, 80GB or 74.5GiB"
"""How sizes are written, for those who wrote one otherwise."""


class BadCatalogue(ValueError):
    """A size, a time or a file of measurements cannot be read; the message says which."""


@dataclass(frozen=True)
class Model:
    """One model.

    fetch_s  from the model store into RAM
    build_s  from RAM onto a device, building included
    serve_s  of one request, on a device
    """

    name: str
    size_bytes: int
    fetch_s: float
    build_s: float
    serve_s: float

    @property
    def load_s(self) -> float:
        """Both ways together."""
        return self.fetch_s + self.build_s


@dataclass(frozen=True)
class Span:
    """Seconds that something takes: so many, and so many more a gigabyte."""

    base_s: float
    per_gb_s: float = 0.0

    @classmethod
    def of(cls, text: str) -> Span:
        """Of ``1s+0.5s/GB`` or ``20s``. Raises BadCatalogue."""
        found = _LINE.fullmatch(text)
        if found is None:
            raise BadCatalogue(f"{text!r} is no time such as 20s or 1s+0.5s/GB")
        span = cls(float(found["base"]), float(found["per_gb"] or 0.0))
        if not math.isfinite(span.base_s + span.per_gb_s):
            raise BadCatalogue(f"{text!r} never ends: give a time such as 20s or 1s+0.5s/GB")
        return span

    def __call__(self, size_bytes: int) -> float:
        """Of so many bytes."""
        return self.base_s + self.per_gb_s * size_bytes / GB


def size_bytes_of(text: str) -> int:
    """Bytes, of ``80e9``, ``80GB``, ``80G`` (all the same) or ``80GiB``, ``80Gi``; kilo to tera. Raises BadCatalogue."""
    found = _SIZE.fullmatch(text)
    power = " KMGT".index((found["prefix"] or " ").upper()) if found else 0
    try:
        return int(float(found["number"] if found else "") * (1024 if found and found["binary"] else 1000) ** power)
    except (ValueError, OverflowError):
        raise BadCatalogue(f"{text!r} is no size such as {SIZES}") from None


def sizes_of(text: str) -> tuple[int, int]:
    """Least and largest size in bytes, of ``0.25e9..28e9`` or ``250MB..28GB``. Raises BadCatalogue."""
    least, _, most = text.partition("..")
    try:
        pair = size_bytes_of(least), size_bytes_of(most or least)
    except BadCatalogue:
        raise BadCatalogue(f"{text!r} is no pair of sizes such as 0.25e9..28e9 or 250MB..28GB") from None
    if not 0 < pair[0] <= pair[1]:
        raise BadCatalogue(f"{text!r}: the smaller size comes first, and is above zero")
    return pair


def drawn(
    count: int, sizes_bytes: tuple[int, int], fetch: Span, build: Span, *, serve_s: float, seed: int
) -> tuple[Model, ...]:
    """Sizes between the two, each order of magnitude as likely, whatever a model is asked."""
    least, most = math.log(sizes_bytes[0]), math.log(sizes_bytes[1])
    draw = Draw(seed, "sizes")
    made = []
    for number in range(count):
        size_bytes = round(math.exp(least + (most - least) * draw.uniform()))
        made.append(Model(f"m{number}", size_bytes, fetch(size_bytes), build(size_bytes), serve_s))
    return tuple(made)


def measured(path: Path, names: Sequence[str]) -> tuple[Model, ...]:
    """What was measured of models, a JSON object by name: ``{"m1": {"size_bytes":, "load_s":, "build_s":, "serve_s":}}``.

    ``load_s`` is of the whole way from the model store to a device, ``build_s`` (0 where it is not told) the part of it
    after RAM. A field that a model lacks is that of "*". Raises BadCatalogue.
    """
    try:
        told: dict[str, dict[str, Any]] = json.loads(path.read_text())
        common: dict[str, Any] = {"build_s": 0.0, "serve_s": 0.0} | told.get("*", {})
        made = []
        for name in names:
            own = common | told.get(name, {})
            load_s, build_s, serve_s = (_of(own, field) for field in ("load_s", "build_s", "serve_s"))
            made.append(Model(name, int(_of(own, "size_bytes", least=1)), max(0.0, load_s - build_s), build_s, serve_s))
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise BadCatalogue(f"{path} cannot be read: {problem}") from problem
    except KeyError as missing:
        raise BadCatalogue(f"{path} does not tell {missing} of model {name}, nor of '*'") from None
    return tuple(made)


def _of(told: Mapping[str, Any], field: str, *, least: float = 0.0) -> float:
    value = float(told[field])
    if not least <= value < math.inf:  # NaN is neither
        raise ValueError(f"{field} is {told[field]!r}, and has to be {least:g} or more, and finite")
    return value
