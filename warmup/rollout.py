"""How a model's declaration follows its InferenceService: checked first, loaded before traffic moves, the old one kept if not.

Pure: time plays no part.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from predictor.declared import Declared, Location


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
    """What is declared next; ``old`` itself where nothing changes. None: still nothing.

    loaded  numbers of locations that running pods report as loaded, from reports that go by ``old`` or newer
    """
    raise NotImplementedError
