"""How a model's declaration follows its InferenceService: checked first, loaded before traffic moves, the old one kept if not.

Pure: time plays no part.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from predictor.declared import Declared, Location

ALL: Final = 100
"""Per cent."""


@dataclass(frozen=True, slots=True)
class Target:
    """A location that has no number yet, and how it is to be served. ``percent``: None where the wish does not say."""

    uri: str
    scope: str = ""
    format: str = ""
    percent: int | None = None
    tenant: str = ""
    priority: str = ""

    def is_at(self, location: Location | None) -> bool:
        """Whether this is that location."""
        return location is not None and (self.uri, self.scope, self.format) == (location.uri, location.scope, location.format)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the model store says of a target: ``ok``: listed, its format known, with the model's own credentials.

    message  why it failed
    passing  of ``failed``: nothing has to be changed for it to go better next time (the store is away)
    """

    target: Target
    state: Literal["pending", "ok", "failed"] = "pending"
    message: str = ""
    passing: bool = False


def next_declared(old: Declared | None, checked: Checked, loaded: Collection[int]) -> Declared | None:
    """What is declared next; equal to ``old`` where nothing changes. None: still nothing.

    A new location is declared once it was checked; what was served until then stays beside it as ``stable``. Going back to
    that one needs no check: it was served. Until the check went well, all that is declared stays, percent and labels too.

    loaded  numbers of locations that have taken over: status.proven, of reports that go by ``old`` or newer
    """
    target = checked.target
    if old is not None and target.is_at(old.stable):
        back = msgspec.structs.replace(old, target=old.stable, stable=old.target)
        return settled(_served(back, target), loaded)
    now = settled(old, loaded)
    if now is not None and target.is_at(now.target):
        return settled(_served(now, target), loaded)
    if checked.state != "ok":
        return now
    if now is None:
        return _served(Declared(_numbered(target, 1)), target)
    # A target that no pod ever loaded gives way to the next one; what it was to replace is what has proven itself.
    return _served(Declared(_numbered(target, _highest(now) + 1), now.stable or now.target), target)


def settled(old: Declared | None, loaded: Collection[int]) -> Declared | None:
    """``old`` without ``stable`` where the target has taken over. All that happens to a model whose wish is invalid."""
    if old is None or old.stable is None or old.percent < ALL or old.target.number not in loaded:
        return old
    highest = _highest(old)
    return msgspec.structs.replace(old, stable=None, highest=highest if highest > old.target.number else 0)


def _served(declared: Declared, target: Target) -> Declared:
    """As the target says; a part of the traffic needs something else that gets the rest."""
    percent = ALL if target.percent is None or declared.stable is None else target.percent
    return msgspec.structs.replace(declared, percent=percent, tenant=target.tenant, priority=target.priority)


def _numbered(target: Target, number: int) -> Location:
    return Location(target.uri, number, target.scope, target.format)


def _highest(declared: Declared) -> int:
    return max(declared.target.number, declared.stable.number if declared.stable is not None else 0, declared.highest)
