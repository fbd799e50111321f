"""The catalogue's documents: from what is declared, and what stands in the cluster, to the writes that are needed.

Pure: the moment is an argument. One shard at a time, so that one model's change costs one shard's work. The ConfigMaps are
also the controller's only memory: a document that cannot be read as a whole is read model by model.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from predictor.declared import (
    MAX_SHARD_BYTES,
    CredentialShard,
    Declared,
    ModelShard,
    credential_file,
    credential_secret,
    credential_shard,
    decode,
    encode,
    model_config_map,
    model_file,
    model_shard,
)
from warmup.objects import Object, name_of, part, text
from warmup.view import POOL_LABEL, Invalid, Pool

ENVELOPE_BYTES: Final = 100
"""Of a document around its models: braces, format, a serial of 20 digits."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelsRead:
    """What a ConfigMap says. ``serial`` is 0 where it says none; ``damage``: what could not be read; "": nothing."""

    serial: int = 0
    models: Mapping[str, Declared] = field(default_factory=dict)
    damage: str = ""


@dataclass(frozen=True, slots=True)
class ScopesRead:
    """What a Secret says, the same."""

    serial: int = 0
    scopes: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """One object to create, or, where ``replaces`` is a resourceVersion, to replace.

    body    the whole object
    file    the document's name in it, and in pods
    serial  the document's
    """

    body: dict[str, Any] = field(repr=False)
    file: str
    serial: int
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class ScopesPlan:
    """The same for credentials. ``left_out``: scopes (or changes of scopes) for which there is no room."""

    write: Write | None
    left_out: Mapping[str, Invalid]


@dataclass(frozen=True, slots=True)
class ModelsPlan:
    """What a shard comes to.

    write     None: the cluster has it already
    models    what is declared once it is written: also for those that are left out, where they were declared before
    left_out  models (or changes of models) for which there is no room
    """

    write: Write | None
    models: Mapping[str, Declared]
    left_out: Mapping[str, Invalid]


def read_models(config_map: Object | None, shard: int) -> ModelsRead:
    """Read a shard's ConfigMap; None: there is none."""
    if config_map is None:
        return ModelsRead()
    document = text(part(config_map, "data"), model_file(shard)).encode()
    try:
        read = decode(document, ModelShard)
    except ValueError as error:
        serial, models = _salvaged(document, "models", Declared)
        return ModelsRead(serial, models, f"{name_of(config_map)}: {model_file(shard)}: {error}")
    return ModelsRead(read.serial, read.models)


def read_scopes(secret: Object | None, shard: int) -> ScopesRead:
    """Read a shard's Secret; None: there is none."""
    if secret is None:
        return ScopesRead()
    try:
        document = base64.b64decode(text(part(secret, "data"), credential_file(shard)), validate=True)
    except ValueError:
        document = b""
    try:
        read = decode(document, CredentialShard)
    except ValueError as error:
        serial, scopes = _salvaged(document, "scopes", dict[str, str])
        return ScopesRead(serial, scopes, f"{name_of(secret)}: {credential_file(shard)}: {error}")
    return ScopesRead(read.serial, read.scopes)


def plan_models(
    pool: Pool, shard: int, models: Mapping[str, Declared], config_map: Object | None, *, now_ms: int
) -> ModelsPlan:
    """What to write so that the shard declares exactly ``models``, all of which belong to it."""
    assert all(model_shard(name) == shard for name in models), f"not all belong to shard {shard}: {sorted(models)}"
    read = read_models(config_map, shard)
    fitting, left_out = _fitting(models, read.models)
    if not read.damage and fitting == read.models and _belongs(config_map, pool):
        return ModelsPlan(None, fitting, left_out)
    document = ModelShard(max(read.serial + 1, now_ms), fitting)
    body = _object(pool, "ConfigMap", model_config_map(pool.name, shard))
    body["data"] = {model_file(shard): encode(document).decode()}
    return ModelsPlan(_write(body, model_file(shard), document.serial, config_map), fitting, left_out)


