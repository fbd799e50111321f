"""Decides how a pool that shall be warm gets a running pod, and how it loses it again.

A pod comes when the pool's Revision asks for one: ``min-scale: "1"`` among its annotations (or more, where more are wished),
beside it our mark and what was there before. Nothing else holds it: neither the Service's template, which would be a new
Revision, nor the PodAutoscaler, which Knative writes over. After a restart of Knative's autoscaler that annotation does
nothing until a request has come (seen on 1.23), so that what does not start by itself is sent one.

Pure: nothing here reads, waits or looks at the clock. What carries it out is warming.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

MIN_SCALE: Final = "autoscaling.knative.dev/min-scale"
MARK: Final = "hearth.dev/warmed"
FORMER: Final = "hearth.dev/warmed-min-scale"
"""What ``MIN_SCALE`` was before, if anything: KServe writes ``"0"`` into every Revision of a pool that may go to zero."""

PODS: Final = "hearth.dev/warmed-pods"
"""The min-scale that we wrote, where it is more than 1."""

VERIFY_S: Final = 5.0
"""Until a patch or a wake request shows: a healthy autoscaler decides within 2 s."""

MAX_WAKE_WAIT_S: Final = 300.0
"""Between two wake requests that changed nothing; the wait doubles up to this."""

State = Literal["off", "starting", "waking", "warm", "own", "unable"]
"""``own``: the user's own min-scale keeps a pod. ``waking``: the patch alone did nothing. ``unable``: see the detail."""


class Pool(Protocol):
    """What is asked of a pool; view.py has the rest."""

    @property
    def name(self) -> str:
        """Its own."""

    @property
    def namespace(self) -> str:
        """Whose it is."""

    @property
    def kind(self) -> str:
        """``kserve``, ``knative`` or ``deployment``."""

    @property
    def service(self) -> str:
        """Name of its Knative Service; "": it has none."""

    @property
    def revision(self) -> str:
        """Name of its latest ready Revision; "": there is none."""

    @property
    def warm_until_s(self) -> float | None:
        """When the wish ends, seconds since the epoch; None: there is none."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Pods that somebody, or something, wants to run.

    until_s  when it ends, seconds since the epoch
    reason   ``asked`` (hearth warm), ``calendar`` or ``forecast``
    why      for people
    key      the same for as long as it is the same wish: what is told once is told by it
    """

    pods: int
    until_s: float
    reason: Literal["asked", "calendar", "forecast"]
    why: str
    key: str


@dataclass(frozen=True, slots=True)
class Revision:
    """One Revision of any Knative Service of the namespace, and what its PodAutoscaler says.

    version    its resourceVersion: a patch is refused when somebody else has changed it meanwhile
    min_scale  the annotation; None: there is none
    marked     that it is ours
    set_scale  what we set it to
    former     what it was before ours; None: there was none
    most       max-scale; 0: there is none
    window_s   Knative's stable window
    target     requests at once that one pod is meant for
    retention, retained, retained_former  see ahead.py
    wanted     pods that Knative's autoscaler wants; -1: it has not decided yet
    ready      pods that serve
    """

    name: str
    version: str = ""
    min_scale: str | None = None
    marked: bool = False
    set_scale: int = 1
    former: str | None = None
    most: int = 0
    window_s: float = 60.0
    target: float = 100.0
    retention: str | None = None
    retained: str = ""
    retained_former: str | None = None
    wanted: int = -1
    ready: int = 0

    @property
    def coming(self) -> bool:
        """Whether there is a pod, or will be one."""
        return self.wanted > 0 or self.ready > 0


@dataclass(frozen=True, slots=True)
class Effort:
    """What was done so far to warm one Revision. Lost at a restart: it then begins anew, with a look.

    since_s   when it was first seen to be asked for
    wakes     how many requests were sent
    woken_s   when the last one was
    warm_s    when a pod was first seen ready; None: not yet
    """

    revision: str
    since_s: float
    wakes: int = 0
    woken_s: float = 0.0
    warm_s: float | None = None

    @property
    def patience_s(self) -> float:
        """From the last thing done to the next wake request."""
        return min(MAX_WAKE_WAIT_S, VERIFY_S * 2.0**self.wakes)


