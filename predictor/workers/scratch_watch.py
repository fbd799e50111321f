"""Watches what workers write into their folders, and ends the one that takes more than its share.

The folders of all workers lie on one volume, and Kubernetes ends the whole pod when that holds more than its `sizeLimit`: every
model for the sake of one. What stays out: making and emptying the folders (scratch.py), the bound of a single file
(engine/confine.py), what a death means to its models (domains.py, quarantine).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from predictor import human
from predictor.workers.memory_watch import Candidate

log = logging.getLogger(__name__)

SCRATCH_FULL: Final = "scratch full"
"""The cause that is told of such a death."""

LOOK_S: Final = 1.0
"""Pause between two looks. For what is written meanwhile the manifest leaves 2 GiB beside all shares."""

IDLE_SHARE: Final = 20
"""A look that took long is followed by a pause so many times as long: 5 % of a core at most."""

MOST_ENTRIES: Final = 20_000
"""Files and folders that one worker may have: what cannot be counted in 0.1 s is not counted, and inodes are scarce, too. A
compiler's cache has some thousand."""

HIDING: Final = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
"""Why a folder cannot be looked into that its model made so: it is closed to us, who are the same user, or nested deeper than a
path is long. Our own troubles (no descriptor is left) are no model's."""

BLOCK_BYTES: Final = 512
"""What ``st_blocks`` counts in, whatever the file system's own blocks are."""


class Written(NamedTuple):
    """What a folder holds.

    size_bytes  on the volume: holes are not counted, and what has several names is counted once
    entries     files and folders, at most one too many
    hidden      a folder in it that cannot be looked into; "": none
    """

    size_bytes: int
    entries: int
    hidden: str = ""


def written(folder: str, most_entries: int = MOST_ENTRIES) -> Written:
    """Walk through ``folder`` without following links. What is gone meanwhile, or never was there, holds nothing.

    A file that is open and has no name any more is not seen; nor does a kubelet see it that counts in the same way.
    """
    size_bytes = entries = 0
    hidden = ""
    met: set[int] = set()  # inodes, of files that have more than one name
    left = [folder]
    while left and entries <= most_entries:
        path = left.pop()
        try:
            for entry, status in _entries(path):
                entries += 1
                if entries > most_entries:
                    break
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif status.st_nlink > 1:
                    if status.st_ino in met:
                        continue
                    met.add(status.st_ino)
                size_bytes += status.st_blocks * BLOCK_BYTES
        except OSError as error:
            if error.errno in HIDING:
                hidden = hidden or path.removeprefix(f"{folder}/")[:80]
    return Written(size_bytes, entries, hidden)


def _entries(path: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Raises OSError for the folder, and not for what is deleted while it is looked at: else that would hide the rest."""
    with os.scandir(path) as found:
        for entry in found:
            try:
                yield entry, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


class ScratchWatch:
    """Looks for as long as ``watch`` runs.

    share_bytes  that each worker's folder may take of the volume
    candidates   the workers there are
    on_end       a worker was ended
    """

    def __init__(
        self,
        share_bytes: int,
        candidates: Callable[[], Iterable[Candidate]],
        on_end: Callable[[], object],
        *,
        most_entries: int = MOST_ENTRIES,
    ) -> None:
        self.used_bytes = 0
        self._share_bytes = share_bytes
        self._candidates = candidates
        self._on_end = on_end
        self._most_entries = most_entries
        self._ended: set[str] = set()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            begin_s = time.monotonic()
            await self.look()
            await asyncio.sleep(max(LOOK_S, IDLE_SHARE * (time.monotonic() - begin_s)))

    async def look(self) -> None:
        """Once."""
        folders = {candidate.scratch for candidate in self._candidates() if candidate.scratch}
        found = await asyncio.to_thread(self._walk, folders)
        self.used_bytes = sum(one.size_bytes for one in found.values())
        self._ended &= folders
        # Asked anew: a worker that ended meanwhile has a successor of the same name, with a folder of its own.
        for candidate in self._candidates():
            if candidate.scratch in found and candidate.scratch not in self._ended:
                excess = self._excess(found[candidate.scratch])
                if excess:
                    self._end(candidate, excess)

    def _walk(self, folders: Iterable[str]) -> dict[str, Written]:
        return {folder: written(folder, self._most_entries) for folder in folders}

    def _excess(self, one: Written) -> str:
        """What is too much, in words; "": nothing."""
        if one.size_bytes > self._share_bytes:
            return f"{human.size(one.size_bytes)} of {human.size(self._share_bytes)} (HEARTH_SCRATCH_BYTES)"
        if one.entries > self._most_entries:
            return f"more than {self._most_entries:,} files"
        return f"a folder that cannot be looked into, {one.hidden!a}" if one.hidden else ""

    def _end(self, candidate: Candidate, excess: str) -> None:
        self._ended.add(candidate.scratch)  # its end may take some looks
        log.error("worker %s has %s in its folder and is ended", candidate.name, excess)
        candidate.end(f"scratch full: its folder holds {excess}; {candidate.models}", SCRATCH_FULL)
        self._on_end()
