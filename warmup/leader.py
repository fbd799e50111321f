"""Which of several controllers acts: the one that holds the namespace's Lease. The others watch, and write nothing.

The rules are client-go's. A holder renews every 2 s and stops by itself when it could not for 10 s; others take over when
they saw the Lease unchanged for the 15 s that it says. All spans are measured by the own monotonic clock: what time the
other's record claims is never compared with ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from warmup.kube import LEASES, Conflict, Kube, KubeError, NotFound, Object

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Of a lease, in seconds.

    duration_s  others wait this long after its last sign of life; whole seconds: the API has no others
    renew_s     the holder itself believes in it for this long after its last renewal; less than ``duration_s``
    retry_s     between two renewals, or two looks at another's lease
    """

    duration_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0


@dataclass(frozen=True)
class _Seen:
    """Another's record, and when it first looked like this, by our clock."""

    record: tuple[str, str, int]
    at_s: float


class Leader:
    """Holds the Lease, or waits for it.

    name      of the Lease
    identity  of this process: no other, of any pod at any time, may have the same

    Ask ``is_leader()`` before every write.
    """

    def __init__(self, kube: Kube, name: str, identity: str, *, terms: Terms | None = None) -> None:
        self.name, self.identity = name, identity
        self._kube = kube
        self._terms = terms or Terms()
        assert self._terms.retry_s < self._terms.renew_s < self._terms.duration_s, f"{self._terms}"
        self._until_s = 0.0
        self._held: Object | None = None  # as last written: renewing it is one request
        self._seen: _Seen | None = None
        self._led = self._troubled = False
        self._callbacks: list[Callable[[bool], None]] = []

    def is_leader(self) -> bool:
        """Whether this process may write now. Turns false by itself when renewals fail."""
        return asyncio.get_running_loop().time() < self._until_s

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Call it with true when the Lease was won and with false when it was lost. Within ``retry_s``; ask to be sure."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Hold or wait, until cancelled; then give the Lease back, so that the next one need not wait."""
        try:
            while True:
                await self._attempt()
                self._tell()
                await asyncio.sleep(self._terms.retry_s)
        finally:
            held, self._until_s = self.is_leader(), 0.0
            self._tell()
            if held:
                await self._release()

    async def _attempt(self) -> None:
        """Take or renew the Lease, if it can be had. A request may last half of what a renewal may."""
        asked_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._terms.renew_s / 2):
                self._held = await self._write(self._held or await self._read())
        except Conflict:
            self._held = None  # another was faster, or somebody edited it: the next look tells
        except (KubeError, TimeoutError) as error:
            self._held = None
            if not self._troubled:
                log.warning("lease %s: %s", self.name, str(error) or "no answer in time")
            self._troubled = True
        else:
            self._troubled = False
            # From before the request: whoever else looks cannot have seen the renewal earlier.
            self._until_s = asked_s + self._terms.renew_s if self._held else 0.0

    async def _read(self) -> Object | None:
        """The Lease as it is; None: there is none."""
        try:
            return await self._kube.get(LEASES, self.name)
        except NotFound:
            return None

    async def _write(self, lease: Object | None) -> Object | None:
        """Make the Lease ours, or renew it. None: it is another's."""
        if lease is None:
            return await self._kube.create(LEASES, {"metadata": {"name": self.name}, "spec": self._spec({}, _moment())})
        spec: dict[str, Any] = lease.get("spec") or {}
        if spec.get("holderIdentity") not in (None, "", self.identity) and not self._expired(spec):
            return None
        return await self._kube.replace(LEASES, lease | {"spec": self._spec(spec, _moment())})

    def _expired(self, spec: dict[str, Any]) -> bool:
        """Whether its holder gave no sign for as long as its record promises one."""
        now_s = asyncio.get_running_loop().time()
        record = (str(spec.get("holderIdentity")), str(spec.get("renewTime")), int(spec.get("leaseTransitions") or 0))
        if self._seen is None or self._seen.record != record:
            self._seen = _Seen(record, now_s)
        return now_s - self._seen.at_s > float(spec.get("leaseDurationSeconds") or self._terms.duration_s)

    def _spec(self, old: dict[str, Any], now: str) -> Object:
        ours = old.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._terms.duration_s)),
            "acquireTime": old["acquireTime"] if ours and old.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (not ours and bool(old)),
        }

    async def _release(self) -> None:
        """Leave the Lease without a holder. It is only a courtesy: without it the next one waits for 15 s."""
        try:
            async with asyncio.timeout(self._terms.retry_s):
                lease = await self._kube.get(LEASES, self.name)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self.identity:
                    await self._kube.replace(LEASES, lease | {"spec": spec | {"holderIdentity": "", "leaseDurationSeconds": 1}})
        except (KubeError, TimeoutError) as error:
            log.warning("lease %s is not given back: %s", self.name, str(error) or "no answer in time")

    def _tell(self) -> None:
        leads = self.is_leader()
        if leads != self._led:
            self._led = leads
            log.info("lease %s: %s", self.name, "this controller acts" if leads else "this controller only watches")
            for callback in self._callbacks:
                callback(leads)


def _moment() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