@dataclass(frozen=True, slots=True)
class Patch:
    """Merge ``annotations`` into a Revision's; None removes one."""

    revision: str
    version: str
    annotations: Mapping[str, str | None]

    @property
    def body(self) -> dict[str, Any]:
        """As the API takes it."""
        return {"metadata": {"resourceVersion": self.version, "annotations": dict(self.annotations)}}


@dataclass(frozen=True, slots=True)
class Wake:
    """Send one request to the pool, inside the cluster; it ends when a pod answers."""

    pool: str
    revision: str
    url: str


@dataclass(frozen=True, slots=True)
class Tell:
    """An Event about the pool. ``cause`` tells it from an earlier one with the same reason."""

    pool: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    cause: str


Action = Patch | Wake | Tell


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, what to remember for the next time, and how it stands with each pool."""

    actions: tuple[Action, ...]
    efforts: Mapping[str, Effort]
    states: Mapping[str, State]


def decide(
    pools: Iterable[Pool],
    revisions: Mapping[str, Revision],
    efforts: Mapping[str, Effort],
    *,
    now_s: float,
    wishes: Mapping[str, Wish] | None = None,
    unsure: Collection[str] = (),
) -> Decision:
    """Look at all that is, as if for the first time, and say what is missing.

    pools      every pool of the namespace
    revisions  every Revision of the namespace by name: marks are removed from those that no pool wants warm, whether
               an older one after a rollout, one whose pool's time is over, or one that is no pool's any more
    efforts    by pool, from the last decision; {} after a start
    now_s      seconds since the epoch
    wishes     by pool, beside the pool's own: the one for most pods wins. One that is over counts for nothing
    unsure     Revisions of which nobody knows yet what is wished of them: they are not released
    """
    actions: list[Action] = []
    remembered: dict[str, Effort] = {}
    states: dict[str, State] = {}
    wanted: set[str] = set(unsure)
    for pool in pools:
        states[pool.name] = "off"
        wish = stronger(asked(pool), (wishes or {}).get(pool.name))
        if wish is None or wish.until_s <= now_s:
            continue
        revision = revisions.get(pool.revision) if pool.service else None
        if revision is None:
            states[pool.name] = "unable"
            actions += _unable(pool, wish, efforts)
            remembered[pool.name] = Effort("", now_s)
            continue
        wanted.add(revision.name)
        state, effort, more = _warm(pool, revision, efforts.get(pool.name), allowed(wish, revision), now_s)
        states[pool.name] = state
        actions += more
        if effort is not None:
            remembered[pool.name] = effort
    actions += [_release(revision) for revision in revisions.values() if revision.marked and revision.name not in wanted]
    return Decision(tuple(actions), remembered, states)


def asked(pool: Pool) -> Wish | None:
    """What somebody asked for with `hearth warm`."""
    if pool.warm_until_s is None:
        return None
    return Wish(1, pool.warm_until_s, "asked", "asked for with `hearth warm`", f"{pool.warm_until_s}")


def stronger(one: Wish | None, other: Wish | None) -> Wish | None:
    """The one for more pods; of two for as many, the one that lasts longer."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda wish: (wish.pods, wish.until_s))


def allowed(wish: Wish, revision: Revision) -> int:
    """Pods that the Revision may have of it."""
    return max(1, min(wish.pods, revision.most)) if revision.most else wish.pods


def _warm(
    pool: Pool, revision: Revision, effort: Effort | None, pods: int, now_s: float
) -> tuple[State, Effort | None, list[Action]]:
    """The next step for the Revision that shall have so many pods."""
    if effort is None or effort.revision != revision.name:
        effort = Effort(revision.name, now_s)
    if not revision.marked:
        if count(revision.min_scale) >= pods:
            return "own", None, []
        former = {FORMER: revision.min_scale} if revision.min_scale is not None else {}
        return "starting", effort, [Patch(revision.name, revision.version, _set(pods) | former)]
    if revision.set_scale != pods and revision.min_scale == str(revision.set_scale):
        changed = {PODS: None, **_set(pods)}
        return "starting", Effort(revision.name, now_s), [Patch(revision.name, revision.version, changed)]
    return _verify(pool, revision, effort, pods, now_s)


