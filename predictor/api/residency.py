"""What is where in this pod, read from the books for those who ask on the admin port."""

from __future__ import annotations

from predictor.cache import Cache
from predictor.model import ModelRef
from predictor.report import CopyReport, ModelReport, Residency, TierReport


def residency(cache: Cache, *, pod: str, up_s: float, in_flight: int) -> Residency:
    """One moment's view. Models without a copy anywhere are not in it: those are the catalogue's."""
    now_s = cache.clock()
    ledger = cache.ledger
    copies: dict[ModelRef, list[CopyReport]] = {}
    for copy in ledger.copies():
        where = CopyReport(copy.place.tier.value, copy.place.device, copy.state.value, copy.size_bytes, copy.holds)
        copies.setdefault(copy.ref, []).append(where)
    return Residency(
        tiers=tuple(
            TierReport(place.tier.value, place.device, budget, ledger.used_bytes(place), ledger.ready_bytes(place))
            for place, budget in ledger.budgets.items()
        ),
        models=tuple(_report(cache, ref, tuple(where), now_s) for ref, where in sorted(copies.items())),
        pod=pod,
        up_s=up_s,
        waiting=cache.waiting,
        in_flight=in_flight,
        loads=cache.loads,
        drops=cache.drops,
    )


def _report(cache: Cache, ref: ModelRef, copies: tuple[CopyReport, ...], now_s: float) -> ModelReport:
    history = cache.history(ref)
    return ModelReport(
        name=ref.name,
        version=ref.version,
        format=cache.spec(ref).format.value,
        copies=copies,
        rate_per_s=cache.ledger.demand.rate(ref, now_s),
        loads=history.loads,
        load_s=history.load_s if history.loads else None,
        last_used_s_ago=now_s - history.last_used_s if history.last_used_s else None,
        failure=str(history.failure or ""),
    )
