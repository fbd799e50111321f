"""The catalogue's documents: from what is declared, and what stands in the cluster, to the writes that are needed.

Pure: the moment is an argument. One shard at a time, so that one model's change costs one shard's work. The ConfigMaps are
also the controller's only memory: a document that cannot be read as a whole is read model by model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from predictor.declared import Declared
from warmup.view import Invalid, Object, Pool


@dataclass(frozen=True, slots=True)
class ModelsRead:
    """What a ConfigMap says. ``serial`` is 0 where it says none; ``damage``: what could not be read, as a sentence; "": all was."""

    serial: int = 0
    models: Mapping[str, Declared] = field(default_factory=dict)
    damage: str = ""


@dataclass(frozen=True, slots=True)
class ScopesRead:
    """What a Secret says, the same."""

    serial: int = 0
    scopes: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
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
    raise NotImplementedError


def read_scopes(secret: Object | None, shard: int) -> ScopesRead:
    """Read a shard's Secret; None: there is none."""
    raise NotImplementedError


def plan_models(
    pool: Pool, shard: int, models: Mapping[str, Declared], config_map: Object | None, *, now_ms: int
) -> ModelsPlan:
    """What to write so that the shard declares exactly ``models``, all of which belong to it."""
    raise NotImplementedError


def plan_scopes(
    pool: Pool,
    shard: int,
    in_use: Collection[str],
    resolved: Mapping[str, Mapping[str, str]],
    secret: Object | None,
    *,
    now_ms: int,
) -> Write | None:
    """What to write so that the shard holds the scopes in use, all of which belong to it; None: it does.

    resolved  what Secrets say now; a scope in use that is missing here (its Secret cannot be read) keeps what it had
    """
    raise NotImplementedError


def scopes_in_use(models: Mapping[str, Declared]) -> set[str]:
    """Scopes that declared locations name, without the pool's own."""
    raise NotImplementedError
