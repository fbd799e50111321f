"""What the pod knows of sick models and poisoned requests, on its own clock: asked before a load, and before a computation.

What stays out: the rules (policy/quarantine.py), what follows from a worker's death (recovery.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b

from predictor import human
from predictor.errors import PoisonedRequest, Quarantined
from predictor.model import ModelRef
from predictor.passage import Buffer
from predictor.policy.quarantine import Poison, Quarantine, Verdict
from predictor.wire import Tensor


class Infirmary:
    """The quarantine and the poison cabinet.

    backoff_s     a model's pause after its first death
    poison_ttl_s  how long requests that ended workers are remembered, and refused

    on_recovered  told when a model leaves the quarantine by itself
    """

    def __init__(
        self, backoff_s: float = 1.0, poison_ttl_s: float = 600.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quarantine = Quarantine(backoff_s)
        self.poison = Poison(poison_ttl_s)
        self.on_recovered: Callable[[ModelRef], None] = lambda _: None
        self._clock = clock

    # ---- models ----------------------------------------------------------------------------------------------

    def check(self, ref: ModelRef) -> None:
        """Raise Quarantined while the model pauses."""
        wait_s = self.quarantine.wait_s(ref, self._clock()) if self.quarantine else 0.0
        if wait_s > 0:
            raise Quarantined(f"model {ref} is not loaded now: {self.reason(ref)}", retry_after_s=wait_s)

    def reason(self, ref: ModelRef) -> str:
        """Why the model is in quarantine, for people; "": it is not."""
        sick = self.quarantine.of(ref)
        if sick is None:
            return ""
        if not sick.deaths:
            return f"in a worker of its own: it, or another model, ended a worker ({sick.reason})"
        wait_s = self.quarantine.wait_s(ref, self._clock())
        times = "a worker" if sick.deaths == 1 else f"{sick.deaths} workers"
        until = f"; it pauses for {human.span(wait_s)} (hearth load --clear ends that)" if wait_s > 0 else ""
        return f"in quarantine: it ended {times} ({sick.reason}){until}"

    def clear(self, name: str) -> list[ModelRef]:
        """An operator vouches for every version of ``name`` and its requests. Returns those that anything was known of."""
        known = dict.fromkeys((*self.quarantine, *self.poison))  # a model may be well again, and its requests refused still
        cleared = [ref for ref in known if isinstance(ref, ModelRef) and ref.name == name]
        for ref in cleared:
            self.quarantine.clear(ref)
            self.poison.clear(ref)
        return cleared

    # ---- requests --------------------------------------------------------------------------------------------

    def alone(self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer]) -> bool:
        """Whether the request is to run alone, because it is a suspect. Raises PoisonedRequest.

        Reckons a digest (1 ms per MB) if any request to this model is one, and not otherwise.
        """
        if ref not in self.poison:
            return False
        found, now_s = digest(ref, inputs, body), self._clock()
        verdict = self.poison.verdict(found, now_s)
        if verdict is Verdict.REFUSED:
            raise PoisonedRequest(
                f"requests of exactly these contents ended the worker of model {ref} again and again: they are not computed "
                f"for another {human.span(self.poison.wait_s(found, now_s))} (HEARTH_POISON_TTL_S; hearth load --clear ends "
                "that)"
            )
        return verdict is Verdict.ALONE

    def killed(self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer], *, alone: bool = True) -> None:
        """The request was inside a worker that its model ended. ``alone``: see Poison.killed."""
        self.poison.killed(ref, digest(ref, inputs, body), self._clock(), alone=alone)

    def answered(self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer]) -> None:
        """A request was answered well."""
        if self.poison and ref in self.poison:
            self.poison.survived(digest(ref, inputs, body))
        if self.quarantine and self.quarantine.answered(ref, self._clock()):
            self.on_recovered(ref)


def digest(ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer]) -> bytes:
    """Equal for equal requests to one model, whatever encoding they came in."""
    found = blake2b(ref.key.encode(), digest_size=16)
    for tensor, part in zip(inputs, body, strict=True):
        found.update(f"\n{tensor.name}\n{tensor.datatype}\n{tensor.shape}\n".encode())
        found.update(part)
    return found.digest()
