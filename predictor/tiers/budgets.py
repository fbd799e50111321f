"""How many bytes each tier may use when the operator does not say. Reads limits; decides nothing else.

The container's memory limit covers RAM tier, workers and front alike, so on a CPU the device tier shares it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from predictor.policy.residency import RAM, Place
from predictor.settings import Settings

PROCESSES_BYTES: Final = 1 << 30
"""What front and worker take before any model: measured 60 MB + 0.45 GB with torch and ONNX Runtime, and room to compute."""

NO_LIMIT: Final = 1 << 60
"""cgroup v1 says about 2**63 where nobody set a limit."""


def budgets(settings: Settings, *, root: Path = Path("/")) -> dict[Place, int]:
    """Bytes per place. ``root`` holds /sys/fs/cgroup and /proc/meminfo.

    With a container limit: what the processes leave of it, half for RAM and half for the devices (at least an eighth
    of the limit each). Without one the machine has other users: a quarter of what is available, and an eighth.
    """
    limit = memory_limit(root)
    if limit is not None:
        usable = max(limit - PROCESSES_BYTES * settings.device_count, limit // 4)
        ram, devices = usable // 2, usable // 2
    else:
        available = _available(root)
        ram, devices = available // 4, available // 8
    per_device = settings.device_budget_bytes or devices // settings.device_count
    return {RAM: settings.ram_budget_bytes or ram, **{Place(device): per_device for device in range(settings.device_count)}}


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


def _available(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable in /proc/meminfo")
