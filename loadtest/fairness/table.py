"""What was seen, as tables in Markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import reduce
from statistics import median
from typing import Any

from loadtest.fairness.books import Compute, together
from loadtest.fairness.scenes import Flood, Scene, Seen, Shares
from loadtest.fairness.verdicts import Verdict, fair, flood, shares
from loadtest.peers.wrk import Figures


def latencies(seen: Iterable[Seen]) -> str:
    """One line for each client of each scene: medians of the rounds; requests and failures are summed."""
    by_client: dict[tuple[str, str], list[Figures]] = {}
    for one in seen:
        by_client.setdefault((one.scene, one.client), []).append(one.figures)
    lines = [["scene", "client", "requests/s", "p50 ms", "p99 ms", "n", "failed"], ["---"] * 7]
    for (scene, client), runs in by_client.items():
        rate, p50_us, p99_us = (median(values) for values in zip(*(_figures(run) for run in runs), strict=True))
        known = all(run.requests for run in runs)
        told = [f"{p50_us / 1e3:,.2f}", f"{p99_us / 1e3:,.2f}"] if known else ["unknown", "unknown"]
        counts = [f"{sum(run.requests for run in runs):,}", f"{sum(run.failed for run in runs):,}"]
        lines.append([scene, client, f"{rate:,.1f}", *told, *counts])
    return _markdown(lines)


def verdicts(seen: Sequence[Seen], scenes: Sequence[Scene]) -> str:
    """One line for each scene that was played and has a bar, or a flood whose batch is worth telling."""
    lines = [["scene", "device", "verdict"], ["---"] * 3]
    for scene in scenes:
        of = [one for one in seen if one.scene == scene.name]
        if of and isinstance(scene, Flood):
            verdict = str(judge_flood(of)) if scene.judged else f"none, for comparison: {judge_flood(of).told}"
            lines.append([scene.name, _batch(_had(of, "under", "flooded")), verdict])
        elif of and isinstance(scene, Shares):
            found = shares({model: _had(of, model, model).device_s for model in scene.weights}, scene.weights)
            told = "; ".join(
                f"{model} {share.had:.1%} of {share.due:.1%}, {_batch(_had(of, model, model))}"
                for model, share in found.items()
            )
            lines.append([scene.name, told, str(judge_shares(of, scene))])
    return _markdown(lines)


def judge_flood(seen: Sequence[Seen]) -> Verdict:
    """Of one scene: medians of the rounds against the bar; every round must have had enough requests."""
    idle = [one.figures for one in seen if one.client == "idle"]
    under = [one.figures for one in seen if one.client == "under"]
    return flood(
        idle_p99_us=median(run.p99_us for run in idle),
        flooded_p99_us=median(run.p99_us for run in under),
        batch_s=_had(seen, "under", "flooded").batch_s,
        requests=min(run.requests for run in (*idle, *under)),
        failed=sum(run.failed for run in (*idle, *under)),
    )


def judge_shares(seen: Sequence[Seen], scene: Shares) -> Verdict:
    """Of one scene: the device seconds of all rounds together."""
    return fair(shares({model: _had(seen, model, model).device_s for model in scene.weights}, scene.weights))


def as_json(seen: Iterable[Seen]) -> list[dict[str, Any]]:
    """Every client of every round, for `-o`."""
    return [
        {
            "round": one.round,
            "scene": one.scene,
            "client": one.client,
            **asdict(one.figures),
            "computed": {model: asdict(had) for model, had in one.computed.items()},
        }
        for one in seen
    ]


def _had(seen: Sequence[Seen], client: str, model: str) -> Compute:
    """What a model had of the device while a client was seen, all rounds together."""
    nothing = Compute(0.0, 0.0, None)
    windows = [one.computed.get(model, nothing) for one in seen if one.client == client]
    return reduce(together, windows) if windows else nothing


def _batch(had: Compute) -> str:
    if not had.batches:
        return "no batch"
    rows = f" of {had.batch_rows:.1f} rows" if had.batch_rows is not None else ""
    return f"{had.batches:,.0f} batches{rows}, {had.batch_s * 1e3:.2f} ms each"


def _figures(run: Figures) -> tuple[float, float, float]:
    return run.requests_per_s, run.p50_us, run.p99_us


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
