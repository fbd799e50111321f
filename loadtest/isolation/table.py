"""What was seen, as tables in Markdown and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loadtest.isolation.evil import EVILS
from loadtest.isolation.scene import Played


def table(played: Sequence[Played], domains: Sequence[str]) -> str:
    """Evil models by domains: failures of the healthy, the longest silence of one of them, and whether it is back."""
    found = {(one.evil, one.domain): one for one in played}
    lines = [["evil model", *domains], ["---"] * (1 + len(domains))]
    names = dict.fromkeys(one.evil for one in played)
    lines += [[f"{name}: {EVILS[name].told}", *(_cell(found.get((name, domain))) for domain in domains)] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latencies(played: Sequence[Played], domains: Sequence[str]) -> str:
    """Domain: the healthy models' p99 before and after the first poke, as medians over the evil ones, and the worst after."""
    lines = [["domain", "asked", "failed", "p99 before, ms", "p99 after, ms", "worst p99 after, ms"], ["---"] * 6]
    for domain in domains:
        of = [one for one in played if one.domain == domain]
        if of:
            worst = max(of, key=lambda one: one.after_s)
            counts = [f"{sum(one.asked for one in of):,}", f"{sum(len(one.failed) for one in of):,}"]
            times = [f"{_middle([one.before_s for one in of]):.1f}", f"{_middle([one.after_s for one in of]):.1f}"]
            lines.append([domain, *counts, *times, f"{worst.after_s * 1e3:.1f} ({worst.evil})"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(played: Sequence[Played]) -> list[dict[str, Any]]:
    """Everything, with the answers of the evil models."""
    return [asdict(one) for one in played]


def _cell(one: Played | None) -> str:
    if one is None:
        return "-"
    return f"{len(one.failed)} of {one.asked:,}; {one.silence_s:.2f} s; {one.back or 'none'}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] * 1e3
