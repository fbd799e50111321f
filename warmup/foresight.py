"""Looks ahead for every pool, once a second: takes in what its pods tell, keeps what it learned, says what shall be.

What it says, warming.py carries out: ``wishes`` and ``retentions``. Every change of mind becomes an Event and a line of the
pool's history, which is kept with what was learned. What stays out: every decision (ahead.py and what is beneath it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from predictor import human
from predictor.report import Happened
from predictor.telemetry import Telemetry
from warmup import activity, ahead, calendar
from warmup.activity import Activity, Seen, Watcher
from warmup.ahead import Outlook, Retention
from warmup.forecast import Forecast
from warmup.history import History, pool_key
from warmup.kube import Forbidden, KubeError
from warmup.pods import Followed, PodRef
from warmup.pools import Pool, Wishes
from warmup.prewarm import Revision, Tell, Wish, allowed, asked, means, stronger

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
KEY: Final = "history.json.gz"
WHAT: Final = "history"
"""Of the ConfigMap ``hearth-POOL-history``."""

THINK_S: Final = 5.0
"""An outlook is good for so long: it takes 6 ms (13 with 32 calendar entries) on two busy cores, and a window that opens 5 s
late opened early enough."""

SAVE_S: Final = 10.0
"""How often what was learned is offered to be written; how often it is, its memory decides."""

KEPT_EACH_S: Final = 120.0
"""How often one pool's is written at most: what is learned between two writes is lost with a controller that is killed."""

LOAD_AGAIN_S: Final = 10.0
"""After what was learned before could not be read: nothing is looked at until then, or it would be written over."""


class Memory(Protocol):
    """Where what is learned of one pool outlives the controller; kept.Kept."""

    pool: Pool

    async def load(self) -> Activity | None:
        """What stands there; None: nothing. Raises KubeError."""

    async def write(self, document: bytes, may_write: Callable[[], bool], *, at_once: bool = False) -> bool:
        """Have it stand there, not too often; whether it does. Raises KubeError, ValueError."""


@dataclass(slots=True)
class _Prospect:
    """One pool.

    wish       the strongest, hearth warm's included, as the pool may have it; ``means``: what holds its pods
    again_s    when to try to read its memory again
    saved_s    when what was learned was last offered to its memory
    thought_s  when the outlook was made, for ``wishes``
    """

    memory: Memory
    watcher: Watcher | None = None
    outlook: Outlook = field(default_factory=lambda: Outlook(None, None, None))
    wish: Wish | None = None
    means: str = ""
    again_s: float = 0.0
    saved_s: float = 0.0
    thought_s: float = 0.0
    wishes: Wishes = field(default_factory=Wishes)
    trouble: str = ""


@dataclass(frozen=True)
class Scene:
    """What is looked at. ``revision``: a Revision by name; ``created_s``: a pod's creation by name; None: not known."""

    pools: Callable[[], Mapping[str, Pool]]
    pods: Callable[[str], Iterable[Followed]]
    revision: Callable[[str], Revision | None]
    created_s: Callable[[str], float | None]


@dataclass(frozen=True)
class Bounds:
    """See settings.py."""

    weight: float = 0.0
    longest_s: float = 3600.0


