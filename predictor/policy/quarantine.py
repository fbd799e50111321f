"""Which models are kept apart because they brought their worker down, and which requests are not computed any more.

A model that ended its worker gets a worker of its own, and pauses before its next load: one back-off, doubled by every
further death, so that what keeps dying costs ever less. It leaves by answering well for a while. Where a death has two
suspects (one model computed, another was being built) nobody knows which it was: both get workers of their own, and
neither has to pause; the next death has one suspect.

A request that was inside a worker when that died is a suspect, too. It is known by its digest, runs alone the next time
(requests that ran with it as one are innocent), and is refused after the second worker.

Pure: time is an argument. Who was inside is worker.py's to say, what follows is recovery.py's.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final

REMEMBERED: Final = 1024
"""Models in quarantine, and digests: beyond it, the oldest are forgotten."""

GOOD_ANSWERS: Final = 20
"""So many answers without a death let a model go back to the others."""

CALM_S: Final = (60.0, 3600.0)
"""And so long without one: after the first death, and at most; doubled by every further one, as the back-off is."""

REFUSED_AFTER: Final = 2
"""Workers that a request ended, after which it is refused."""


@dataclass(slots=True)
class Sick:
    """A model in quarantine.

    reason   what its worker died of, for people
    deaths   of workers that were its doing; 0: it is only suspected
    died_s   moment of the last one
    until_s  it is not loaded before
    answers  good ones since
    """

    reason: str
    deaths: int
    died_s: float
    until_s: float
    answers: int = 0


class Quarantine:
    """Models that are kept apart.

    backoff_s  the pause after the first death; 0: none, after whichever
    longest_s  the longest pause
    """

    def __init__(self, backoff_s: float = 1.0, longest_s: float = 600.0) -> None:
        assert backoff_s >= 0, f"a pause of {backoff_s} s"
        self._backoff_s = backoff_s
        self._longest_s = max(longest_s, backoff_s)
        self._sick: dict[Hashable, Sick] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sick)

    def __iter__(self) -> Iterator[Hashable]:
        """The models."""
        return iter(self._sick)

    def __contains__(self, model: Hashable) -> bool:
        """Whether the model gets a worker of its own."""
        return model in self._sick

    def of(self, model: Hashable) -> Sick | None:
        """What is known of it; None: it is not in quarantine."""
        return self._sick.get(model)

    def died(self, model: Hashable, reason: str, now_s: float) -> float:
        """The model ended its worker. Returns the seconds during which it is not loaded again."""
        before = self._sick.pop(model, None)
        deaths = before.deaths + 1 if before else 1
        pause_s = min(self._backoff_s * 2.0 ** min(deaths - 1, 64), self._longest_s)
        self._remember(model, Sick(reason, deaths, now_s, now_s + pause_s))
        return pause_s

    def suspected(self, model: Hashable, reason: str, now_s: float) -> None:
        """The model may have ended its worker, or another one did."""
        before = self._sick.pop(model, None)
        if before is None:
            before = Sick(reason, 0, now_s, now_s)
        before.answers = 0
        self._remember(model, before)

    def wait_s(self, model: Hashable, now_s: float) -> float:
        """Seconds until the model may be loaded; 0: now."""
        sick = self._sick.get(model)
        return max(sick.until_s - now_s, 0.0) if sick else 0.0

    def answered(self, model: Hashable, now_s: float) -> bool:
        """The model answered a request. True: with that it has left the quarantine."""
        sick = self._sick.get(model)
        if sick is None:
            return False
        sick.answers += 1
        calm_s = min(CALM_S[0] * 2.0 ** min(max(sick.deaths - 1, 0), 64), CALM_S[1])
        if sick.answers < GOOD_ANSWERS or now_s - sick.died_s < calm_s:
            return False
        del self._sick[model]
        return True

    def clear(self, model: Hashable) -> bool:
        """An operator vouches for it. False: it was not in quarantine."""
        return self._sick.pop(model, None) is not None

    def _remember(self, model: Hashable, sick: Sick) -> None:
        self._sick[model] = sick
        if len(self._sick) > REMEMBERED:
            del self._sick[next(iter(self._sick))]


class Verdict(enum.Enum):
    """What is to be done with a request."""

    HARMLESS = "harmless"
    ALONE = "alone"
    REFUSED = "refused"


@dataclass(slots=True)
class _Kills:
    model: Hashable
    count: int
    until_s: float


class Poison:
    """Digests of requests that were inside workers that died.

    ttl_s  how long one is remembered after the last death, and so how long it is refused after the second; 0: not at all
    """

    def __init__(self, ttl_s: float = 600.0) -> None:
        self._ttl_s = ttl_s
        self._kills: dict[bytes, _Kills] = {}
        self._of: dict[Hashable, int] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._kills)

    def __iter__(self) -> Iterator[Hashable]:
        """The models that any is of a request to."""
        return iter(self._of)

    def __contains__(self, model: Hashable) -> bool:
        """Whether any is of a request to this model: else its requests' digests need not be reckoned."""
        return model in self._of

    def killed(self, model: Hashable, digest: bytes, now_s: float, *, alone: bool = True) -> int:
        """The request was inside a worker that died. Returns how many that makes.

        alone  it ran by itself. In company it is a suspect, and no more than that: what everybody asks is in a batch several
               times, and would be refused after a single death that was another one's doing
        """
        if self._ttl_s <= 0:
            return 0
        before = self._kills.get(digest)
        count = before.count if before and before.until_s > now_s else 0
        count = count + 1 if alone else max(count, 1)
        self._forget(digest)
        self._kills[digest] = _Kills(model, count, now_s + self._ttl_s)
        self._of[model] = self._of.get(model, 0) + 1
        if len(self._kills) > REMEMBERED:
            self._forget(next(iter(self._kills)))
        return count

    def verdict(self, digest: bytes, now_s: float) -> Verdict:
        """What is to be done with a request of this digest."""
        kills = self._kills.get(digest)
        if kills is None:
            return Verdict.HARMLESS
        if kills.until_s <= now_s:
            self._forget(digest)
            return Verdict.HARMLESS
        return Verdict.REFUSED if kills.count >= REFUSED_AFTER else Verdict.ALONE

    def wait_s(self, digest: bytes, now_s: float) -> float:
        """Seconds for which a request of this digest is remembered yet."""
        kills = self._kills.get(digest)
        return max(kills.until_s - now_s, 0.0) if kills else 0.0

    def survived(self, digest: bytes) -> None:
        """The request was computed, alone: it was innocent."""
        self._forget(digest)

    def clear(self, model: Hashable) -> None:
        """Forget every request to a model."""
        for digest in [digest for digest, kills in self._kills.items() if kills.model == model]:
            self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        kills = self._kills.pop(digest, None)
        if kills is None:
            return
        self._of[kills.model] -= 1
        if not self._of[kills.model]:
            del self._of[kills.model]
