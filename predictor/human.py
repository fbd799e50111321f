"""Quantities as people read them: bytes, spans and rates. What machines read is never rounded here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SIZES: Final = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_SPANS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

_TWO_DIGITS: Final = 10.0
"""From here on, nobody reads a digit after the point."""

NAMED: Final = 3
"""So many names of a list are told."""


def size(size_bytes: int) -> str:
    """Decimal units, as disks and networks are sold: ``17.8 MB``."""
    for unit, name in _SIZES:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def span(span_s: float) -> str:
    """``0.4 ms``, ``12 ms``, ``3.2 s``, ``45 s``, ``12 min``, ``3 h``, ``2 d``."""
    for unit_s, name in _SPANS:
        if span_s >= unit_s:
            return f"{span_s / unit_s:.0f} {name}"
    if span_s >= 1:
        return f"{span_s:.1f} s" if span_s < _TWO_DIGITS else f"{span_s:.0f} s"
    return milliseconds(span_s) + " ms"


def milliseconds(span_s: float) -> str:
    """The number alone, two significant digits below ten: ``0.42``, ``3.1``, ``148``."""
    milli = span_s * 1000
    return f"{milli:.2f}" if milli < 1 else f"{milli:.1f}" if milli < _TWO_DIGITS else f"{milli:.0f}"


def rate(rate_per_s: float) -> str:
    """Per second, minute or hour, whichever says most: ``3.2/s``, ``14/min``, ``2.5/h``; ``-`` for never."""
    if rate_per_s <= 0:
        return "-"
    for per_s, name in ((1.0, "s"), (60.0, "min")):
        if rate_per_s * per_s >= 1:
            return f"{rate_per_s * per_s:.1f}/{name}"
    return f"{rate_per_s * 3600:.1f}/h"


def few(named: Sequence[object]) -> str:
    """The first of them by name, and how many more there are: for logs and answers."""
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(map(str, named[:NAMED])) + more