def plan_scopes(
    pool: Pool,
    shard: int,
    in_use: Collection[str],
    resolved: Mapping[str, Mapping[str, str]],
    secret: Object | None,
    *,
    now_ms: int,
) -> ScopesPlan:
    """What to write so that the shard holds exactly the scopes in use, all of which belong to it.

    resolved  what Secrets say now; a scope in use that is missing here (its Secret cannot be read) keeps what it had
    """
    assert all(credential_shard(scope) == shard for scope in in_use), f"not all belong to shard {shard}: {sorted(in_use)}"
    read = read_scopes(secret, shard)
    known = {**read.scopes, **{scope: dict(variables) for scope, variables in resolved.items()}}
    scopes, left_out = _fitting({scope: known[scope] for scope in in_use if scope in known}, read.scopes)
    if not read.damage and scopes == read.scopes and _belongs(secret, pool):
        return ScopesPlan(None, left_out)
    document = CredentialShard(max(read.serial + 1, now_ms), scopes)
    body = _object(pool, "Secret", credential_secret(pool.name, shard))
    body |= {"type": "Opaque", "data": {credential_file(shard): base64.b64encode(encode(document)).decode()}}
    return ScopesPlan(_write(body, credential_file(shard), document.serial, secret), left_out)


def scopes_in_use(models: Mapping[str, Declared]) -> set[str]:
    """Scopes that declared locations name, without the pool's own."""
    named = {one.scope for declared in models.values() for one in (declared.target, declared.stable) if one is not None}
    return named - {""}


def _fitting(entries: Mapping[str, T], before: Mapping[str, T]) -> tuple[dict[str, T], dict[str, Invalid]]:
    """What there is room for: first everything as it was before, then changes and newcomers in their names' order."""
    fitting = {name: before[name] for name in entries if name in before}
    used = ENVELOPE_BYTES + sum(_size(name, entry) for name, entry in fitting.items())
    left_out = {}
    for name in sorted(entries):
        if fitting.get(name) == entries[name]:
            continue
        held = _size(name, fitting[name]) if name in fitting else 0
        needs = _size(name, entries[name])
        if used - held + needs > MAX_SHARD_BYTES:
            left_out[name] = Invalid(
                "InvalidPredictorSpec",
                f"the part of the pool's catalogue that {name} belongs to is full: {len(fitting)} entries take {used} of "
                f"{MAX_SHARD_BYTES} bytes, and this one needs {needs}: move models to another pool, or delete some",
                passing=True,
            )
            continue
        used += needs - held
        fitting[name] = entries[name]
    return fitting, left_out


def _size(name: str, entry: object) -> int:
    """Bytes of an entry in its document, with colon and comma."""
    return len(msgspec.json.encode(name)) + len(msgspec.json.encode(entry)) + 2


def _salvaged(document: bytes, key: str, kind: type[T]) -> tuple[int, dict[str, T]]:
    """Of a document that is none as a whole, the serial and the entries that are."""
    try:
        found = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
    except ValueError:
        return 0, {}
    serial = _read(found.get("serial"), int)
    entries = _read(found.get(key), dict[str, msgspec.Raw]) or {}
    read = {name: _read(entry, kind) for name, entry in entries.items()}
    return max(serial or 0, 0), {name: entry for name, entry in read.items() if entry is not None}


def _read(raw: msgspec.Raw | None, kind: type[T]) -> T | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=kind)
    except ValueError:
        return None


def _object(pool: Pool, kind: str, named: str) -> dict[str, Any]:
    """Of a pool: deleted with it."""
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": named,
            "namespace": pool.namespace,
            "labels": {"app.kubernetes.io/managed-by": "hearth", POOL_LABEL: pool.name},
            "ownerReferences": [pool.owner.reference()],
        },
    }


def _belongs(item: Object | None, pool: Pool) -> bool:
    """Whether it goes when the pool does, and not before. A pool that was deleted and made again is another owner."""
    return item is None or part(item, "metadata").get("ownerReferences") == [pool.owner.reference()]


def _write(body: dict[str, Any], file: str, serial: int, before: Object | None) -> Write:
    version = text(part(before or {}, "metadata"), "resourceVersion")
    if before is not None:
        body["metadata"]["resourceVersion"] = version
    return Write(body, file, serial, version)
