"""What is told of a worker process that ended unasked: whose doing it was, and what becomes of the requests it had.

What stays out: noticing it (worker.py), what follows for the models (recovery.py).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from predictor import wire
from predictor.errors import ComputedTooLong, HearthError, LoadFailed, Unavailable, WorkerDied, WorkerRestarting, WorkerTaken
from predictor.model import ModelRef
from predictor.workers.link import Pending

EXECUTE_TIMEOUT: Final = "execute timeout"
BUILD_TIMEOUT: Final = "build timeout"
START_TIMEOUT: Final = "start timeout"
HUNG_UP: Final = "hung up"
EXIT: Final = "exit"
LOST_DEVICE: Final = "device lost"
REAL_TIME: Final = "real-time signal"

OWN_FAULT: Final = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", EXIT})
"""Causes that come from inside a process. SIGKILL is somebody else's, as a rule."""
KERNEL_OUT_OF_MEMORY: Final = "out of memory (kernel)"


class Death(NamedTuple):
    """A worker process ended unasked.

    name      of the worker: which models shared it
    reason    for people, for example ``killed by SIGSEGV``
    cause     one of few words, for metrics: a signal's name, one of the above, or what ``Worker.end`` was told
    culprit   whose doing it was: the one model that was computed or being built; None: nobody's that is known
    suspects  where one model was computed and another one being built: both
    """

    name: str
    reason: str
    cause: str
    culprit: ModelRef | None = None
    suspects: tuple[ModelRef, ...] = ()


class Lasting:
    """For how long something has been the same, by somebody's looks. Pure: time is an argument.

    Between two looks no more than ``most_s`` are counted: who was stopped meanwhile, or stood still, has not seen what came
    of it, and may find the answer with the next thing that it reads.
    """

    def __init__(self, most_s: float, now_s: float) -> None:
        self._most_s = most_s
        self._looked_s = now_s
        self._what: object = None
        self._lasted_s = 0.0

    def look(self, what: object, now_s: float) -> float:
        """Seconds that it has been ``what``; of nothing (None, 0, False) none at all."""
        since_s, self._looked_s = min(now_s - self._looked_s, self._most_s), now_s
        self._lasted_s = self._lasted_s + since_s if what and what == self._what else 0.0
        self._what = what
        return self._lasted_s


class Sentence(NamedTuple):
    """Why we end a process ourselves. ``blame``: whose doing that is; None: of those who are inside."""

    reason: str
    cause: str
    blame: ModelRef | None


def ended(status: int, memory_killed: Callable[[], bool]) -> tuple[str, str]:
    """The reason and the cause of an end.

    status         as Process.poll tells it
    memory_killed  asked if that was SIGKILL: whether the kernel killed somebody because memory ran out
    """
    if status == wire.LOST_DEVICE_STATUS:
        return "its device computed nothing any more after an error", LOST_DEVICE
    if status >= 0:
        return f"exit status {status}", EXIT
    if status == -signal.SIGKILL and memory_killed():
        return "killed by the kernel: out of memory", KERNEL_OUT_OF_MEMORY
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal: only the first and the last have names
        return f"killed by signal {-status}", REAL_TIME
    return f"killed by {name}", name


def judge(name: str, status: tuple[str, str], sentence: Sentence | None, inside: Sequence[Pending]) -> Death:
    """Whose doing the end of a process was.

    status  how it ended: reason and cause
    inside  what it computed and what it built
    """
    if sentence is not None:
        if sentence.blame is not None:
            return Death(name, *sentence)
        status = sentence.reason, sentence.cause
    models = tuple(dict.fromkeys(request.about for request in inside if request.about is not None))
    return Death(name, *status, *((models[0],) if len(models) == 1 else (None, models)))


def obituary(death: Death, request: Pending, *, inside: bool) -> HearthError:
    """What is answered to a request of a worker that ended.

    inside  the worker had begun with it. A computation is not begun twice then, unless its model says that it may be; a
            load is, for that harms nobody, unless it is what ended the worker
    """
    about = request.about
    if not inside or about is None or not (request.computes or about == death.culprit):
        return WorkerRestarting(f"a worker ended ({death.reason}) before it began with this request", retry_after_s=1.0)
    if about != death.culprit:
        kind = WorkerDied if about in death.suspects else WorkerTaken
        return kind(
            f"the worker of model {about} ended ({death.reason}) while it computed this request; a retry helps: that was, or "
            f"may have been, another model's doing",
            retry_after_s=1.0,
        )
    if death.cause == EXECUTE_TIMEOUT:
        return ComputedTooLong(
            f"model {about}: {death.reason}; its worker was ended. A retry takes as long: raise the limit if that is needed"
        )
    if death.cause == BUILD_TIMEOUT and not request.computes:
        return LoadFailed(f"{death.reason}; its worker was ended")
    what = "computed this request" if request.computes else "was being loaded"
    return WorkerDied(
        f"model {about} ended its worker ({death.reason}) while it {what}; a retry helps only if that was an accident",
        retry_after_s=1.0,
    )


def stopped(request: Pending) -> HearthError:
    """What is answered to a request of a worker that we ended because nobody needs it, or because this pod ends."""
    if request.about is None:
        return WorkerRestarting("the worker was ended before it began with this request", retry_after_s=1.0)
    return Unavailable(f"the worker of model {request.about} was ended with this pod", retry_after_s=1.0)
