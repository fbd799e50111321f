"""Objects that are read by name and never watched: Secrets, ServiceAccounts, CA bundles. Kept for a while, read again.

A Role can allow ``get`` of Secrets without ``list`` and ``watch``: then nobody who takes over the controller learns of
one that no model names. Contents stay here and in what is made of them; nothing is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from warmup.kube import Kube, NotFound, Object, Resource

AT_ONCE: Final = 8


@dataclass(slots=True)
class _Read:
    """``found``: None: there is none of that name. ``users``: the models that asked for it."""

    resource: Resource
    name: str
    found: Object | None
    users: set[str] = field(default_factory=set)


class ByName:
    """Reads through; what models use is read again by ``refresh``.

    on_change  called with a model's name when something that it uses is other than before
    """

    def __init__(self, kube: Kube, on_change: Callable[[str], None]) -> None:
        self._kube = kube
        self._on_change = on_change
        self._read: dict[tuple[str, str], _Read] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[_Read]] = {}
        self._uses: dict[str, set[tuple[str, str]]] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def get(self, resource: Resource, name: str, user: str) -> Object | None:
        """The object as it was at most one ``refresh`` ago; None: there is none. Raises KubeError."""
        key = (resource.plural, name)
        read = self._read.get(key)
        if read is None:
            if key not in self._reading:
                task = self._reading[key] = asyncio.create_task(
                    self._fetch(resource, name), name=f"read {resource.plural}/{name}"
                )
                task.add_done_callback(lambda done: (self._reading.pop(key, None), done.cancelled() or done.exception()))
            read = await asyncio.shield(self._reading[key])
            read = self._read.setdefault(key, read)
        read.users.add(user)
        self._uses.setdefault(user, set()).add(key)
        return read.found

    def keep_only(self, user: str, used: Iterable[tuple[Resource, str]] = ()) -> None:
        """The model uses these, and nothing else any more."""
        keys = {(resource.plural, name) for resource, name in used}
        for key in self._uses.get(user, set()) - keys:
            read = self._read.get(key)
            if read is not None:
                read.users.discard(user)
                if not read.users:
                    del self._read[key]
        if keys:
            self._uses[user] = keys
        else:
            self._uses.pop(user, None)

    def clear(self) -> None:
        """Forget everything."""
        self._read.clear()
        self._uses.clear()

    async def refresh(self) -> None:
        """Read again what is in use. Raises KubeError; what was read by then counts."""
        for outcome in await asyncio.gather(*map(self._again, list(self._read.items())), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _again(self, item: tuple[tuple[str, str], _Read]) -> None:
        key, old = item
        new = await self._fetch(old.resource, old.name)
        kept = self._read.get(key)
        if kept is None or _version(kept.found) == _version(new.found):
            return
        kept.found = new.found
        for user in kept.users:
            self._on_change(user)

    async def _fetch(self, resource: Resource, name: str) -> _Read:
        async with self._gate:
            try:
                return _Read(resource, name, await self._kube.get(resource, name))
            except NotFound:
                return _Read(resource, name, None)


def _version(found: Object | None) -> str:
    return "" if found is None else str(found["metadata"].get("resourceVersion", ""))
