"""Looks at models' locations in the model store, with the models' own credentials: listed, and their format resolved.

``Checks`` says when a location is looked at, and how many at once; ``StoreChecker`` looks. What stays out: what follows
for the model (rollout.py, status.py), where the credentials are from (credentials.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from predictor.declared import bucket_and_key
from predictor.errors import HearthError, InvalidModel, UnknownModel
from predictor.reader import Found, Reader, Watch
from predictor.repository import Source
from predictor.telemetry import Telemetry
from predictor.tiers.store import Stores

log = logging.getLogger(__name__)

MAX_SCOPES: Final = 512
"""Different credentials that are remembered; more than these at once push each other's connections out."""

MAX_WATCHES: Final = 4096
"""Locations that are still being uploaded, and remembered as such."""


@dataclass(frozen=True)
class Question:
    """What is to be looked at.

    variables    of the credentials; never shown
    format       as the InferenceService says; "": recognised from the files
    trusts_code  whether the pool runs models' own code
    """

    uri: str
    scope: str = ""
    format: str = ""
    number: int = 1
    trusts_code: bool = False
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Finding:
    """What was found.

    reason   the error's class name; "" when all is well
    message  what is wrong, and what to do
    passing  it may be well by itself later: the store was away, an upload goes on
    retry_s  when to look again, where that is known; None: as the back-off says
    """

    ok: bool
    reason: str = ""
    message: str = ""
    passing: bool = False
    retry_s: float | None = None


class Checker(Protocol):
    """Looks once. Raises nothing but cancellation."""

    async def check(self, question: Question) -> Finding:
        """Whether a pod could serve this."""

    async def close(self) -> None:
        """Stop everything that runs."""


@dataclass(slots=True)
class _Looked:
    question: Question
    result: Finding | None = None
    tries: int = 0
    task: asyncio.Task[None] | None = None


