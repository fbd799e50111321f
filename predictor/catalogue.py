"""Every model that can be asked for: names to specs, from listings that are remembered and read again behind requests.

``known`` is the hot path: one dictionary look-up. ``resolve`` is what a name costs that was never asked before. Names are
those of a repository's folders; beside them stand the keys of places that somebody declared (rollout.py), which look like
no name. What stays out: which version is served (reader.py), what its files mean (repository.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from predictor import repository
from predictor.errors import HearthError, InvalidModel, TrustRequired, Unavailable, UnknownModel
from predictor.model import ModelSpec
from predictor.reader import Found, Reader, Snapshot, Watch
from predictor.repository import Source
from predictor.settings import Settings
from predictor.tiers.store import ModelStore, Stores

log = logging.getLogger(__name__)

MAX_MODELS: Final = 100_000
MAX_REFUSED: Final = 10_000
MAX_LOOK_UPS: Final = 1_000
"""Names looked up at once: every one is a listing, and somebody may send random names."""

Key = tuple[str, int | None]
"""Name and version; None: the highest."""

T = TypeVar("T")


@dataclass(slots=True)
class Entry:
    """What is known of one name.

    specs      by version asked for; None: the highest
    checked_s  moment of the clock at which the listing was read
    trouble    what is wrong with it although it is served; None: nothing
    """

    checked_s: float
    specs: dict[int | None, ModelSpec] = field(default_factory=dict)
    refreshing: bool = False
    trouble: HearthError | None = None


class Refused(NamedTuple):
    """A name that leads to no spec, remembered until a moment of the clock."""

    error: HearthError
    until_s: float


class Catalogue:
    """What exists. Belongs to one event loop.

    store, source  the repository; both None: there is none, and every name is unknown
    settle_s       age of the newest object from which a version without hearth.json counts as complete
    unknown_ttl_s  how long an unknown or invalid model is remembered as such
    refresh_s      age from which a listing is read again
    clock          monotonic seconds
    """

    def __init__(
        self,
        *,
        store: ModelStore | None,
        source: Source | None,
        settle_s: float,
        unknown_ttl_s: float,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
        max_models: int = MAX_MODELS,
    ) -> None:
        self._root = Reader(store, source, settle_s, clock) if store is not None and source is not None else None
        self._declared: dict[str, Reader] = {}
        self._settle_s = settle_s
        self._unknown_ttl_s = unknown_ttl_s
        self._refresh_s = refresh_s
        self._clock = clock
        self._max_models = max_models
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._refused: OrderedDict[Key, Refused] = OrderedDict()
        self._look_ups: dict[Key, asyncio.Task[ModelSpec | HearthError]] = {}
        self._names: tuple[str, ...] = ()
        self._named_s: float | None = None  # None: never
        self._naming: asyncio.Task[tuple[str, ...] | HearthError] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    def from_settings(cls, settings: Settings, stores: Stores) -> Catalogue:
        """As the settings say. StoreRefused: the AWS variables are nonsense."""
        store = source = None
        if settings.models:
            store = stores.at(settings.bucket)
            source = Source(settings.namespace, store.origin, settings.bucket, settings.prefix, settings.trust == "code")
        return cls(
            store=store,
            source=source,
            settle_s=settings.settle_s,
            unknown_ttl_s=settings.unknown_ttl_s,
            refresh_s=settings.refresh_s,
        )

    # ---- questions -------------------------------------------------------------------------------------------

    def known(self, name: str, version: int | None) -> ModelSpec | None:
        """What was resolved before, at once; None: it has to be resolved. An old answer is renewed behind the caller."""
        entry = self._entries.get(name)
        spec = entry.specs.get(version) if entry is not None else None
        if entry is None or spec is None:
            return None
        self._entries.move_to_end(name)
        if not entry.refreshing and self._clock() - entry.checked_s >= self._refresh_s:
            entry.refreshing = True
            self._spawn(self._refresh(name, entry), f"refresh {name}")
        return spec

    async def resolve(self, name: str, version: int | None) -> ModelSpec:
        """What to serve under this name; waits while its only version is still being uploaded.

        version  None: the highest that is complete

        Raises UnknownModel, InvalidModel, TrustRequired, Unavailable (still uploading), StoreUnavailable, StoreRefused.
        """
        spec = self.known(name, version)
        if spec is not None:
            return spec
        self._check_refused(name, version)
        key = (name, version)
        look_up = self._look_ups.get(key)
        if look_up is None:
            if len(self._look_ups) >= MAX_LOOK_UPS:
                raise Unavailable(f"{MAX_LOOK_UPS} models are being looked up already: try again later", retry_after_s=1.0)
            look_up = self._look_ups[key] = self._spawn(self._look_up(key), f"look up {name}")
        # Shielded: who gives up leaves alone, and the next who asks finds the look-up under way or done.
        return _told(await asyncio.shield(look_up))

    async def names(self) -> tuple[str, ...]:
        """Every folder at the root of the repository that could be a model's, at most ``refresh_s`` old."""
        if self._root is None:
            return ()
        if self._named_s is not None and self._clock() - self._named_s < self._refresh_s:
            return self._names
        if self._naming is None:
            self._naming = self._spawn(self._list_names(self._root), "list names")
        return _told(await asyncio.shield(self._naming))

    def forget(self, name: str) -> None:
        """Its objects are not what was listed any more (ObjectChanged): who asks next makes a new listing."""
        self._entries.pop(name, None)

    def declare(self, key: str, store: ModelStore, source: Source) -> None:
        """A single model's place, known by ``key`` from now on: its name, a line break, and what tells its places apart."""
        self._declared[key] = Reader(store, source, self._settle_s, self._clock)
        self._forget_all(key)

    def withdraw(self, key: str) -> tuple[ModelSpec, ...]:
        """Forget a declared place. Returns what was known of it."""
        self._declared.pop(key, None)
        entry = self._entries.get(key)
        self._forget_all(key)
        return tuple(entry.specs.values()) if entry is not None else ()

    def specs(self, key: str) -> tuple[ModelSpec, ...]:
        """What is known of a name or a declared place; nothing is looked up, nothing renewed."""
        entry = self._entries.get(key)
        return tuple(entry.specs.values()) if entry is not None else ()

    def _forget_all(self, key: str) -> None:
        self._entries.pop(key, None)
        for refused in [refused for refused in self._refused if refused[0] == key]:
            del self._refused[refused]

    async def close(self) -> None:
        """Stop everything that runs."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- the first time --------------------------------------------------------------------------------------

    async def _look_up(self, key: Key) -> ModelSpec | HearthError:
        """Errors are returned, not raised: each of those who wait gets one of its own."""
        name, version = key
        try:
            found = await self._found(name, version)
        except HearthError as error:
            refusal = _copy(error)
            if isinstance(error, (UnknownModel, InvalidModel, TrustRequired)):
                self._refuse(key, refusal)
            return refusal
        finally:
            del self._look_ups[key]
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = Entry(self._clock())
            if len(self._entries) > self._max_models:
                self._entries.popitem(last=False)
        entry.specs[version] = found.spec
        if version is None:
            _tell(_shown(name), entry, found.passed_over)
        return found.spec

    async def _found(self, name: str, version: int | None) -> Found:
        """As the reader finds it; once more where the place was declared anew meanwhile."""
        while True:
            reader = self._declared.get(name, self._root)
            if reader is None or (reader is self._root and "\n" in name):
                raise UnknownModel(f"model {_shown(name)} is not declared any more")
            try:
                found = await reader.when_complete(_shown(name), version)
            except HearthError:
                if reader is self._declared.get(name, self._root):
                    raise
            else:
                if reader is self._declared.get(name, self._root):
                    return found

    def _check_refused(self, name: str, version: int | None) -> None:
        if name not in self._declared and not repository.is_name(name):
            raise UnknownModel(
                f"no model can be called {name[:64]!a}: "
                f"a name is 1 to {repository.MAX_NAME_LENGTH} printable characters without slashes"
            )
        if name not in self._declared and self._root is None:
            raise UnknownModel(f"there is no model {name}: none is declared under this name")
        for key in {(name, version), (name, None)}:
            refused = self._refused.get(key)
            if refused is None:
                continue
            if self._clock() >= refused.until_s:
                del self._refused[key]
            elif key == (name, version) or isinstance(refused.error, UnknownModel):
                raise _copy(refused.error)

    def _refuse(self, key: Key, error: HearthError) -> None:
        self._refused[key] = Refused(error, self._clock() + self._unknown_ttl_s)
        self._refused.move_to_end(key)
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)

    async def _list_names(self, root: Reader) -> tuple[str, ...] | HearthError:
        prefix = root.source.prefix
        try:
            listing = await root.store.listing(prefix, folders=True)
        except HearthError as error:
            return _copy(error)
        finally:
            self._naming = None
        names = (folder.removeprefix(prefix).removesuffix("/") for folder in listing.folders)
        self._names = tuple(sorted(name for name in names if repository.is_name(name)))
        self._named_s = self._clock()
        return self._names

    # ---- again and again -------------------------------------------------------------------------------------

    async def _refresh(self, name: str, entry: Entry) -> None:
        """Read the listing again: what is new follows, what is gone goes, what cannot be told stays as it was."""
        trouble: HearthError | None = None
        reader = self._declared.get(name) or self._root
        if reader is None:  # withdrawn at this very moment
            return
        try:
            snapshot = await reader.look(_shown(name))
            for wanted in tuple(entry.specs):
                trouble = await self._renew(reader, name, wanted, snapshot, entry) or trouble
        except HearthError as error:
            trouble = error
        finally:
            entry.refreshing = False
            entry.checked_s = self._clock()
        _tell(_shown(name), entry, trouble)
        if not entry.specs and self._entries.get(name) is entry:
            del self._entries[name]

    async def _renew(
        self, reader: Reader, name: str, wanted: int | None, snapshot: Snapshot, entry: Entry
    ) -> HearthError | None:
        """One spec of an entry. Returns what is wrong; None: nothing."""
        old = entry.specs[wanted]
        try:
            found = await reader.choose(_shown(name), wanted, snapshot, Watch())
        except UnknownModel as error:
            log.info("model %s is gone from the model store", old.ref)
            del entry.specs[wanted]
            self._refuse((name, wanted), _copy(error))
            return None
        except HearthError as error:
            return error
        if not isinstance(found, Found):
            return None
        if found.spec != old:
            log.info("model %s: %s@%s follows %s@%s", name, found.spec.ref, found.spec.ref.revision, old.ref, old.ref.revision)
            entry.specs[wanted] = found.spec
        return found.passed_over if wanted is None else None

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _shown(key: str) -> str:
    """A declared place by its model's name."""
    return key.partition("\n")[0]


def _tell(name: str, entry: Entry, trouble: HearthError | None) -> None:
    """Log what is wrong with a model that is served all the same: once, not at every look."""
    known = entry.trouble
    entry.trouble = None if trouble is None else _copy(trouble)
    if trouble is None:
        if known is not None:
            log.info("model %s: all is well again", name)
    # Errors that pass hold times and counts: two of them are the same trouble.
    elif type(known) is not type(trouble) or (not trouble.retryable and known.message != trouble.message):
        log.warning("model %s is served as it was known: %s", name, trouble)


def _told(found: T | HearthError) -> T:
    if isinstance(found, HearthError):
        raise _copy(found)
    return found


def _copy(error: HearthError) -> HearthError:
    """The same error without a traceback: many raise it, and a kept traceback would keep whole listings."""
    return type(error)(error.message, retry_after_s=error.retry_after_s)
