"""The folders that workers may write to: one each, made by the front, removed by it when the worker is dead.

Standard library only, as the boot needs it. How much is written there is watched (scratch_watch.py).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final

PREFIX: Final = "hearth-"

AGAIN_S: Final = (0.1, 1.0, 10.0)
"""When a folder that was removed is removed again if it is not gone: what a dead worker left behind may write yet."""

_numbers: Final = itertools.count()
_home: list[Path] = []


def make() -> str:
    """A folder of our user's alone. Empty where none can be made: then a worker has to do without."""
    try:
        if not _home or not _home[0].is_dir():
            _home[:] = [_made()]
        path = _home[0] / str(next(_numbers))
        path.mkdir(0o700)
    except OSError:
        return ""
    return str(path)


def remove(path: str) -> None:
    """Remove a folder that ``make`` made: at once if it is empty, else in a thread: a model may have left a million files."""
    try:
        Path(path).rmdir()
    except OSError:
        threading.Thread(target=_remove, args=(path,), name="hearth-scratch", daemon=True).start()


def _made() -> Path:
    """The front's folder, beside those of fronts that are no more: these go."""
    below = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 (private by its mode, unguessable by its name)
    path = below / f"{PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
    for folder in below.glob(f"{PREFIX}*-{'[0-9a-f]' * 16}"):
        if _is_stale(folder):
            remove(str(folder))
    path.mkdir(0o700)
    atexit.register(_close, path)
    return path


def _is_stale(folder: Path) -> bool:
    """Whether it was made by a front that is dead; in a container the next one often has the same process id."""
    pid = folder.name.removeprefix(PREFIX).partition("-")[0]
    alive = not pid.isdigit() or (int(pid) != os.getpid() and Path(f"/proc/{pid}").exists())
    status = folder.lstat()
    return not alive and stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _close(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _remove(path: str) -> None:
    """Also what a model made unreadable for us, who are the same user."""
    import shutil  # noqa: PLC0415 (no part of a pod's start)

    for pause_s in (*AGAIN_S, 0.0):
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)
        for folder, names, _ in os.walk(path):
            for name in names:
                inside = Path(folder, name)
                with contextlib.suppress(OSError):
                    if not inside.is_symlink():
                        inside.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
        if not Path(path).exists():
            return
        time.sleep(pause_s)
