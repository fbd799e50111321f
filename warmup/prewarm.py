"""Decides how a pool that shall be warm gets a running pod, and how it loses it again.

By requests. Knative takes a pool to zero only when its concurrency, averaged over the stable window, is 0: a short request now
and then keeps the pod that is there and brings the one that is not, and when they end there is nothing to take back. For one
pod nothing is written: Knative gives a Revision's annotations to its pods, so that writing one replaces those that run, with
all that they have loaded (seen on 1.23).

Where several are wished the Revision also says so: ``min-scale`` among its annotations, beside it our mark and what was there
before. Neither the Service's template would do, which is a new Revision, nor the PodAutoscaler, which Knative writes over; and
after a restart of Knative's autoscaler it is the request that makes the annotation count (seen on 1.23).

Pure: nothing here reads, waits or looks at the clock. What carries it out is warming.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

MIN_SCALE: Final = "autoscaling.knative.dev/min-scale"
MARK: Final = "hearth.dev/warmed"
FORMER: Final = "hearth.dev/warmed-min-scale"
"""What ``MIN_SCALE`` was before, if anything: KServe writes ``"0"`` into every Revision of a pool that may go to zero."""

PODS: Final = "hearth.dev/warmed-pods"
"""The min-scale that we wrote. Without it our mark is of an earlier release, which wrote 1 where one pod was wished."""

PACE_S: Final = 20.0
"""Between two requests that hold a pod, at most. Knative rounds averages below 1e-6 down to 0: at this pace a request needs 20
us, whatever the window; one takes some 1000."""

LEAST_PACE_S: Final = 1.0
"""How often is looked."""

A_WINDOW: Final = 3
"""Requests in each window: Knative looks at a pod's figures once a second, and may miss the second of one of them."""

VERIFY_S: Final = 5.0
"""Until a request shows: a healthy autoscaler decides within 2 s."""

MAX_WAKE_WAIT_S: Final = 300.0
"""Between two requests for which Knative starts nothing; the wait doubles up to this."""

STAYS: Final = 2
"""After so many of them it is told."""