class Checks:
    """Every model's location that has to be looked at. One task per model, few of them at work at once.

    on_result    called with the model's name after every look, never from inside ``want``
    concurrency  looks at once
    timeout_s    of one
    retry_s      wait after the first failure; doubles up to ``retry_max_s``. Failures that last are looked at again each
                 ``retry_max_s``: somebody may upload what lacks
    """

    def __init__(
        self,
        checker: Checker,
        on_result: Callable[[str], None],
        *,
        telemetry: Telemetry,
        concurrency: int = 16,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        retry_max_s: float = 300.0,
    ) -> None:
        self._checker = checker
        self._on_result = on_result
        self._telemetry = telemetry
        self._gate = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._looked: dict[str, _Looked] = {}

    def known(self, name: str, question: Question) -> Finding | None:
        """The result of the latest look at exactly this; None: there was none, and this asks for none."""
        looked = self._looked.get(name)
        return looked.result if looked is not None and looked.question == question else None

    def want(self, name: str, question: Question) -> Finding | None:
        """The result of the latest look at exactly this; None: it was not looked at yet, and is going to be."""
        looked = self._looked.get(name)
        if looked is not None and looked.question == question:
            return looked.result
        self.forget(name)
        looked = self._looked[name] = _Looked(question)
        looked.task = asyncio.create_task(self._look_until_well(name, looked), name=f"check {name}")
        return None

    def forget(self, name: str) -> None:
        """Nobody wants to know any more."""
        looked = self._looked.pop(name, None)
        if looked is not None and looked.task is not None:
            looked.task.cancel()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are, or were, looked at."""
        return tuple(self._looked)

    async def close(self) -> None:
        """Stop looking."""
        tasks = [looked.task for looked in self._looked.values() if looked.task is not None]
        self._looked.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._checker.close()

    async def _look_until_well(self, name: str, looked: _Looked) -> None:
        while True:
            async with self._gate:
                result = await self._look(name, looked.question)
            looked.result = result
            looked.tries += 1
            self._on_result(name)
            if result.ok:
                return
            await asyncio.sleep(self._pause_s(result, looked.tries))

    async def _look(self, name: str, question: Question) -> Finding:
        begin_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await self._checker.check(question)
        except TimeoutError:
            result = Finding(
                ok=False,
                reason="DeadlineExceeded",
                message=f"{question.uri}: no answer within {self._timeout_s:g} s",
                passing=True,
            )
        except Exception:  # the root of a task
            log.exception("check of %s", name)
            text = f"{question.uri}: the controller failed to look at it; its log tells more"
            result = Finding(ok=False, reason="InternalError", message=text, passing=True)
        self._telemetry.histogram("hearth_controller_check_seconds").observe(time.monotonic() - begin_s)
        outcome = "ok" if result.ok else "passing" if result.passing else "failed"
        self._telemetry.counter("hearth_controller_checks_total", outcome).inc()
        return result

    def _pause_s(self, result: Finding, tries: int) -> float:
        if result.retry_s is not None:
            return min(max(result.retry_s, 0.1), self._retry_max_s)
        if not result.passing:
            return self._retry_max_s
        return min(self._retry_s * 2.0 ** min(tries - 1, 20), self._retry_max_s)


@dataclass(frozen=True)
class _Limits:
    """What the stores are bounded by; see store.FetchSettings. Nothing but listings and manifests is read here."""

    fetch_timeout_s: float
    fetch_deadline_s: float
    fetch_part_bytes: int = 1 << 20
    fetch_concurrency: int = 1
    fetch_retries: int = 1


class StoreChecker:
    """Asks the model store itself, through the same reader as the pods.

    environment  of this process: for models that bring no keys, and whose pool names none
    """

    def __init__(
        self,
        namespace: str,
        *,
        settle_s: float,
        timeout_s: float,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._settle_s = settle_s
        self._environment = environment
        self._clock = clock
        self._stores = Stores.from_environment(
            _Limits(timeout_s, timeout_s),
            on_request=lambda _operation, _outcome: None,
            on_bytes=lambda _: None,
            on_first_ask=lambda: None,
        )
        self._scopes: OrderedDict[frozenset[tuple[str, str]], str] = OrderedDict()
        self._numbers = itertools.count(1)
        self._watches: OrderedDict[tuple[str, str], Watch] = OrderedDict()

    async def check(self, question: Question) -> Finding:
        """See Checker."""
        try:
            return await self._check(question)
        except HearthError as error:
            passing = error.retryable or isinstance(error, UnknownModel)
            return Finding(ok=False, reason=type(error).__name__, message=error.message, passing=passing)

    async def close(self) -> None:
        """See Checker."""
        await self._stores.close()

    async def _check(self, question: Question) -> Finding:
        try:
            bucket, key = bucket_and_key(question.uri)
        except ValueError as error:
            raise InvalidModel(str(error)) from None
        store = self._stores.at(bucket, self._scope(question))
        source = Source(
            self._namespace,
            store.origin,
            bucket,
            "",
            trusts_code=question.trusts_code,
            key=key,
            number=question.number,
            format=question.format,
        )
        reader = Reader(store, source, self._settle_s, self._clock)
        name = key.rpartition("/")[2] or bucket
        found = await reader.choose(name, None, await reader.look(name), self._watch(question))
        if not isinstance(found, Found):
            why = f"{question.uri} is still being uploaded: {found.why}"
            return Finding(ok=False, reason="Unavailable", message=why, passing=True, retry_s=found.wait_s)
        self._watches.pop((question.uri, question.scope), None)
        return Finding(ok=True)

    def _scope(self, question: Question) -> str:
        """Our own name for these variables: connections are kept by it. Those of the latest ``MAX_SCOPES`` are."""
        own = question.variables
        alone = "AWS_ACCESS_KEY_ID" in own or own.get("awsAnonymousCredential", "").lower() == "true"
        hidden = {"AWS_ENDPOINT_URL_S3"} if "AWS_ENDPOINT_URL" in own else set()  # it would win
        under = {} if alone else {name: value for name, value in self._environment.items() if name not in hidden}
        variables = {**under, **own}
        known = frozenset(variables.items())
        if known not in self._scopes:
            self._scopes[known] = str(next(self._numbers))
            if len(self._scopes) > MAX_SCOPES:
                self._scopes.popitem(last=False)
            self._stores.declare({scope: dict(of) for of, scope in self._scopes.items()})
        self._scopes.move_to_end(known)
        return self._scopes[known]

    def _watch(self, question: Question) -> Watch:
        key = (question.uri, question.scope)
        watch = self._watches.setdefault(key, Watch())
        self._watches.move_to_end(key)
        if len(self._watches) > MAX_WATCHES:
            self._watches.popitem(last=False)
        return watch
