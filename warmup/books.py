"""One pool's catalogue: what is declared, what of it stands in the cluster, and the writes that make the one the other.

Secrets are written before the models that need them, and taken away after. Every write says which version it replaces:
where somebody else wrote meanwhile, that is read, and counts. What stays out: what should be declared (rollout.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from predictor.declared import (
    CREDENTIAL_SHARDS,
    MODEL_SHARDS,
    Declared,
    Location,
    credential_secret,
    credential_shard,
    model_config_map,
    model_file,
    model_shard,
)
from warmup import shards
from warmup.kube import CONFIG_MAPS, SECRETS, Conflict, KubeError, NotFound, Object, Resource
from warmup.pods import Shard
from warmup.view import Invalid, Pool

log = logging.getLogger(__name__)

WRITES_AT_ONCE: Final = 8
OWN_VERSIONS: Final = 16


class Cluster(Protocol):
    """What the books need of the Kubernetes API."""

    async def get(self, resource: Resource, name: str) -> Object:
        """Raises NotFound, KubeError."""

    async def create(self, resource: Resource, body: Object) -> Object:
        """Raises Conflict, KubeError."""

    async def replace(self, resource: Resource, body: Object) -> Object:
        """Raises Conflict, KubeError."""


class Books:
    """Of one pool. ``load`` first.

    pool            as it was seen last; replace it when it changes
    count           called with kind and outcome of every write
    secrets_read_s  moment of the loop's clock
    """

    def __init__(
        self,
        kube: Cluster,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.time,
        count: Callable[[str, str], None] = lambda _resource, _outcome: None,
    ) -> None:
        self.pool = pool
        self._left_out: dict[str, Invalid] = {}
        self.secrets_read_s = 0.0
        self._kube = kube
        self._clock = clock
        self._count = count
        self._wanted: list[dict[str, Declared]] = [{} for _ in range(MODEL_SHARDS)]
        self._written: list[Mapping[str, Declared]] = [{} for _ in range(MODEL_SHARDS)]
        self._serials = [0] * MODEL_SHARDS
        self._since: dict[str, int] = {}
        self._config_maps: list[Object | None] = [None] * MODEL_SHARDS
        self._secrets: list[Object | None] = [None] * CREDENTIAL_SHARDS
        self._scopes: list[shards.ScopesRead] = [shards.ScopesRead()] * CREDENTIAL_SHARDS
        self._resolved: dict[str, Mapping[str, str]] = {}
        self._dirty_models: set[int] = set()
        self._dirty_scopes: set[int] = set()
        self._doubted: set[int] = set()
        self._homeless: dict[str, Invalid] = {}
        self._news: set[str] = set()
        self._own_versions: deque[str] = deque(maxlen=OWN_VERSIONS * MODEL_SHARDS)

    # ---- reading ----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read everything from the cluster: the controller's only memory. Raises KubeError."""
        await _each(range(MODEL_SHARDS), self._read_models)
        await self.reread_secrets()

    async def reread_secrets(self) -> None:
        """Read the credentials again: nobody watches them. Raises KubeError."""
        await _each(range(CREDENTIAL_SHARDS), self._read_scopes)
        self.secrets_read_s = asyncio.get_running_loop().time()
        for models in self._wanted:
            for declared in models.values():
                for location in _locations(declared):
                    if location.scope and self.variables(location.scope) is None:
                        self._dirty_scopes.add(credential_shard(location.scope))

    def get(self, name: str) -> Declared | None:
        """What is declared, written or not yet."""
        return self._wanted[model_shard(name)].get(name)

    def written(self, name: str) -> Declared | None:
        """What stands in the cluster."""
        return self._written[model_shard(name)].get(name)

    def is_written(self, name: str) -> bool:
        """Whether the cluster has what is declared of a model, or cannot have it for want of room.

        Of each model alone: a neighbour's change meanwhile says nothing about this one, and nobody would ask again after it.
        """
        return self.get(name) == self.written(name) or name in self._left_out

    def since(self, name: str) -> int:
        """The serial of its shard since which its locations mean what they mean now."""
        shard = model_shard(name)
        return self._since.get(name, self._serials[shard])

    def variables(self, scope: str) -> Mapping[str, str] | None:
        """What the cluster has for a scope; None: nothing."""
        return self._scopes[credential_shard(scope)].scopes.get(scope)

    def no_room(self, name: str, scope: str) -> Invalid | None:
        """Why the catalogue cannot take the model, or its credentials; None: it can."""
        return self._left_out.get(name) or self._homeless.get(scope)

    @property
    def names(self) -> set[str]:
        """Every declared model."""
        return {name for models in self._wanted for name in models}

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._dirty_models or self._dirty_scopes or self._doubted)

    @property
    def scopes_serials(self) -> dict[str, int]:
        """Name of a credentials file → its serial in the cluster."""
        return {
            f"credentials-{shard}.json": read.serial
            for shard, read in enumerate(self._scopes)
            if self._secrets[shard] is not None
        }

    def documents(self) -> dict[str, Shard]:
        """What running pods should go by: the documents as they stand in the cluster."""
        found = {}
        for shard, config_map in enumerate(self._config_maps):
            text = ((config_map or {}).get("data") or {}).get(model_file(shard))
            if text and self._serials[shard]:
                found[model_file(shard)] = Shard(self._serials[shard], text.encode())
        return found

    # ---- changing ---------------------------------------------------------------------------------------------

    def declare(self, name: str, declared: Declared | None) -> bool:
        """From now on this; None: nothing. Whether that is other than before."""
        shard = model_shard(name)
        models = self._wanted[shard]
        old = models.get(name)
        if old == declared:
            return False
        if declared is None:
            del models[name]
            self._left_out.pop(name, None)
        else:
            models[name] = declared
        for location in (*_locations(old), *_locations(declared)):
            self._dirty_scopes.add(credential_shard(location.scope))
        self._dirty_models.add(shard)
        return True

    def resolve(self, scope: str, variables: Mapping[str, str]) -> bool:
        """A scope's variables are these now. Whether the cluster has others."""
        if not scope:
            return False
        self._resolved[scope] = variables
        if self.variables(scope) == variables:
            return False
        self._dirty_scopes.add(credential_shard(scope))
        return True

    def keep_scopes(self, scopes: Iterable[str]) -> None:
        """Only these may still be needed: forget what others say."""
        kept = set(scopes)
        for scope in self._resolved.keys() - kept:
            del self._resolved[scope]

    def seen(self, name: str, version: str) -> bool:
        """The cluster has this version of one of our ConfigMaps ("": none). Whether it is not what we wrote or read."""
        for shard in range(MODEL_SHARDS):
            if model_config_map(self.pool.name, shard) != name:
                continue
            known = _version(self._config_maps[shard])
            if version in (known, *self._own_versions) if version else not known:
                return False
            self._doubted.add(shard)
            return True
        return False

    # ---- writing ----------------------------------------------------------------------------------------------

    async def flush(self, may_write: Callable[[], bool]) -> None:
        """Write what changed. Raises KubeError: what was written by then counts, the rest is still to be written."""
        for shard in sorted(self._doubted):
            self._news |= await self._reread(shard)
            self._doubted.discard(shard)
        await _each(sorted(self._dirty_scopes), lambda shard: self._write_scopes(shard, may_write))
        await _each(sorted(self._dirty_models), lambda shard: self._write_models(shard, may_write))
        await _each(
            sorted(self._dirty_scopes), lambda shard: self._write_scopes(shard, may_write)
        )  # that nobody needs any more

    def news(self) -> set[str]:
        """Models whose declarations were written since this was asked last, also by a flush that failed, or are others now."""
        news, self._news = self._news, set()
        return news

    async def _write_models(self, shard: int, may_write: Callable[[], bool]) -> None:
        for _ in range(3):
            wanted = dict(self._wanted[shard])
            plan = shards.plan_models(self.pool, shard, wanted, self._config_maps[shard], now_ms=int(self._clock() * 1000))
            if plan.write is not None:
                if not may_write():
                    return
                try:
                    self._config_maps[shard] = await self._put(CONFIG_MAPS, plan.write)
                except Conflict:
                    log.info("%s was written by somebody else: it is read again", plan.write.body["metadata"]["name"])
                    self._news |= await self._reread(shard)
                    continue
                self._serials[shard] = plan.write.serial
            before, self._written[shard] = self._written[shard], plan.models
            changed = {name for name in before.keys() | plan.models.keys() if before.get(name) != plan.models.get(name)}
            for name in changed:
                self._date(name, before.get(name), plan.models.get(name), shard)
            changed |= self._leave_out(shard, plan.left_out)
            for name in changed:
                for location in (*_locations(before.get(name)), *_locations(plan.models.get(name))):
                    self._dirty_scopes.add(credential_shard(location.scope))
            if self._wanted[shard] == wanted:  # else somebody declared more meanwhile: the next flush
                self._dirty_models.discard(shard)
            self._news |= changed
            return
        raise Conflict(f"{model_config_map(self.pool.name, shard)} is written by somebody else again and again")

    def _date(self, name: str, before: Declared | None, after: Declared | None, shard: int) -> None:
        if after is None:
            self._since.pop(name, None)
        elif before is None or set(_locations(after)) - set(_locations(before)):
            self._since[name] = self._serials[shard]

    def _leave_out(self, shard: int, left_out: Mapping[str, Invalid]) -> set[str]:
        """Whose being left out changed."""
        before = {name: invalid for name, invalid in self._left_out.items() if model_shard(name) == shard}
        for name in before.keys() - left_out.keys():
            del self._left_out[name]
        self._left_out |= left_out
        return {name for name in before.keys() | left_out.keys() if before.get(name) != left_out.get(name)}

    async def _write_scopes(self, shard: int, may_write: Callable[[], bool]) -> None:
        for _ in range(3):
            in_use = {
                location.scope
                for models in (*self._wanted, *self._written)
                for declared in models.values()
                for location in _locations(declared)
                if location.scope and credential_shard(location.scope) == shard
            }
            resolved = {scope: variables for scope, variables in self._resolved.items() if credential_shard(scope) == shard}
            now_ms = int(self._clock() * 1000)
            plan = shards.plan_scopes(self.pool, shard, in_use, resolved, self._secrets[shard], now_ms=now_ms)
            self._dirty_scopes.discard(shard)
            self._homeless = {
                **{scope: why for scope, why in self._homeless.items() if credential_shard(scope) != shard},
                **plan.left_out,
            }
            write = plan.write
            if write is None:
                return
            try:
                if not may_write():
                    return
                self._keep_secret(shard, await self._put(SECRETS, write))
            except Conflict:
                await self._read_scopes(shard)
                continue
            finally:
                if self._scopes[shard].serial != write.serial:
                    self._dirty_scopes.add(shard)
            return
        raise Conflict(f"{credential_secret(self.pool.name, shard)} is written by somebody else again and again")

    async def _put(self, resource: Resource, write: shards.Write) -> Object:
        try:
            made = await (self._kube.replace if write.replaces else self._kube.create)(resource, write.body)
        except (Conflict, NotFound) as error:
            self._count(resource.plural, "conflict")
            raise Conflict(f"{write.body['metadata']['name']}: {error.message}") from None
        except KubeError:
            self._count(resource.plural, "failed")
            raise
        self._count(resource.plural, "ok")
        self._own_versions.append(_version(made))
        return made

    async def _reread(self, shard: int) -> set[str]:
        """What the cluster has counts, for numbers above all. The value: of whom it is other than was declared here."""
        wanted = self._wanted[shard]
        await self._read_models(shard)
        found = self._wanted[shard]
        return {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}

    async def _read_models(self, shard: int) -> None:
        found = await self._found(CONFIG_MAPS, model_config_map(self.pool.name, shard))
        read = shards.read_models(found, shard)
        if read.damage:
            log.warning("%s: %s", model_config_map(self.pool.name, shard), read.damage)
        self._config_maps[shard], self._serials[shard] = found, read.serial
        self._wanted[shard], self._written[shard] = dict(read.models), read.models
        if read.damage:
            self._dirty_models.add(shard)

    async def _read_scopes(self, shard: int) -> None:
        self._keep_secret(shard, await self._found(SECRETS, credential_secret(self.pool.name, shard)))

    def _keep_secret(self, shard: int, found: Object | None) -> None:
        self._secrets[shard] = found
        self._scopes[shard] = shards.read_scopes(found, shard)
        if self._scopes[shard].damage:
            log.warning("%s: %s", credential_secret(self.pool.name, shard), self._scopes[shard].damage)
            self._dirty_scopes.add(shard)

    async def _found(self, resource: Resource, name: str) -> Object | None:
        try:
            return await self._kube.get(resource, name)
        except NotFound:
            return None


async def _each(numbers: Iterable[int], act: Callable[[int], Awaitable[Any]]) -> None:
    """Some at once. All are tried; then the first error is raised."""
    gate = asyncio.Semaphore(WRITES_AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await act(number)

    outcomes = await asyncio.gather(*map(one, numbers), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _locations(declared: Declared | None) -> tuple[Location, ...]:
    if declared is None:
        return ()
    return (declared.target,) if declared.stable is None else (declared.target, declared.stable)


def _version(found: Object | None) -> str:
    return "" if found is None else str(found["metadata"].get("resourceVersion", ""))