def _set(pods: int) -> dict[str, str | None]:
    return {MIN_SCALE: str(pods), MARK: "true", **({PODS: str(pods)} if pods > 1 else {})}


def _verify(pool: Pool, revision: Revision, effort: Effort, pods: int, now_s: float) -> tuple[State, Effort, list[Action]]:
    """Whether pods really came of it."""
    if revision.ready >= pods:
        if effort.warm_s is not None:
            return "warm", effort, []
        # After a restart, or when Knative replaced the pod, nobody waited for it: that is no news.
        news = [_came(pool, effort, pods, now_s)] if effort.wakes or now_s > effort.since_s else []
        return "warm", replace(effort, warm_s=now_s), list(news)
    if effort.warm_s is not None:
        effort = Effort(revision.name, now_s)  # the pod went: its successor is verified as the first one was
    if revision.wanted >= pods:
        return "starting", effort, []
    if now_s - max(effort.since_s, effort.woken_s) < effort.patience_s:
        return "waking" if effort.wakes else "starting", effort, []
    url = f"http://{pool.service}.{pool.namespace}.svc/readyz"
    told = _stays(pool, revision, effort, pods, now_s)
    return "waking", replace(effort, wakes=effort.wakes + 1, woken_s=now_s), [Wake(pool.name, revision.name, url), *told]


def _release(revision: Revision) -> Patch:
    """Back to what it was. A min-scale that is not ours any more was set by somebody else meanwhile, and stays."""
    annotations: dict[str, str | None] = {MARK: None, FORMER: None}
    if revision.set_scale > 1:
        annotations[PODS] = None
    if revision.min_scale == str(revision.set_scale):
        annotations[MIN_SCALE] = revision.former
    return Patch(revision.name, revision.version, annotations)


def _unable(pool: Pool, wish: Wish, efforts: Mapping[str, Effort]) -> list[Action]:
    if pool.name in efforts and not efforts[pool.name].revision:
        return []  # told already
    if pool.kind == "deployment":
        why = "it is a Deployment, which has the replicas that it says: one at least, and nothing here takes it to zero"
    else:
        why = "it has no ready Revision yet"
    return [Tell(pool.name, "Warning", "CannotWarm", f"pool {pool.name} cannot be kept warm: {why}", wish.key)]


def _came(pool: Pool, effort: Effort, pods: int, now_s: float) -> Tell:
    how = f" after {effort.wakes} wake request{'s' * (effort.wakes > 1)}" if effort.wakes else ""
    message = f"pool {pool.name} has {_ready(pods)} {now_s - effort.since_s:.1f} s after it was to be warm{how}"
    return Tell(pool.name, "Normal", "Warm", message, f"{effort.revision} {effort.since_s}")


def _stays(pool: Pool, revision: Revision, effort: Effort, pods: int, now_s: float) -> list[Tell]:
    """Told at the first wake request and when they do not help either; not for every one."""
    lack = f"only {_ready(revision.ready)}" if revision.ready else "no pod"
    waited = f"{now_s - effort.since_s:.0f} s after min-scale {pods} was set"
    if effort.wakes == 0:
        message = (
            f"pool {pool.name} has {lack} {waited} on {revision.name}: Knative's autoscaler does not act on it (as after its "
            "restart); sending a request to wake it"
        )
        return [Tell(pool.name, "Normal", "WakingPool", message, f"{revision.name} {effort.since_s}")]
    if effort.wakes == 2:  # noqa: PLR2004 (the second try has failed as well)
        message = f"pool {pool.name} still has {lack} {waited} and {effort.wakes} wake requests: see the Revision's conditions"
        return [Tell(pool.name, "Warning", "CannotWarm", message, f"{revision.name} {effort.since_s}")]
    return []


def count(annotation: str | None) -> int:
    """A number as an annotation has it; 0 where there is none."""
    return int(annotation) if annotation is not None and annotation.isdecimal() else 0


def _ready(pods: int) -> str:
    return "a ready pod" if pods == 1 else f"{pods} ready pods"
