"""How many bytes each tier may use when the operator does not say. Reads limits; decides nothing else.

The container's memory limit covers RAM tier, workers and front alike, so on a CPU the device tier shares it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from predictor.policy.residency import DISK, RAM, Place
from predictor.settings import Settings

FRONT_BYTES: Final = 160 << 20
WORKER_BYTES: Final = 512 << 20
ZYGOTE_BYTES: Final = 384 << 20
POOL_WORKER_BYTES: Final = 128 << 20
"""What the processes take before any model, and under load: a front of 95 MB after 20,000 requests; a zygote of 310 MB with
torch and ONNX Runtime imported, and what each device's first worker changes of that or adds to it, 10 MB when it comes and
more when it computes; or, for CUDA, a worker with all of it. tests/predictor/test_pod_tiers.py holds them to it. Further
workers are booked with their models (tiers/device.py)."""

GPU_RESERVE_BYTES: Final = 768 << 20
"""What a CUDA context and its libraries take of a device beside the models. Unverified on a GPU."""

NO_LIMIT: Final = 1 << 60
"""cgroup v1 says about 2**63 where nobody set a limit."""


class NoBudget(Exception):
    """A budget cannot be told and has to be said; the message says by which setting."""


def budgets(settings: Settings, kind: str = "cpu", *, root: Path = Path("/")) -> dict[Place, int]:
    """Bytes per place. ``root`` holds /sys/fs/cgroup and /proc/meminfo. Raises NoBudget.

    With a container limit: what the processes and request bodies leave of it, half for RAM and half for the devices (at
    least an eighth of the limit each). Without one the machine has other users: a quarter of what is available, and an
    eighth. A GPU has memory of its own: what is free there.
    """
    limit = memory_limit(root)
    if limit is not None:
        limit = int(limit * settings.memory_share)  # above that a worker is ended: workers/memory_watch.py
        taken = FRONT_BYTES + _workers_bytes(kind, settings.device_count) + settings.max_body_bytes_in_flight
        usable = max(limit - taken, limit // 4)
        ram, devices = usable // 2, usable // 2
    else:
        available = _available(root)
        ram, devices = available // 4, available // 8
    if kind == "cuda":
        ram *= 2
        free = {index: settings.device_budget_bytes or gpu_budget(index) for index in range(settings.device_count)}
    else:
        free = dict.fromkeys(range(settings.device_count), settings.device_budget_bytes or devices // settings.device_count)
    found = {RAM: settings.ram_budget_bytes or ram, **{Place(index): size_bytes for index, size_bytes in free.items()}}
    if settings.disk_path:
        found[DISK] = settings.disk_budget_bytes or _disk_budget(Path(settings.disk_path), os.environ)
    return found


def _workers_bytes(kind: str, count: int) -> int:
    return count * WORKER_BYTES if kind == "cuda" else ZYGOTE_BYTES + count * POOL_WORKER_BYTES


def memory_limit(root: Path = Path("/")) -> int | None:
    """The container's memory limit in bytes (cgroup v2, else v1); None where there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / "sys/fs/cgroup" / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < NO_LIMIT:
            return int(text)
    return None


def gpu_budget(index: int) -> int:
    """What is free on a GPU, less the reserve, as NVML tells it: no CUDA context is made for the question.

    Raises NoBudget: there is no NVML, or no such GPU. Unverified on a GPU.
    """
    memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle = ctypes.c_void_p()
        told = (
            nvml.nvmlInit_v2()
            or nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
            or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        )
    except (OSError, AttributeError) as error:
        raise NoBudget(f"the memory of GPU {index} cannot be told ({error}): set HEARTH_DEVICE_BUDGET_BYTES") from None
    if told:
        raise NoBudget(f"the memory of GPU {index} cannot be told (NVML error {told}): set HEARTH_DEVICE_BUDGET_BYTES")
    return max(memory[1] - GPU_RESERVE_BYTES, memory[1] // 2)


def _disk_budget(folder: Path, environment: Mapping[str, str]) -> int:
    """Nine tenths of what is free, or already the cache's.

    Not in Kubernetes: there the file system is the node's, a pod that takes what is free of it is evicted, and only the
    manifest knows the volume's limit.
    """
    if "KUBERNETES_SERVICE_HOST" in environment:
        raise NoBudget(f"HEARTH_DISK_PATH={folder} in Kubernetes: set HEARTH_DISK_BUDGET_BYTES below the volume's sizeLimit")
    there = folder
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    kept_bytes = sum(file.stat().st_blocks * 512 for file in folder.glob("*.arena")) if folder.is_dir() else 0
    return (status.f_bavail * status.f_frsize + kept_bytes) * 9 // 10


def _available(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable in /proc/meminfo")
