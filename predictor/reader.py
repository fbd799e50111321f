"""Reads one model's part of the repository: lists it, reads its hearth.json, and picks the version to serve.

Remembers manifests by ETag, and nothing else: that is catalogue.py's. What a listing means is repository.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from predictor import manifest as hearth_json
from predictor import repository
from predictor.errors import HearthError, InvalidModel, ObjectChanged, Unavailable, UnknownModel
from predictor.manifest import Manifest
from predictor.model import ModelSpec
from predictor.repository import Source, Version
from predictor.tiers.store import ModelStore

MAX_LOOKS: Final = 6
"""Listings until giving up on a version that is too young each time, or changes between listing and manifest."""

MAX_MANIFESTS: Final = 4096
MAX_KEPT_BYTES: Final = 16 << 10
"""Longer manifests are read again at every look: a manifest of 1 MiB times 4096 is no cache."""

_NAMED_IN_ERRORS: Final = 20


class Snapshot(NamedTuple):
    """One listing of one model. ``date_s``: S3's clock."""

    versions: dict[int, Version]
    date_s: float


class Found(NamedTuple):
    """What to serve, and why it is not a higher version; None: it is the highest."""

    spec: ModelSpec
    passed_over: HearthError | None = None


class TooYoung(NamedTuple):
    """Nothing that was asked for is complete yet. ``wait_s``: as long as that should last; ``why``: for an error."""

    wait_s: float
    why: str


@dataclass(slots=True)
class Watch:
    """Versions that were too young: their digests, and since when they are the same by our own clock."""

    seen: dict[int, tuple[str, float]] = field(default_factory=dict)

    def unchanged_s(self, version: Version, now_s: float) -> float:
        """How long nothing in this version changed before our eyes."""
        digest, since_s = self.seen.get(version.number, ("", now_s))
        if digest != version.digest:
            since_s = now_s
            self.seen[version.number] = (version.digest, now_s)
        return now_s - since_s


@dataclass(slots=True)
class Reader:
    """Looks at one repository.

    settle_s  age of the newest object from which a version without hearth.json counts as complete
    clock     monotonic seconds
    """

    store: ModelStore
    source: Source
    settle_s: float
    clock: Callable[[], float] = time.monotonic
    _manifests: OrderedDict[tuple[str, str], Manifest] = field(default_factory=OrderedDict)

    async def when_complete(self, name: str, wanted: int | None) -> Found:
        """List until what is asked for is complete. Raises UnknownModel, InvalidModel, TrustRequired, Unavailable, Store*."""
        watch = Watch()
        begin_s = self.clock()
        young = TooYoung(0.0, "")
        for _ in range(MAX_LOOKS):
            await asyncio.sleep(young.wait_s)
            snapshot = await self.look(name)
            try:
                found = await self.choose(name, wanted, snapshot, watch)
            except ObjectChanged as changed:  # between the listing and hearth.json
                young = TooYoung(0.0, str(changed))
                continue
            if isinstance(found, Found):
                return found
            young = found
        raise Unavailable(
            f"model {name} is still being uploaded after {self.clock() - begin_s:.0f} s: {young.why}",
            retry_after_s=max(1.0, self.settle_s),
        )

    async def look(self, name: str) -> Snapshot:
        """One listing, of exactly ``prefix/name/``: ``model1`` is no part of ``model10``.

        Of a declared model's key: as a folder, or as the one object it is.
        """
        source = self.source
        if source.key is None:
            folder = f"{source.prefix}{name}/"
            listing = await self.store.listing(folder)
            return Snapshot(repository.versions(name, folder, listing), listing.date_s)
        if source.key.endswith(".onnx"):
            listing = await self.store.listing(source.key)
            found = repository.single(name, source.key, listing, source.number)
            if found:
                return Snapshot(found, listing.date_s)
        folder = f"{source.key}/" if source.key else ""
        listing = await self.store.listing(folder)
        return Snapshot(repository.versions(name, folder, listing, source.number), listing.date_s)

    async def choose(self, name: str, wanted: int | None, snapshot: Snapshot, watch: Watch) -> Found | TooYoung:
        """The version wanted; None: the highest that is complete, past those that lack something.

        One that is wrong rather than incomplete (its manifest cannot be read, it needs trust) is an error, also when an older
        one could be served: a pod from zero must not quietly go back to it. Raises ObjectChanged and as ``when_complete``.
        """
        lack: HearthError | None = None
        young: TooYoung | None = None
        for version in self._candidates(name, wanted, snapshot):
            spec, lacking, eligible_s = repository.resolve(version, await self._manifest(version), self.source, self.settle_s)
            unchanged_s = watch.unchanged_s(version, self.clock())
            # Unchanged before our own eyes is complete, too: S3's clock may be wrong, or an object dated in the future.
            wait_s = min(eligible_s - snapshot.date_s, self.settle_s - unchanged_s)
            if wait_s > 0:
                why = lacking or f"the newest object of version {version.number} is younger than {self.settle_s:g} s"
                if young is None or wait_s < young.wait_s:
                    young = TooYoung(wait_s, f"{why} (HEARTH_SETTLE_S)")
            elif spec is not None:
                return Found(spec, lack)
            else:
                lack = lack or InvalidModel(lacking)
        if young is not None:
            return young
        assert lack is not None, f"{name}: none of {sorted(snapshot.versions)} was looked at"
        raise lack

    def _candidates(self, name: str, wanted: int | None, snapshot: Snapshot) -> Sequence[Version]:
        versions = snapshot.versions
        if not versions:
            if self.source.key is not None:
                raise UnknownModel(f"there is nothing at {self.source.where}")
            raise UnknownModel(f"there is no model {name} in {self.source.where}")
        if wanted is None:
            return [versions[number] for number in sorted(versions, reverse=True)]
        if wanted not in versions:
            highest = ", ".join(str(number) for number in sorted(versions, reverse=True)[:_NAMED_IN_ERRORS])
            raise UnknownModel(f"model {name} has no version {wanted}; the highest it has: {highest}")
        return [versions[wanted]]

    async def _manifest(self, version: Version) -> Manifest | None:
        """The version's hearth.json, read once for every ETag; None: it has none."""
        written = version.manifest
        if written is None:
            return None
        key = (written.key, written.etag)
        if key in self._manifests:
            self._manifests.move_to_end(key)
            return self._manifests[key]
        where = f"s3://{self.source.bucket}/{written.key}"
        if written.size_bytes > hearth_json.MAX_BYTES:
            raise InvalidModel(f"{where} has {written.size_bytes} bytes, {hearth_json.MAX_BYTES} are allowed")
        document = await self.store.read(written.key, written.etag, limit_bytes=hearth_json.MAX_BYTES)
        read = hearth_json.parse(document, where)
        if len(document) <= MAX_KEPT_BYTES:
            self._manifests[key] = read
            if len(self._manifests) > MAX_MANIFESTS:
                self._manifests.popitem(last=False)
        return read
