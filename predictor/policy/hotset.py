"""What a pod coming up should have first: what several pods noted, added up, and in the order of its value.

The same number that evicts (eviction.py) says what is loaded first: otherwise a model that was fetched ahead of a request
would be the first to go again. Pure: time is an argument. What the documents are is heat.py's, who writes and reads them
the pod's and the controller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from predictor.heat import MAX_MODELS, Heat, Warmth
from predictor.policy.demand import Demand
from predictor.policy.eviction import value

Key: TypeAlias = tuple[str, int]
"""Name and version."""

ASSUMED_BYTES: Final = 1_000_000_000
"""Of a model whose size nobody told."""

ASSUMED_BASE_S: Final = 1.0
ASSUMED_BYTES_PER_S: Final = 2e9
"""Of a load that nobody measured. What was measured takes its place with the first load; until then a size alone decides."""


def worth(warmth: Warmth) -> float:
    """Its value (eviction.py), with assumptions where nothing was measured."""
    size_bytes = warmth.size_bytes or ASSUMED_BYTES
    load_s = warmth.load_s or ASSUMED_BASE_S + size_bytes / ASSUMED_BYTES_PER_S
    return value((warmth.fast + warmth.slow) / 2, load_s, size_bytes)


def ordered(models: Iterable[Warmth]) -> list[Warmth]:
    """The most valuable first; of those alike the one that is asked more, then by name and version.

    models  with their rates of one moment
    """
    return sorted(models, key=lambda one: (-worth(one), -one.fast - one.slow, one.name, one.version))


def counted(heats: Iterable[Heat]) -> tuple[Heat, ...]:
    """Those that add up: of each pod what it told last, without pods whose demand another one has taken over.

    The later of two that claim to have taken each other over counts. The latest come first.
    """
    latest: dict[str, Heat] = {}
    for heat in heats:
        known = latest.get(heat.pod)
        if known is None or (heat.final, heat.at_s) > (known.final, known.at_s):
            latest[heat.pod] = heat
    takers: dict[str, list[Heat]] = {}
    for heat in latest.values():
        for pod in heat.absorbed:
            if pod != heat.pod:
                takers.setdefault(pod, []).append(heat)

    def gone(heat: Heat) -> bool:
        return any(
            taker.pod not in heat.absorbed or (taker.at_s, taker.pod) > (heat.at_s, heat.pod)
            for taker in takers.get(heat.pod, ())
        )

    ranked = sorted(latest.values(), key=lambda heat: (-heat.at_s, heat.pod))
    return tuple(heat for heat in ranked if not gone(heat))


def merged(heats: Iterable[Heat], now_s: float, limit: int = MAX_MODELS) -> list[Warmth]:
    """What the pods noted together, as it is at ``now_s``: the ``limit`` most valuable, in their order.

    Loads and sizes are those of the latest document that tells any. The order of the documents changes nothing but rounding,
    because decayed rates are sums (demand.py).
    """
    demand = Demand()
    measured: dict[Key, tuple[float, int]] = {}
    for heat in counted(heats):
        at_s = min(heat.at_s, now_s)  # a pod whose clock is ahead must not make the others' demand old
        for one in heat.models:
            model = (one.name, one.version)
            demand.add(model, one.fast, one.slow, at_s, [at_s - ago_s for ago_s in one.visits])
            load_s, size_bytes = measured.get(model, (0.0, 0))
            measured[model] = load_s or one.load_s, size_bytes or one.size_bytes
    found = []
    for key, fast, slow in demand.rates(now_s):
        assert isinstance(key, tuple), f"noted above: {key!r}"
        name, version = key
        visits = tuple(max(0, int(now_s - moment_s)) for moment_s in demand.visits(key))
        found.append(Warmth(name, version, fast, slow, *measured[name, version], visits))
    return ordered(found)[:limit]
