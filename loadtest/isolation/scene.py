"""One evil model beside healthy ones: play it, and count who else noticed.

What stays out: starting servers (stage.py, triton.py), the questions themselves (load.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from loadtest.isolation.evil import POKE, Evil
from loadtest.isolation.load import ASKED, Load, Seen, failures, order, poke, warm

LEAD: Final = 0.25
"""Of the time, how much is played before the first poke."""


@dataclass(frozen=True)
class Played:
    """What came of one evil model.

    asked       questions to healthy models, after the first poke
    failed      of those, which were not answered rightly
    silence_s   the longest time that one healthy model gave no right answer, from the first poke on, less the time
                between two questions: until a dead worker's models answer again
    before, after  99th percentile of healthy models' right answers, before and after the first poke, in seconds
    pokes       the evil model's own answers
    back        what it answered afterwards to a harmless question: 200, a status of refusal, or 0: nothing
    """

    evil: str
    domain: str
    asked: int
    failed: tuple[Seen, ...]
    silence_s: float
    before_s: float
    after_s: float
    pokes: tuple[Seen, ...]
    back: int


async def play(
    port: int,
    evil: Evil,
    healthy: Mapping[str, float],
    *,
    domain: str,
    seconds: float,
    rate: float = 10.0,
    pokes: int = 1 << 30,
    pause_s: float = 0.5,
    load_by: str = "",
) -> Played:
    """Keep ``healthy`` (name → right answer) under load for ``seconds``, and poke ``evil`` while they are.

    load_by  what to POST to have the evil model loaded, where a request does not do that
    """
    await warm(port, healthy)
    if evil.when == "asked":
        await warm(port, {evil.name: 4.0})
    load = Load(port, healthy, rate)
    load.start()
    await asyncio.sleep(LEAD * seconds)
    begin_s = asyncio.get_running_loop().time()
    poking = asyncio.create_task(
        poke(port, evil.name, POKE, times=pokes, seconds=(1 - LEAD) * seconds, pause_s=pause_s), name=f"poke {evil.name}"
    )
    loading = asyncio.create_task(order(port, load_by)) if load_by else None
    await asyncio.sleep((1 - LEAD) * seconds)
    if loading is not None:
        loading.cancel()
    seen = await load.stop()
    answered = await poking
    before, after = [one for one in seen if one.at_s < begin_s], [one for one in seen if one.at_s >= begin_s]
    return Played(
        evil.name,
        domain,
        len(after),
        tuple(failures(seen)),
        silence(after, begin_s, 1 / rate),
        percentile(before),
        percentile(after),
        tuple(answered),
        (await poke(port, evil.name, ASKED, times=1, seconds=1.0, pause_s=0.0))[0].status,
    )


def silence(seen: Sequence[Seen], begin_s: float, interval_s: float) -> float:
    """The longest time without a right answer of any one model, from ``begin_s`` on, beyond ``interval_s``."""
    good: dict[str, list[float]] = {one.model: [begin_s] for one in seen}
    for one in seen:
        if not one.told:
            good[one.model].append(one.at_s + one.seconds)
    end_s = max((one.at_s + one.seconds for one in seen), default=begin_s)
    for moments in good.values():
        moments.append(max(end_s, moments[-1]))  # who never came back was silent until the end
    longest_s = max((later - earlier for moments in good.values() for earlier, later in pairwise(moments)), default=0.0)
    return max(longest_s - interval_s, 0.0)


def percentile(seen: Sequence[Seen], share: float = 0.99) -> float:
    """Seconds within which ``share`` of the right answers came; 0 where there were none."""
    times = sorted(one.seconds for one in seen if not one.told)
    return times[min(int(share * len(times)), len(times) - 1)] if times else 0.0
