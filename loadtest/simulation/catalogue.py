"""What models take: drawn by a seed, or measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.draws import Draw

GB: Final = 1_000_000_000
_LINE: Final = re.compile(r"(?P<base>[\d.]+)s(\+(?P<per_gb>[\d.]+)s/GB)?")


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
        return cls(float(found["base"]), float(found["per_gb"] or 0.0))

    def __call__(self, size_bytes: int) -> float:
        """Of so many bytes."""
        return self.base_s + self.per_gb_s * size_bytes / GB


def sizes_of(text: str) -> tuple[int, int]:
    """Least and largest size in bytes, of ``0.25e9..28e9``. Raises BadCatalogue."""
    least, _, most = text.partition("..")
    try:
        pair = int(float(least)), int(float(most or least))
    except ValueError:
        raise BadCatalogue(f"{text!r} is no pair of sizes such as 0.25e9..28e9") from None
    if not 0 < pair[0] <= pair[1]:
        raise BadCatalogue(f"{text!r}: the smaller size comes first")
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
            build_s = float(own["build_s"])
            fetch_s = max(0.0, float(own["load_s"]) - build_s)
            made.append(Model(name, int(own["size_bytes"]), fetch_s, build_s, float(own["serve_s"])))
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise BadCatalogue(f"{path} cannot be read: {problem}") from problem
    except KeyError as missing:
        raise BadCatalogue(f"{path} does not tell {missing} of model {name}, nor of '*'") from None
    return tuple(made)