class Foresight:
    """Of one namespace.

    may_act   whether this controller is the one that writes, and all that it looks at was read
    remember  a pool's memory
    announce  makes an Event of a ``Tell``; its loss is no error
    clock     seconds since the epoch
    """

    def __init__(
        self,
        scene: Scene,
        *,
        may_act: Callable[[], bool],
        remember: Callable[[Pool], Memory],
        announce: Callable[[Tell], Awaitable[None]],
        history: History,
        telemetry: Telemetry,
        clock: Callable[[], float],
        bounds: Bounds | None = None,
    ) -> None:
        self._scene = scene
        self._may_act = may_act
        self._remember = remember
        self._announce = announce
        self._history = history
        self._telemetry = telemetry
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._prospects: dict[str, _Prospect] = {}

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each for ever."""
        return [self.run()]

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            try:
                await self.tick()
            except Exception:  # the root of a task: what is wrong with one pool's past must not end the controller
                log.exception("looking ahead")
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Have what was learned stand in the cluster, if this controller still may write it."""
        for name, prospect in self._prospects.items():
            if prospect.watcher is not None:
                try:
                    await prospect.memory.write(activity.encode(prospect.watcher.activity), self._may_act, at_once=True)
                except (KubeError, ValueError) as error:
                    log.warning("history of pool %s: %s", name, error)
        self._prospects.clear()

    # ---- what follows -----------------------------------------------------------------------------------------

    def wishes(self) -> dict[str, Wish]:
        """By pool: what the calendar and the forecast want."""
        found = {name: prospect.outlook.wish for name, prospect in self._prospects.items()}
        return {name: wish for name, wish in found.items() if wish is not None}

    def retentions(self) -> dict[str, Retention]:
        """By Revision: how long its last pod stays after Knative's window."""
        found = {}
        for name, prospect in self._prospects.items():
            pool = self._scene.pools().get(name)
            revision = self._scene.revision(pool.revision) if pool is not None else None
            if revision is not None and prospect.watcher is not None and prospect.outlook.kept_s is not None:
                seconds = ahead.retained_s(prospect.outlook.kept_s, revision.window_s)
                found[revision.name] = Retention(name, seconds, _grounds(prospect.watcher.activity))
        return found

    def unsure(self) -> set[str]:
        """Revisions of pools that were not looked at yet, as after a restart: what they have is neither wanted nor unwanted."""
        known = {name for name, prospect in self._prospects.items() if prospect.thought_s}
        return {pool.revision for name, pool in self._scene.pools().items() if name not in known}

    def told(self, pool: str) -> list[str]:
        """How it stands, in sentences."""
        prospect = self._prospects.get(pool)
        if prospect is None or prospect.watcher is None:
            return []
        past, outlook, now_s = prospect.watcher.activity, prospect.outlook, self._clock()
        lines = []
        if prospect.wish is not None:
            lines.append(f"{_wish_words(prospect.wish, prospect.means)}: {prospect.wish.why}")
        known = self._scene.pools().get(pool)
        following = calendar.next_after(known.wishes.calendar, now_s) if known is not None else None
        if following is not None:
            lines.append(f"next in the calendar: {_moment(following.begins_s)}, {following.entry.text}")
        if outlook.forecast is not None:
            state = "on" if outlook.forecast.verdict in ("on", "quiet") else "off"
            lines.append(f"forecast {state}: {outlook.forecast.why}")
        if outlook.kept_s is not None:
            lines.append(f"its last pod is kept for {human.span(outlook.kept_s)} after a request: {_grounds(past)}")
        starts = len(past.starts_s)
        lines.append(f"a start takes up to {human.span(past.start_p90_s)} (9 of 10; {starts} measured)")
        return lines

    # ---- looking ----------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look at all pools. Never raises what the API server may say: the next look is soon."""
        if not self._may_act():
            self._prospects.clear()
            self._measure()
            return
        now_s = self._clock()
        pools = {name: pool for name, pool in self._scene.pools().items() if pool.service}
        for name in self._prospects.keys() - pools.keys():
            del self._prospects[name]
        for name, pool in pools.items():
            prospect = self._prospects.get(name)
            if prospect is None or prospect.memory.pool.owner.uid != pool.owner.uid:
                prospect = self._prospects[name] = _Prospect(self._remember(pool))
            prospect.memory.pool = pool
            try:
                await self._look(pool, prospect)
            except (KubeError, ValueError) as error:
                if str(error) != prospect.trouble:
                    log.warning("history of pool %s: %s", name, error)
                prospect.trouble = str(error)
                if isinstance(error, Forbidden) and not prospect.thought_s:
                    prospect.thought_s = now_s  # that will not pass by itself: what `hearth warm` set must be released again
        self._measure()

    def happened(self, ref: PodRef, events: Iterable[Happened]) -> None:
        """A pod told what happened in it; its first load ends its cold start."""
        prospect = self._prospects.get(ref.pool)
        if prospect is None or prospect.watcher is None:
            return
        for one in events:
            if one.event.what == "loaded":
                prospect.watcher.loaded(ref.name, one.event.seconds)

    async def tell(self, told: Tell) -> None:
        """An Event, a line of the pool's history, and one of what is kept."""
        now_s = self._clock()
        self._history.own(pool_key(told.pool), told.reason, told.message, now_s)
        prospect = self._prospects.get(told.pool)
        if prospect is not None and prospect.watcher is not None:
            prospect.watcher.activity.note(now_s, told.reason, told.message)
        await self._announce(told)

    async def _look(self, pool: Pool, prospect: _Prospect) -> None:
        now_s = self._clock()
        if prospect.watcher is None:
            if now_s < prospect.again_s:
                return
            prospect.again_s = now_s + LOAD_AGAIN_S
            found = await prospect.memory.load() or Activity()
            known = {(noted.at_s, noted.what) for noted in self._history.of(pool_key(pool.name))}
            for note in found.notes:
                if (note.at_s, note.what) not in known:
                    self._history.own(pool_key(pool.name), note.what, note.text, note.at_s)
            prospect.watcher = Watcher(found)
        watcher, revision = prospect.watcher, self._scene.revision(pool.revision)
        if revision is None:
            return  # it has none that is ready: nothing runs, and nothing could be set
        pods = [self._seen(pod) for pod in self._scene.pods(pool.name)]
        watcher.look(pods, now_s, target=revision.target)
        if now_s - prospect.thought_s >= THINK_S or pool.wishes != prospect.wishes:
            self._think(pool, prospect, watcher, revision, now_s)
        for told in _news(pool, prospect, watcher.activity, revision, now_s):
            await self.tell(told)
        if now_s - prospect.saved_s >= SAVE_S:
            prospect.saved_s = now_s
            await prospect.memory.write(activity.encode(watcher.activity), self._may_act)
        prospect.trouble = ""

    def _think(self, pool: Pool, prospect: _Prospect, watcher: Watcher, revision: Revision, now_s: float) -> None:
        prospect.thought_s, prospect.wishes = now_s, pool.wishes
        prospect.outlook = ahead.outlook(
            pool.wishes.calendar,
            watcher.activity,
            now_s=now_s,
            weight=self._bounds.weight if pool.wishes.weight is None else pool.wishes.weight,
            longest_s=self._bounds.longest_s,
            window_s=revision.window_s,
            forecasts=pool.wishes.forecasts,
        )

    def _seen(self, pod: Followed) -> Seen:
        report = pod.report
        created_s = self._scene.created_s(pod.ref.name)
        if report is None:
            return Seen(pod.ref.name, created_s, answers=False)
        return Seen(
            pod.ref.name,
            created_s,
            serving=report.state == "serving",
            asked=report.asked,
            asked_s_ago=report.asked_s_ago,
            running=report.running,
        )

    def _measure(self) -> None:
        telemetry = self._telemetry
        for gauge in ("wanted_pods", "retention_seconds", "forecast_precision"):
            telemetry.gauge(f"hearth_controller_{gauge}").clear()
        for name, prospect in self._prospects.items():
            if prospect.wish is not None:
                telemetry.gauge("hearth_controller_wanted_pods", name, prospect.wish.reason).set(prospect.wish.pods)
            if prospect.outlook.kept_s is not None:
                telemetry.gauge("hearth_controller_retention_seconds", name).set(prospect.outlook.kept_s)
            if prospect.outlook.forecast is not None and prospect.outlook.forecast.precision is not None:
                telemetry.gauge("hearth_controller_forecast_precision", name).set(prospect.outlook.forecast.precision)


