"""What a model takes on a device beside its weights, as far as it was measured, and what a request of some size will take.

Pure: plain numbers in, plain numbers out. What stays out: measuring (engine/memory.py), keeping (profiles.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

LEAST_ACTIVATION_BYTES: Final = 64 << 10
ASSUMED_SHARE: Final = 8
"""Until a model was measured, its computations are taken to need an eighth of its weights, at least 64 KiB."""

EXHAUSTED_FACTOR: Final = 2
"""A computation that ran out of memory is given room for so many times what was foreseen, once."""

POINTS: Final = 16
"""Peaks kept per model: more would tell nothing that the largest do not."""


class Peak(NamedTuple):
    """Bytes that a computation over ``elements`` input elements took at its highest, beside the model's own."""

    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One model's memory on one kind of device.

    held_bytes  what it holds there once built, beside weights that it shares with RAM
    peaks       measured computations, by elements, each with more bytes than the one before it
    exhausted   a computation that did not fit, and what it is given the next time; None: there was none
    source      ``measured`` in this process, ``stored`` by an earlier one, or ``assumed``
    """

    held_bytes: int
    peaks: tuple[Peak, ...] = ()
    exhausted: Peak | None = None
    source: str = "measured"

    @property
    def limit(self) -> int:
        """Elements up to which requests need no look at memory; -1 where nothing was measured."""
        measured = self.peaks[-1].elements if self.peaks else -1
        return measured if self.exhausted is None else min(measured, self.exhausted.elements - 1)

    def activation_bytes(self, weights_bytes: int, elements: int = 0) -> int:
        """What a computation over ``elements`` needs, and in any case what the largest one measured did.

        Beyond what was measured it grows with the elements: too little for attention over long sequences, which the
        retry after an exhausted device is for.
        """
        if self.peaks:
            last = self.peaks[-1]
            foreseen = last.bytes
            if elements > last.elements:
                foreseen = -(-last.bytes * elements // max(last.elements, 1))
        else:
            foreseen = weights_bytes // ASSUMED_SHARE
        if self.exhausted is not None and elements >= self.exhausted.elements:
            foreseen = max(foreseen, self.exhausted.bytes)
        return max(foreseen, LEAST_ACTIVATION_BYTES)

    def with_peak(self, peak: Peak) -> Profile:
        """After another measured computation."""
        points = sorted({*self.peaks, peak})
        rising: list[Peak] = []
        for point in points:
            size_bytes = max(point.bytes, rising[-1].bytes if rising else 0)
            if rising and rising[-1].elements == point.elements:
                rising.pop()
            rising.append(Peak(point.elements, size_bytes))
        exhausted = self.exhausted if self.exhausted and peak.elements < self.exhausted.elements else None
        return replace(self, peaks=tuple(rising[-POINTS:]), exhausted=exhausted, source="measured")

    def after_exhaustion(self, elements: int, had_bytes: int, most_bytes: int) -> Profile:
        """After a computation that failed although it had ``had_bytes``; ``most_bytes``: what a device can give at all.

        It is given the whole device once, and foreseen to need more than that if it fails there, too.
        """
        more_bytes = had_bytes * EXHAUSTED_FACTOR
        return replace(self, exhausted=Peak(elements, min(more_bytes, most_bytes) if had_bytes < most_bytes else more_bytes))


def assumed(held_bytes: int) -> Profile:
    """Before anything was measured. ``held_bytes``: what is known beforehand, weights that are copied."""
    return Profile(held_bytes, source="assumed")
