"""What is played: a flood beside a quiet model, models with weights, one priority beside another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.fairness.books import Compute, between
from loadtest.fairness.stage import LOOK_S, Load, Plan, Stage, asked_in, named, stage
from loadtest.peers.workloads import WORKLOADS, Encoding, Workload, made
from loadtest.peers.wrk import Figures, Wrk

FLOOD: Final = 64
HIGH: Final = 2
MAX_BATCH: Final = 8
WIDE: Final = Workload(
    "wide",
    {"kind": "mlp", "widths": [784, 2048, 2048, 10]},
    (1, 784),
    (1, 10),
    ("binary",),
    (1,),
    "MLP 784-2048-2048-10: a batch takes longer than reading its bodies, so that the device is what is scarce",
)


@dataclass(frozen=True)
class Seen:
    """One client in one scene of one round.

    client    who asked, for the table
    figures   its latencies
    computed  what each model had of the device meanwhile
    """

    round: int
    scene: str
    client: str
    figures: Figures
    computed: Mapping[str, Compute]


@dataclass(frozen=True)
class Flood:
    """`quiet` alone, then beside `flooded` with FLOOD connections. ``judged``: the bar holds for it."""

    name: str
    workload: Workload
    encoding: Encoding
    judged: bool

    def play(self, plan: Plan, wrk: Wrk, number: int) -> Iterator[Seen]:
        """Yields `idle` and `under`, both seen by the quiet client, and `flood`."""
        case = made(asked_in(self.workload, self.encoding))
        quiet, flooded = named(case, "quiet"), named(case, "flooded")
        declared = {name: declares() for name in ("quiet", "flooded")}
        with stage(plan, wrk, [quiet, flooded], declared) as server:
            asks = Load(quiet, self.encoding, 1)
            yield Seen(number, self.name, "idle", server.timed(asks), {})
            yield from _beside(server, number, self.name, asks, Load(flooded, self.encoding, FLOOD), clients=("under", "flood"))


@dataclass(frozen=True)
class Shares:
    """Models that are all kept overloaded, and what of the device each gets.

    models       by name: what is asked, how much of the device is due to it, and its max_batch_size
    connections  to each
    windows      how many times ``--seconds`` are looked at: a batch more or less must not decide
    """

    name: str
    models: Mapping[str, tuple[Workload, float, int]]
    connections: int
    windows: int

    @property
    def weights(self) -> dict[str, float]:
        """By model."""
        return {name: weight for name, (_, weight, _) in self.models.items()}

    def play(self, plan: Plan, wrk: Wrk, number: int) -> Iterator[Seen]:
        """Yields one for each model; ``computed`` is the same in all: the window in which every client was asking."""
        cases = {name: named(made(asked_in(workload, "binary")), name) for name, (workload, _, _) in self.models.items()}
        declared = {name: declares(batch, weight=weight) for name, (_, weight, batch) in self.models.items()}
        loads = [Load(case, "binary", self.connections) for case in cases.values()]
        with stage(plan, wrk, list(cases.values()), declared) as server:
            with server.under(loads) as asking:
                time.sleep(LOOK_S)  # until every queue is full
                before = server.books()
                time.sleep(min(self.windows * plan.seconds, plan.longest_seconds))
                had = between(before, server.books())
            for name, (figures,) in zip(cases, asking, strict=True):
                yield Seen(number, self.name, name, figures, had)


@dataclass(frozen=True)
class Priorities:
    """HIGH connections alone, then beside FLOOD connections of batch priority, to the same model and to another.

    The same is seen once more without any priority: what the header is worth is the difference.
    """

    name: str
    workload: Workload

    def play(self, plan: Plan, wrk: Wrk, number: int) -> Iterator[Seen]:
        """Yields `alone`, and for the same and for the other model: with priorities, and without."""
        case = made(asked_in(self.workload, "binary"))
        asked, other = named(case, "asked"), named(case, "other")
        with stage(plan, wrk, [asked, other], {name: declares() for name in ("asked", "other")}) as server:
            alone = server.timed(Load(asked, "binary", HIGH, "high"))
            yield Seen(number, self.name, "alone", alone, {})
            for where, flooded in (("same model", asked), ("other model", other)):
                for high, low in (("high", "batch"), ("", "")):
                    told = f"{where}, {high} beside {low}" if high else f"{where}, no priorities"
                    asks, floods = Load(asked, "binary", HIGH, high), Load(flooded, "binary", FLOOD, low)
                    yield from _beside(server, number, self.name, asks, floods, clients=(told, f"{told}: the flood"))


Scene = Flood | Shares | Priorities

SCENES: Final[Mapping[str, Scene]] = {
    scene.name: scene
    for scene in (
        Flood("flood-resnet18", WORKLOADS["resnet18"], "binary", judged=True),
        Flood("flood-mlp-binary", WORKLOADS["mlp"], "binary", judged=False),
        Flood("flood-mlp-json", WORKLOADS["mlp"], "json", judged=False),
        Shares("shares-equal-costs", {f"weight{weight}": (WIDE, weight, MAX_BATCH) for weight in (1, 2, 4)}, 32, 1),
        # Four images a batch: with eight, a window of 30 s would hold so few batches that one more is 2 % of a share.
        Shares("shares-unequal-costs", {"resnet18": (WORKLOADS["resnet18"], 1, 4), "wide": (WIDE, 1, MAX_BATCH)}, 64, 3),
        Priorities("priorities", WIDE),
    )
}


def declares(max_batch_size: int = MAX_BATCH, *, weight: float = 1.0) -> dict[str, Any]:
    """A model's part of hearth.json that fairness is about. All of a flood may wait: what is refused floods nobody."""
    return {
        "batching": {"max_batch_size": max_batch_size, "max_delay_ms": 0},
        "weight": weight,
        "priority": "normal",
        "limits": {"concurrency": 512, "queue": 512},
    }


def models(scene: Scene) -> Sequence[Workload]:
    """What the scene asks, for the caption."""
    if isinstance(scene, Shares):
        return list({workload.name: workload for workload, _, _ in scene.models.values()}.values())
    return [scene.workload]


def _beside(server: Stage, number: int, scene: str, asks: Load, floods: Load, *, clients: tuple[str, str]) -> Iterator[Seen]:
    with server.under([floods]) as flooding:
        time.sleep(LOOK_S)  # until the queue is full
        before = server.books()
        figures = server.timed(asks)
        had = between(before, server.books())
    yield Seen(number, scene, clients[0], figures, had)
    yield Seen(number, scene, clients[1], flooding[0][0], had)
