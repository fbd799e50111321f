"""One hop of one model between tiers: what a Start or a Drop of the ledger means to the tiers, tier by tier.

What stays out: when a hop is taken and what follows from it (cache.py), how each tier moves its bytes (tiers/).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from predictor.errors import OutOfMemory
from predictor.model import ModelRef, ModelSpec, Tier
from predictor.policy.residency import Place
from predictor.tiers.device import DeviceTier
from predictor.tiers.disk_files import DiskFault
from predictor.tiers.ram import RamTier
from predictor.tiers.scattered import Scattered
from predictor.wire import Loaded

log = logging.getLogger(__name__)


class DiskTier(Protocol):
    """What is asked of the disk; the real one (tiers/disk.py) and the tests' fake keep the same contract."""

    async def write(self, spec: ModelSpec, image: Scattered) -> None:
        """Keep the model's image. All or nothing. Raises DiskFault."""

    async def read(self, spec: ModelSpec, image: Scattered) -> None:
        """Fill the image, verified. Raises DiskFault: what it holds then means nothing."""

    async def drop(self, ref: ModelRef) -> None:
        """Delete the copy. Idempotent. Raises DiskFault: it is still there."""


@dataclass(frozen=True, slots=True)
class Hops:
    """The tiers of a pod. ``disk`` is None where nothing is kept on disk."""

    ram: RamTier
    devices: Sequence[DeviceTier]
    disk: DiskTier | None = None

    async def fetch(self, spec: ModelSpec, background: Callable[[], bool], damaged: Callable[[DiskFault], None] | None) -> str:
        """Into RAM. Returns where from: ``disk`` or ``s3``.

        background  see RamTier.fetch
        damaged     told that the disk copy cannot be read, before the model store is asked instead; None: no disk copy
        """
        start = "s3"

        async def read(image: Scattered) -> bool:
            nonlocal start
            if damaged is None or self.disk is None:
                return False
            try:
                await self.disk.read(spec, image)
            except DiskFault as fault:
                log.warning("model %s is fetched from the model store: %s", spec.ref, fault)
                damaged(fault)
                return False
            start = "disk"
            return True

        await self.ram.fetch(spec, background, read)
        return start

    async def keep(self, spec: ModelSpec) -> None:
        """From RAM to disk. Raises DiskFault."""
        assert self.disk is not None, f"{spec.ref} is to be kept on a disk that is not there"
        await self.disk.write(spec, self.ram.image(spec.ref))

    async def promote(self, spec: ModelSpec, place: Place, *, probe: bool, make_room: Callable[[], Awaitable[bool]]) -> Loaded:
        """From RAM to a device.

        probe      measure what the model takes
        make_room  called when the device has no memory although the books said so; True: try once more

        Raises LoadFailed, OutOfMemory, WorkerDied.
        """
        device = self.devices[place.device]
        try:
            return await device.promote(spec, probe=probe)
        except OutOfMemory as error:
            log.warning("no memory to build model %s in %s: %s", spec.ref, place, error)
            if not await make_room():
                raise
            return await device.promote(spec, probe=probe)

    async def drop(self, ref: ModelRef, place: Place) -> None:
        """Free what a copy takes."""
        match place.tier:
            case Tier.DISK:
                assert self.disk is not None, f"{ref} is on a disk that is not there"
                try:
                    await self.disk.drop(ref)
                except DiskFault as fault:  # the books go on: a disk that keeps what it should not is full sooner
                    log.warning("%s", fault)
            case Tier.RAM:
                await self.ram.drop(ref)
            case Tier.DEVICE:
                await self.devices[place.device].drop(ref)
