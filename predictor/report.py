"""What a pod tells about itself on its admin port, as one set of types for the pod that tells and the client that reads.

Fields have defaults wherever a client one version older or newer could miss them; unknown fields are ignored.
"""

from __future__ import annotations

import msgspec


class CopyReport(msgspec.Struct, frozen=True):
    """A model's weights in one place. ``state``: filling, ready or draining; ``device`` is -1 in RAM."""

    tier: str
    device: int
    state: str
    bytes: int
    leases: int = 0

    @property
    def place(self) -> str:
        """``ram`` or ``device 0``."""
        return place(self.tier, self.device)


class ModelReport(msgspec.Struct, frozen=True):
    """One model and its copies.

    rate_per_s       decayed request rate
    load_s           seconds its last load took, S3 to answer-ready; None before the first
    last_used_s_ago  None where nobody asked for it yet
    failure          why its last load failed; "" if it did not
    """

    name: str
    version: int
    format: str = ""
    copies: tuple[CopyReport, ...] = ()
    rate_per_s: float = 0.0
    loads: int = 0
    load_s: float | None = None
    last_used_s_ago: float | None = None
    failure: str = ""


class TierReport(msgspec.Struct, frozen=True):
    """One tier's room. ``reserved_bytes`` are taken, also by copies on their way; never above the budget."""

    tier: str
    device: int
    budget_bytes: int
    reserved_bytes: int
    ready_bytes: int = 0

    @property
    def place(self) -> str:
        """``ram`` or ``device 0``."""
        return place(self.tier, self.device)


class Residency(msgspec.Struct, frozen=True):
    """What is where in one pod at one moment."""

    tiers: tuple[TierReport, ...]
    models: tuple[ModelReport, ...]
    pod: str = ""
    up_s: float = 0.0
    waiting: int = 0
    in_flight: int = 0
    loads: int = 0
    drops: int = 0


def place(tier: str, device: int) -> str:
    """A tier in words: there is one RAM, and possibly several devices."""
    return tier if device < 0 else f"{tier} {device}"
