"""What there is to say of a model's wish: where it leads, with which credentials, and whether a pod could serve it.

Reads what the wish names, and asks for a look at the model store where nobody looked yet. What follows is rollout.py's.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from predictor.errors import DeadlineExceeded, StoreUnavailable
from warmup import credentials
from warmup.books import Books
from warmup.checks import Checks, Question
from warmup.credentials import Config
from warmup.kube import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, Forbidden, Object, Resource
from warmup.rollout import Checked, Target
from warmup.secrets import ByName
from warmup.view import Invalid, Model, Pool, Variable, Wish

Trust = Literal["auto", "data", "code"]

STORE_AWAY: Final = frozenset({StoreUnavailable.__name__, DeadlineExceeded.__name__, "InternalError"})
"""What says nothing about the location itself."""

STORE_VARIABLES: Final = (
    "AWS_",
    "S3_",
    "awsAnonymousCredential",
)
"""Beginnings of the names of a pool's variables that say where and how it reads."""


class Found(NamedTuple):
    """``scope`` and ``variables``: of the credentials, also of a location that is not served yet."""

    finding: Checked | Invalid
    scope: str = ""
    variables: Mapping[str, str] | None = None


class Findings:
    """For every model of the namespace. trust: as the setting of that name."""

    def __init__(self, by_name: ByName, checks: Checks, config: Config, trust: Trust) -> None:
        self._by_name = by_name
        self._checks = checks
        self._config = config
        self._trust = trust
        self.annotation = config.annotation

    def clear(self) -> None:
        """Forget everything: another controller writes now, or this one begins."""
        self._by_name.clear()
        for name in self._checks.names:
            self._checks.forget(name)

    async def of(self, model: Model, pool: Pool, books: Books) -> Found:
        """The finding of the moment. Raises KubeError where something cannot be read now."""
        try:
            return await self._of(model, pool, books)
        except Forbidden as error:  # only somebody who reads it can help: it must not stay in a log
            return Found(Invalid("ModelLoadFailed", error.message, passing=True))

    async def _of(self, model: Model, pool: Pool, books: Books) -> Found:
        if isinstance(model.wish, Invalid):
            self.forget(model.name)
            return Found(model.wish)
        used: set[tuple[Resource, str]] = set()
        resolved = await self._resolved(model.name, model.wish, pool, used)
        if isinstance(resolved, Invalid):
            self._by_name.keep_only(model.name, used)
            self._checks.forget(model.name)
            return Found(resolved)
        wish = model.wish
        target = Target(resolved.uri, resolved.scope, wish.format, wish.percent, wish.tenant, wish.priority)
        question = Question(
            resolved.uri,
            resolved.scope,
            wish.format,
            trusts_code=self._trusts_code(pool),
            variables=await self._variables(model.name, pool, resolved, used),
        )
        self._by_name.keep_only(model.name, used)
        return Found(self._checked(model, target, question, resolved, books), resolved.scope, resolved.variables)

    def forget(self, name: str) -> None:
        """The model is gone, or asks for nothing that could be looked at."""
        self._by_name.keep_only(name)
        self._checks.forget(name)

    def _checked(
        self, model: Model, target: Target, question: Question, resolved: credentials.Resolved, books: Books
    ) -> Checked:
        declared = books.get(model.name)
        stands = declared is not None and target.is_at(declared.target)
        known = self._checks.known(model.name, question)
        same = not resolved.scope or books.variables(resolved.scope) == resolved.variables
        if known is None and stands and same and is_ready(model.status):
            # It is in the books because it was looked at, and its status was told since: a restarted controller need not
            # look at thousands of models again. Other contents of the same credentials are a reason to.
            return Checked(target, "ok")
        known = known or self._checks.want(model.name, question)
        if known is None:
            return Checked(target, "pending")
        if known.ok or (stands and is_ready(model.status) and known.reason in STORE_AWAY):
            return Checked(target, "ok")
        return Checked(target, "failed", known.message, known.reason in STORE_AWAY)

    async def _resolved(
        self, user: str, wish: Wish, pool: Pool, used: set[tuple[Resource, str]]
    ) -> credentials.Resolved | Invalid:
        async def read(resource: Resource, name: str) -> Object | None:
            used.add((resource, name))
            return await self._by_name.get(resource, name, user)

        account_name = credentials.service_account(wish)
        account = await read(SERVICE_ACCOUNTS, account_name) if account_name else None
        secrets: dict[str, Object | None] = {}
        config_maps: dict[str, Object | None] = {}
        needed = credentials.needed(wish, self._config, account)
        for _ in range(2):  # Secrets name ConfigMaps
            for name in needed.secrets:
                secrets[name] = await read(SECRETS, name)
            for name in needed.config_maps:
                config_maps[name] = await read(CONFIG_MAPS, name)
            needed = credentials.needed(wish, self._config, account, secrets)
        return credentials.resolve(wish, self._config, account, secrets, config_maps, pool_account=pool.service_account)

    async def _variables(
        self, user: str, pool: Pool, resolved: credentials.Resolved, used: set[tuple[Resource, str]]
    ) -> Mapping[str, str]:
        """What the pool's pods will read with: see declared.CredentialShard."""
        own = resolved.variables
        if "AWS_ACCESS_KEY_ID" in own or own.get("awsAnonymousCredential", "").lower() == "true":
            return dict(own)
        laid_under: dict[str, str] = {}
        for variable in pool.environment:
            resource, name = (SECRETS, variable.secret) if variable.secret else (CONFIG_MAPS, variable.config_map)
            if variable.key and not variable.name.startswith(STORE_VARIABLES):
                continue
            if not name:
                laid_under[variable.name] = variable.value
                continue
            used.add((resource, name))
            found = await self._by_name.get(resource, name, user)
            laid_under |= _values(found, variable, encoded=resource is SECRETS)
        laid_under = {name: value for name, value in laid_under.items() if name.startswith(STORE_VARIABLES)}
        if "AWS_ENDPOINT_URL" in own:
            laid_under.pop("AWS_ENDPOINT_URL_S3", None)  # it would win
        return {**laid_under, **own}

    def _trusts_code(self, pool: Pool) -> bool:
        if self._trust != "auto":
            return self._trust == "code"
        return any(variable.name == "HEARTH_TRUST" and variable.value == "code" for variable in pool.environment)


def is_ready(status: Mapping[str, object]) -> bool:
    """Whether a status says Ready."""
    conditions = status.get("conditions")
    found = conditions if isinstance(conditions, list) else []
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in found)


def _values(found: Object | None, variable: Variable, *, encoded: bool) -> dict[str, str]:
    """What a pool's container gets from a Secret or a ConfigMap."""
    held: dict[str, str] = (found or {}).get("data") or {}
    if encoded:
        held = {key: base64.b64decode(value).decode(errors="replace") for key, value in held.items()}
    if variable.key:
        return {variable.name: held[variable.key]} if variable.key in held else {}
    return {variable.name + key: value for key, value in held.items()}
