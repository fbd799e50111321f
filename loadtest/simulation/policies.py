"""The rows of the table: which parts each way to run a pool has. Hearth's own parts are the production modules, unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadtest.simulation.rivals import Foresight, Recency, RecencyLedger
from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger


@dataclass(frozen=True)
class Policy:
    """One way to run a pool.

    told       what it is, for people
    ledger     who decides what stays; the demand it values copies by
    hot_set    what was asked outlives a pod, and a pod coming up begins with it
    retention  ``window``: the last pod goes after Knative's window; ``break-even``: after retention.keep_s; ``known``: the
               gap that comes is known, and the pod stays if that is cheaper; ``always``: it never goes
    """

    name: str
    told: str
    ledger: type[Ledger] = Ledger
    demand: type[Demand] = Demand
    hot_set: bool = True
    retention: str = "break-even"


POLICIES: Final = {
    policy.name: policy
    for policy in (
        Policy("hearth", "value, hot set, retention by break-even"),
        Policy("none", "value, but nothing outlives a pod, which goes after the window", hot_set=False, retention="window"),
        Policy("lru", "least recently used, nothing outlives a pod", RecencyLedger, Recency, hot_set=False, retention="window"),
        Policy("always-on", "value, pods that never go", retention="always"),
        Policy("belady", "knows the future: eviction, hot set and retention", demand=Foresight, retention="known"),
    )
}

POD_PER_MODEL: Final = "pod-per-model"
"""A row that is no policy: every model has a pod and a device of its own, which goes after the window."""