def _news(pool: Pool, prospect: _Prospect, past: Activity, revision: Revision, now_s: float) -> list[Tell]:
    """What is other than at the last look, or than what was told before a restart."""
    news = []
    own = asked(pool)
    wish = stronger(own if own is not None and own.until_s > now_s else None, prospect.outlook.wish)
    prospect.wish = None if wish is None else replace(wish, pods=allowed(wish, revision))
    prospect.means = "" if prospect.wish is None else means(revision, prospect.wish.pods)
    key = wish.key if wish is not None else ""
    if key != past.wish:
        news.append(_wished(pool.name, prospect.wish, prospect.means, now_s))
        past.wish = key
    foreseen = prospect.outlook.forecast
    verdict = "" if foreseen is None else "on" if foreseen.verdict == "quiet" else foreseen.verdict
    if verdict != past.verdict:
        if foreseen is not None:
            news.append(_judged(pool.name, foreseen, now_s))
        past.verdict = verdict
    return news


def _wished(pool: str, wish: Wish | None, how: str, now_s: float) -> Tell:
    if wish is None:
        text = f"nothing wants a pod of pool {pool} to run any more: it goes when nobody asks"
        return Tell(pool, "Normal", "NotAheadAnyMore", text, f"{now_s:.0f}")
    text = f"pool {pool} is to have {_wish_words(wish, how)}: {wish.why}"
    return Tell(pool, "Normal", "PodsAhead", text, f"{wish.key} {wish.until_s:.0f}")


def _judged(pool: str, foreseen: Forecast, now_s: float) -> Tell:
    if foreseen.verdict in ("on", "quiet"):
        right = "" if foreseen.precision is None else f" (precision of the last day: {foreseen.precision:.0%})"
        text = f"pods of pool {pool} are started before they are asked for, as past days say{right}"
        return Tell(pool, "Normal", "ForecastOn", text, f"{now_s:.0f}")
    text = f"no pod of pool {pool} is started for what past days say: {foreseen.why}"
    return Tell(pool, "Normal", "ForecastOff", text, f"{foreseen.verdict} {now_s:.0f}")


def _grounds(past: Activity) -> str:
    """Why a pod is kept for as long as it is."""
    cold = f"a cold start takes {human.span(past.cold_start_s)}"
    if not past.gaps_s:
        return f"{cold}, and no gap between requests was seen yet"
    return f"{cold}; the cheapest time for the last {len(past.gaps_s)} gaps between requests"


def _pods(count: int) -> str:
    return f"{count} pod{'s' * (count != 1)}"


def _wish_words(wish: Wish, how: str) -> str:
    return f"{_pods(wish.pods)} until {_moment(wish.until_s)}, held by {how}"


def _moment(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"
