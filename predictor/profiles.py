"""What every model takes on this pod's kind of device: measured when it is first built, kept across restarts.

Keyed by content (ModelRef.revision is a digest of the objects' ETags), device kind and runtime version: a new torch may
need more. What stays out: measuring (engine/memory.py), what follows from the numbers (policy/admission.py, ledger.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from predictor.model import ModelRef, ModelSpec
from predictor.policy.admission import Peak, Profile, assumed
from predictor.policy.residency import Footprint
from predictor.tiers.device import Placement
from predictor.wire import Loaded

log = logging.getLogger(__name__)

REMEMBERED: Final = 100_000
MAX_FILES: Final = 10_000
"""Profiles kept on disk; beyond that the oldest are removed at the next start. Each takes one block of the file system."""


class _Document(msgspec.Struct, frozen=True):
    held_bytes: int
    peaks: tuple[Peak, ...]
    model: str = ""


class Profiles:
    """Profiles by model.

    placement     how models lie on this pod's devices
    device_bytes  budget of the largest device: an assumption never claims more than that
    runtime       tells device kind and runtime versions, for example ``cpu torch 2.9.0``; asked in a thread
    folder        where they are kept; None: only in memory
    submit        runs a function that writes a file, in a thread and in order
    """

    def __init__(
        self,
        placement: Placement,
        runtime: Callable[[], str],
        folder: Path | None,
        submit: Callable[[Callable[[], None]], object],
        *,
        device_bytes: int,
    ) -> None:
        self._placement = placement
        self._tell_runtime = runtime
        self._runtime = ""
        self._folder = folder
        self._submit = submit
        self._device_bytes = device_bytes
        self._known: dict[ModelRef, Profile] = {}
        self._stored: dict[str, Profile] = {}

    def read(self) -> None:
        """Read what earlier processes measured. Blocks: for a thread, before the first request."""
        if self._folder is None:
            return
        self._runtime = self._tell_runtime()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            for file in files[:-MAX_FILES]:
                file.unlink()
        except OSError as error:
            log.warning("profiles in %s cannot be read, models are measured anew: %s", self._folder, error)
            return
        for file in files[-MAX_FILES:]:
            try:
                document = msgspec.json.decode(file.read_bytes(), type=_Document)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("%s cannot be read, its model is measured anew: %s", file, error)
            else:
                self._stored[file.stem] = Profile(document.held_bytes, document.peaks, source="stored")

    def of(self, spec: ModelSpec) -> Profile:
        """What is known of a model; assumptions where nothing is."""
        known = self._known.get(spec.ref)
        if known is None:
            stored = self._stored.get(self._key(spec.ref)) if self._stored else None
            known = self._keep(spec.ref, stored or self._assumed(spec))
        return known

    def _assumed(self, spec: ModelSpec) -> Profile:
        """Refused is only what is known not to fit; what might not is loaded alone, and measured."""
        profile = assumed(self._placement.assumed_bytes(spec))
        alone_bytes = self._device_bytes - profile.activation_bytes(spec.arena_bytes)
        return replace(profile, held_bytes=max(min(profile.held_bytes, alone_bytes), self._placement.known_bytes(spec)))

    def need(self, spec: ModelSpec, elements: int = 0) -> Footprint:
        """What the model takes in every place, with room for a request of so many input elements."""
        profile = self.of(spec)
        activation_bytes = profile.activation_bytes(spec.arena_bytes, elements)
        need = self._placement.footprint(spec, profile.held_bytes, activation_bytes)
        # How much building takes is an estimate: it has others leave, and refuses nothing.
        return replace(need, building_bytes=min(need.building_bytes, self._device_bytes - activation_bytes))

    def larger_need(self, spec: ModelSpec, device_bytes: int) -> Footprint | None:
        """Twice what a build was foreseen to need, at most all of a device; None: it had that already."""
        need = self.need(spec)
        most_bytes = device_bytes - need.activation_bytes
        booked_bytes = max(need.device_bytes, need.building_bytes)
        if booked_bytes >= most_bytes:
            return None
        return replace(need, building_bytes=min(max(2 * booked_bytes, need.ram_bytes), most_bytes))

    def must_probe(self, spec: ModelSpec) -> bool:
        """Whether the next build should measure."""
        return self.of(spec).source == "assumed"

    def built(self, spec: ModelSpec, loaded: Loaded) -> None:
        """A worker built the model; what it measured replaces what was assumed or stored."""
        profile = self.of(spec)
        if loaded.held_bytes < 0 or profile.source != "assumed":
            return  # measured once, beside nothing else: later builds reuse what others freed, and seem to take less
        measured = Profile(max(loaded.held_bytes, self._placement.known_bytes(spec)), profile.peaks, profile.exhausted)
        for peak in loaded.peaks:
            measured = measured.with_peak(Peak(peak.elements, peak.bytes))
        self._learned(spec.ref, profile, measured)

    def ran(self, spec: ModelSpec, elements: int, peak_bytes: int) -> None:
        """A request larger than any before was measured while it ran."""
        profile = self.of(spec)
        self._learned(spec.ref, profile, profile.with_peak(Peak(elements, peak_bytes)))

    def exhausted(self, spec: ModelSpec, elements: int) -> None:
        """A request found no memory on its device although the books had kept room for it."""
        profile = self.of(spec)
        had_bytes = profile.activation_bytes(spec.arena_bytes, elements)
        self._keep(spec.ref, profile.after_exhaustion(elements, had_bytes, self._device_bytes - profile.held_bytes))

    def _learned(self, ref: ModelRef, before: Profile, after: Profile) -> None:
        self._keep(ref, after)
        known = before.source != "assumed" and (before.held_bytes, before.peaks) == (after.held_bytes, after.peaks)
        if self._folder is None or known:
            return
        file = self._folder / f"{self._key(ref)}.json"
        document = msgspec.json.encode(_Document(after.held_bytes, after.peaks, str(ref)))

        def write() -> None:
            partial = file.with_suffix(".partial")
            with contextlib.suppress(OSError):  # a full or lost disk: measured again after the next start
                partial.write_bytes(document)
                Path(partial).replace(file)

        self._submit(write)

    def _keep(self, ref: ModelRef, profile: Profile) -> Profile:
        self._known.pop(ref, None)
        self._known[ref] = profile
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return profile

    def _key(self, ref: ModelRef) -> str:
        return hashlib.sha256(f"{ref.revision}\n{self._runtime}".encode()).hexdigest()[:32]
