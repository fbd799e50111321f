"""What a worker gives up before it runs a model's code: files, network, other processes, privileges, core dumps.

Everything here is the process's own to give up: it needs no privilege, works in any container, and cannot be taken back.
What it is good for and what not: docs/operations.md. What stays out: how the kernel is told (landlock.py, seccomp.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from predictor.boundary import Boundary
from predictor.engine import landlock, seccomp
from predictor.engine.process import be_looked_into

PR_GET_SECCOMP: Final = 21
PR_SET_NO_NEW_PRIVS: Final = 38
CAPSET: Final = {"x86_64": 126, "aarch64": 91}
CAPABILITIES: Final = 0x20080522
CAP_DAC_OVERRIDE: Final = 1 << 1

STRICT_STATUS: Final = 3
"""Exit status of a worker that should be confined and cannot be."""

SYSTEM: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store",
    *(f"/etc/{name}" for name in (
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "passwd", "group", "nsswitch.conf", "hosts",
        "resolv.conf", "host.conf", "gai.conf", "services", "protocols", "mime.types", "ssl/certs", "ssl/openssl.cnf",
        "pki/tls/certs", "pki/ca-trust", "ca-certificates", "fonts", "alternatives", "os-release", "OpenCL", "vulkan", "nvidia",
    )),
    "/sys/devices", "/sys/fs/cgroup", "/sys/class", "/sys/bus", "/sys/module",
    *(f"/proc/{name}" for name in (
        "cpuinfo", "meminfo", "stat", "version", "filesystems", "devices", "loadavg", "uptime", "modules", "sys", "driver",
    )),
    "/dev/random", "/dev/urandom",
)  # fmt: skip
"""What programs read of a system: libraries and fonts, names and certificates, what kind of machine it is."""

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full")
GPU_DEVICES: Final = ("nvidia*", "dri")

_held: list[int] = []
"""Descriptors of folders in /proc: as long as one is open, the kernel does not forget the object the rule is about."""


def missing() -> list[str]:
    """What this kernel cannot do of what ``confine`` asks of it, in words."""
    lacks = []
    if not landlock.version():
        lacks.append("Landlock (Linux 5.13 and CONFIG_SECURITY_LANDLOCK): its files are guarded by their modes alone")
    if ctypes.CDLL(None).prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0 or platform.machine() not in seccomp.MACHINES:
        lacks.append("seccomp: system calls and sockets are not filtered")
    return lacks


def complain(boundary: Boundary) -> None:
    """Say in one line what is missing, where it matters. SystemExit: the operator wants it all or nothing."""
    lacks = missing() if boundary.mode != "off" else []
    if lacks:
        print(f"hearth: model code is confined less than it could be: no {'; no '.join(lacks)}", file=sys.stderr)  # noqa: T201
        if boundary.mode == "strict":
            print("hearth: HEARTH_CONFINE=strict: no worker starts here", file=sys.stderr)  # noqa: T201
            sys.exit(STRICT_STATUS)


def settle(scratch: str) -> None:
    """Make ``scratch`` the place of everything that libraries write without being asked: caches, temporary files."""
    os.umask(0o077)
    sys.dont_write_bytecode = True
    if scratch:
        os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), scratch))
        tempfile.tempdir = None
        os.chdir(scratch)


def confine(boundary: Boundary, scratch: str, *, kind: str = "cpu") -> None:
    """Give everything up that ``boundary`` says. In the only thread of this process, before any model's code.

    scratch  the one folder it may write to; "": there is none
    kind     ``cuda`` keeps the GPU's device files, and sockets of the machine itself

    OSError: the kernel refuses what ``missing`` found it to know.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if boundary.mode == "off":
        return
    if kind == "cpu":  # a driver may well have shared memory of its own
        _limit_files(boundary.scratch_bytes)
    _count_threads(boundary)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities(libc)
    scoped = landlock.version() >= landlock.SCOPE_VERSION
    if landlock.version():
        _restrict_files(boundary, scratch, kind)
    be_looked_into(allowed=False)
    if not any(what.startswith("seccomp") for what in missing()):
        seccomp.Filter(network=boundary.network, local=kind == "cuda", signals=scoped).enforce()


def _count_threads(boundary: Boundary) -> None:
    """A thread that is there already keeps what it has, and who is in the same process can have it work for them."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        print(f"hearth: a library started {threads - 1} threads when it was imported: they are not confined", file=sys.stderr)  # noqa: T201
        if boundary.mode == "strict":
            sys.exit(STRICT_STATUS)


@contextlib.contextmanager
def files_of_any_size() -> Iterator[None]:
    """For shared memory, which to the kernel is a file, and larger than model code's may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _limit_files(most_bytes: int) -> None:
    """No file grows beyond that by accident: EFBIG in Python, which ignores SIGXFSZ.

    A model can lift it again, as we do. Then the front sees what it wrote, as it sees how many files there are.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard), hard))


def _restrict_files(boundary: Boundary, scratch: str, kind: str) -> None:
    rules = landlock.Ruleset(network=boundary.network)
    hidden = list(map(Path, boundary.hidden))
    named = landlock.outside(map(Path, (*_interpreter(), *boundary.readable)), [*hidden, Path("/proc"), Path("/dev")])
    for path in (*named, *landlock.outside(map(Path, SYSTEM), hidden)):
        _allow(rules, path, landlock.READ)
    devices = [Path(name) for name in DEVICES]
    if kind == "cuda":
        devices += [path for pattern in GPU_DEVICES for path in Path("/dev").glob(pattern)]
    for path in devices:
        _allow(rules, path, landlock.USE)
    # As our process is called now: through its own number, and nobody else's.
    with contextlib.suppress(OSError):
        _held.append(rules.allow(Path(f"/proc/{os.getpid()}"), landlock.READ))
    if scratch:
        _allow(rules, Path(scratch), landlock.OWN)
    rules.enforce()


def _allow(rules: landlock.Ruleset, path: Path, rights: int) -> None:
    """What is not there cannot be allowed, and need not."""
    with contextlib.suppress(OSError):
        os.close(rules.allow(path, rights))


def _interpreter() -> list[str]:
    """Where Python and its modules are. Not the folder it was started in, which leads sys.path and may be anything."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path[1:], *libraries)
    return [path for path in found if path] + [str(Path(__file__).parents[1])]


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Of root's capabilities keep the one to read what belongs to others, as far as there is one: Python may lie there."""
    number = CAPSET.get(platform.machine())
    if number is None:
        return
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITIES, 0), 8)
    data = ctypes.create_string_buffer(24)
    get = number - 1
    if libc.syscall(ctypes.c_long(get), header, data):
        return
    effective, permitted, _, *_ = struct.unpack("=6I", data.raw)
    kept = struct.pack("=6I", effective & CAP_DAC_OVERRIDE, permitted & CAP_DAC_OVERRIDE, 0, 0, 0, 0)
    libc.syscall(ctypes.c_long(number), header, ctypes.create_string_buffer(kept, 24))
