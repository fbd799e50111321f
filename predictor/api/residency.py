"""What is where in this pod, read from the books for those who ask on the admin port."""

from __future__ import annotations

import msgspec

from predictor import why
from predictor.cache import Cache
from predictor.model import ModelRef
from predictor.report import CopyReport, ModelReport, Residency, TierReport, WarmUp


def residency(
    cache: Cache, *, pod: str, up_s: float, in_flight: int, degraded: str = "", warm_up: WarmUp | None = None
) -> Residency:
    """One moment's view. Models that have no copy anywhere and are not in quarantine are the catalogue's.

    degraded  why nothing can be written to disk; "": nothing is wrong
    """
    now_s = cache.clock()
    ledger = cache.ledger
    copies: dict[ModelRef, list[CopyReport]] = {}
    for copy in ledger.copies():
        where = CopyReport(copy.place.tier.value, copy.place.device, copy.state.value, copy.size_bytes, copy.holds)
        copies.setdefault(copy.ref, []).append(where)
    for sick in cache.infirmary.quarantine:
        if isinstance(sick, ModelRef):
            copies.setdefault(sick, [])
    return Residency(
        tiers=tuple(
            TierReport(
                place.tier.value,
                place.device,
                budget,
                ledger.used_bytes(place),
                ledger.books.ready_bytes(place),
                ledger.books.headroom(place),
            )
            for place, budget in sorted(ledger.budgets.items(), reverse=True)
        ),
        models=tuple(_report(cache, ref, tuple(where), now_s) for ref, where in sorted(copies.items())),
        pod=pod,
        up_s=up_s,
        waiting=cache.waiting,
        in_flight=in_flight,
        loads=cache.loads,
        drops=cache.drops,
        alarms=(*_churning(cache, now_s), *((degraded,) if degraded else ())),
        warm_up=warm_up or WarmUp(),
    )


def _churning(cache: Cache, now_s: float) -> tuple[str, ...]:
    """Where models push each other out in circles now, in sentences."""
    alarms = (churn.look(now_s) for churn in cache.ledger.churn.values())
    return tuple(why.churning(alarm) for alarm in alarms if alarm is not None)


def _report(cache: Cache, ref: ModelRef, copies: tuple[CopyReport, ...], now_s: float) -> ModelReport:
    history, spec = cache.history(ref), cache.spec(ref)
    report = ModelReport(
        name=ref.name,
        version=ref.version,
        copies=copies,
        rate_per_s=cache.ledger.demand.rate(ref, now_s),
        loads=history.loads,
        load_s=history.load_s if history.loads else None,
        last_used_s_ago=now_s - history.last_used_s if history.last_used_s else None,
        failure=str(history.failure or ""),
        pinned=ref.name in cache.ledger.pins,
        quarantine=cache.infirmary.reason(ref),
    )
    if spec is None:  # nobody has asked for it since this pod started: it is only on disk
        return report
    need, profile = cache.profiles.need(spec), cache.profiles.of(spec)
    return msgspec.structs.replace(
        report,
        format=spec.format.value,
        tenant=need.tenant,
        weights_bytes=spec.arena_bytes,
        held_bytes=need.device_bytes,
        activation_bytes=need.activation_bytes,
        memory_source=profile.source,
    )
