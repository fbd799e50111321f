"""Requests for a device that a test can await."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from predictor.errors import HearthError
from predictor.lease import Lease
from predictor.model import ModelRef
from predictor.passage import Buffer
from predictor.policy.batching import Priority
from predictor.wire import Tensor
from predictor.workers.dispatch import Answer, Job, Outcome

NOBODY = ModelRef("default", "nobody", 1)


class AwaitedJob(Job):
    """Its future fails with what went wrong."""

    __slots__ = ("answer", "told")

    def __init__(
        self,
        ref: ModelRef = NOBODY,
        inputs: Sequence[Tensor] = (),
        body: Sequence[Buffer] = (),
        outputs: Sequence[str] = (),
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = float("inf"),
    ) -> None:
        super().__init__(ref, tuple(inputs), tuple(body), tuple(outputs), priority=priority, deadline_s=deadline_s)
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.told = 0

    def done(self, outcome: Outcome) -> None:
        self.told += 1
        if self.answer.done():
            return
        if isinstance(outcome, HearthError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


async def compute(lease: Lease, inputs: Sequence[Tensor] = (), body: Sequence[Buffer] = ()) -> Answer:
    """Run one request on a lease, as the API does."""
    job = AwaitedJob(lease.ref, inputs, body)
    lease.run(job)
    try:
        answer = await job.answer
    except asyncio.CancelledError:
        lease.device.withdraw(job)
        raise
    lease.measured(answer)
    return answer