State = Literal["off", "starting", "waking", "warm", "own", "unable"]
"""``own``: the user's own min-scale keeps a pod. ``waking``: Knative was sent a request, and wants no pod yet. ``unable``: see
the detail."""


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
    set_scale  what we set it to; 1 only by an earlier release
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
    wakes     how many requests were sent while Knative had, and wanted, too few pods
    woken_s   when the last request was sent
    warm_s    when enough pods were first seen ready; None: not yet
    told      that one came to nothing though there was a pod
    """

    revision: str
    since_s: float
    wakes: int = 0
    woken_s: float = 0.0
    warm_s: float | None = None
    told: bool = False

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
class Requests:
    """Pools to which one is under way, and by pool why the last one ``failed``, in words."""

    under_way: Collection[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tell:
    """An Event about the pool. ``cause`` tells it from an earlier one with the same reason."""

    pool: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    cause: str


Action = Patch | Wake | Tell


_Step = tuple[State, Effort | None, list[Action]]
"""How it stands, what to remember, what to do."""


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
    requests: Requests | None = None,
) -> Decision:
    """Look at all that is, as if for the first time, and say what is missing.

    pools      every pool of the namespace
    revisions  every Revision of the namespace by name: marks are removed from those that no pool wants so many pods of,
               whether an older one after a rollout, one whose pool's time is over, or one that is no pool's any more. At
               once, though that replaces the pods that run: with a min-scale there is no moment without. An earlier
               release's mark for one pod stays while one is wished, which it holds as well
    efforts    by pool, from the last decision; {} after a start
    now_s      seconds since the epoch
    wishes     by pool, beside the pool's own: the one for most pods wins. One that is over counts for nothing
    unsure     Revisions of which nobody knows yet what is wished of them: they are not released
    requests   what was sent before; None: nothing was
    """
    requests = requests or Requests()
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
        pods = allowed(wish, revision)
        if pods > 1 or revision.set_scale == 1:
            wanted.add(revision.name)
        state, effort, more = _warm(pool, revision, efforts.get(pool.name), pods, now_s=now_s, requests=requests)
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


def pace_s(revision: Revision) -> float:
    """Between two requests that hold its pod."""
    return max(LEAST_PACE_S, min(PACE_S, revision.window_s / A_WINDOW))


def means(revision: Revision, pods: int) -> str:
    """What holds so many pods of it, for people."""
    if not revision.marked and count(revision.min_scale) >= pods:
        return f"its own min-scale {revision.min_scale}"
    return f"a request every {pace_s(revision):.0f} s" if pods == 1 else f"min-scale {pods} on {revision.name}"


def _warm(pool: Pool, revision: Revision, effort: Effort | None, pods: int, *, now_s: float, requests: Requests) -> _Step:
    """The next step for the Revision that shall have so many pods."""
    if effort is None or effort.revision != revision.name:
        effort = Effort(revision.name, now_s)
    if not revision.marked and count(revision.min_scale) >= pods:
        return "own", None, []
    if pods > 1 and not revision.marked:
        former = {FORMER: revision.min_scale} if revision.min_scale is not None else {}
        return "starting", effort, [Patch(revision.name, revision.version, _set(pods) | former)]
    if pods > 1 and revision.set_scale != pods and revision.min_scale == str(revision.set_scale):
        return "starting", Effort(revision.name, now_s), [Patch(revision.name, revision.version, _set(pods))]
    return _hold(pool, revision, effort, pods, now_s=now_s, requests=requests)


def _set(pods: int) -> dict[str, str | None]:
    return {MIN_SCALE: str(pods), MARK: "true", PODS: str(pods)}


def _hold(pool: Pool, revision: Revision, effort: Effort, pods: int, *, now_s: float, requests: Requests) -> _Step:
    """A request when it is time: at once where pods are missing, more and more rarely while Knative starts none for them."""
    is_warm, told = revision.ready >= pods, list[Action]()
    if is_warm and effort.warm_s is None:
        if now_s > effort.since_s:  # else nobody waited, as after a restart: that is no news
            told.append(_came(pool, effort, pods, now_s))
        effort = replace(effort, warm_s=now_s)
    elif not is_warm and effort.warm_s is not None:
        effort = Effort(revision.name, now_s)  # a pod went: its successor is brought as it was
    failed = requests.failed.get(pool.name, "")
    if failed and pods == 1 and not effort.told and effort.warm_s is not None and effort.woken_s >= effort.warm_s:
        effort = replace(effort, told=True)
        told.append(_unanswered(pool, revision, failed))
    is_coming = is_warm or revision.wanted >= pods
    state: State = "warm" if is_warm else "starting" if is_coming else "waking"
    wait_s = pace_s(revision) if is_coming else effort.patience_s
    if now_s - effort.woken_s < wait_s or pool.name in requests.under_way:
        return state, effort, told
    if not is_coming and effort.wakes == STAYS:
        told.append(_stays(pool, revision, effort, now_s))
    wake = Wake(pool.name, revision.name, f"http://{pool.service}.{pool.namespace}.svc/readyz")
    return state, replace(effort, wakes=effort.wakes + (not is_coming), woken_s=now_s), [wake, *told]


def _release(revision: Revision) -> Patch:
    """Back to what it was. A min-scale that is not ours any more was set by somebody else meanwhile, and stays."""
    annotations: dict[str, str | None] = {MARK: None, FORMER: None, PODS: None}
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
    message = f"pool {pool.name} has {_ready(pods)} {now_s - effort.since_s:.1f} s after it was to be warm"
    return Tell(pool.name, "Normal", "Warm", message, f"{effort.revision} {effort.since_s}")


def _stays(pool: Pool, revision: Revision, effort: Effort, now_s: float) -> Tell:
    lack = f"only {_ready(revision.ready)}" if revision.ready else "no pod"
    message = (
        f"pool {pool.name} still has {lack} {now_s - effort.since_s:.0f} s after it was to be warm, and after "
        f"{effort.wakes} requests: see the conditions of Revision {revision.name}"
    )
    return Tell(pool.name, "Warning", "CannotWarm", message, f"{revision.name} {effort.since_s}")


def _unanswered(pool: Pool, revision: Revision, why: str) -> Tell:
    message = (
        f"a request that is to hold pool {pool.name} came to nothing: {why}. It is repeated every {pace_s(revision):.0f} s; "
        f"a pod that none reaches within Knative's window ({revision.window_s:.0f} s) goes"
    )
    return Tell(pool.name, "Warning", "CannotWarm", message, f"{revision.name} {why}")


def count(annotation: str | None) -> int:
    """A number as an annotation has it; 0 where there is none."""
    return int(annotation) if annotation is not None and annotation.isdecimal() else 0


def _ready(pods: int) -> str:
    return "a ready pod" if pods == 1 else f"{pods} ready pods"
