"""Profiles of models that need next to nothing to compute, so that a test can count in weights alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from predictor.model import PAGE_BYTES, ModelSpec
from predictor.policy.admission import LEAST_ACTIVATION_BYTES, Peak, Profile
from predictor.policy.residency import Footprint
from predictor.profiles import Profiles
from predictor.tiers.device import Placement

HEADROOM_BYTES = LEAST_ACTIVATION_BYTES
"""What a device budget needs beside the weights."""


class KnownProfiles(Profiles):
    """Every model is measured already: it holds its weights, and any request takes the least there is."""

    def __init__(self, *, copies: bool = True, slab_bytes: int = 1, on_disk: bool = False) -> None:
        self._how = Placement(copies, slab_bytes, disk_bytes if on_disk else None)
        super().__init__(self._how, lambda: "test", None, at_once, device_bytes=1 << 60)

    def need(self, spec: ModelSpec, elements: int = 0) -> Footprint:
        return replace(super().need(spec, elements), building_bytes=0)

    def of(self, spec: ModelSpec) -> Profile:
        return self._known.get(spec.ref) or Profile(self._how.known_bytes(spec), (Peak(1 << 60, 0),))


def disk_bytes(spec: ModelSpec) -> int:
    """What a fake disk is said to take: the image and a page for the sidecar."""
    return spec.arena_bytes + PAGE_BYTES


def at_once(work: Callable[[], None]) -> None:
    work()
