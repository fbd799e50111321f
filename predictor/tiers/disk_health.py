"""Whether the disk tier can be written: told once when that changes, and tried again after a while. Pure but for the log."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that say there is no room."""

_REASONS: Final = {
    errno.ENOSPC: "the volume is full",
    errno.EDQUOT: "the volume's quota is used up",
    errno.EROFS: "the volume is mounted read-only",
    errno.EIO: "the volume reports input/output errors",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EBUSY: "another process uses this folder: give every pod its own",
}


class Health:
    """Whether it makes sense to write. ``why`` is a sentence for the operator, "" when all is well."""

    def __init__(self, path: Path, on_degraded: Callable[[str], None], retry_s: float, clock: Callable[[], float]) -> None:
        self.why = ""
        self._path = path
        self._on_degraded = on_degraded
        self._retry_s = retry_s
        self._clock = clock
        self._until_s = 0.0

    @property
    def waits(self) -> bool:
        """A write failed, and it is too early to try another."""
        return bool(self.why) and self._clock() < self._until_s

    def failed(self, error: OSError) -> None:
        """A write failed, or the folder could not be opened. Warns when this is news."""
        reason = _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
        why = f"nothing is written to the disk tier {self._path}: {reason}"
        self._until_s = self._clock() + self._retry_s
        if why != self.why:
            self.why = why
            log.warning("%s; models that leave RAM come from the model store again", why)
            self._on_degraded(why)

    def succeeded(self) -> None:
        """A write succeeded, or the folder is open."""
        if self.why:
            self.why = ""
            log.info("the disk tier %s can be written again", self._path)
            self._on_degraded("")
