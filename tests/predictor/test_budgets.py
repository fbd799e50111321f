"""Default budgets, from the limits a container or machine has."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from predictor.policy.residency import DISK, RAM, Place
from predictor.settings import Settings
from predictor.tiers.budgets import FRONT_BYTES, POOL_WORKER_BYTES, ZYGOTE_BYTES, NoBudget, budgets, memory_limit

GIB = 1 << 30


def settings(**values: Any) -> Settings:
    return Settings(models="s3://bucket", **values)


def machine(root: Path, *, v1: str = "", v2: str = "", available_kb: int = 8 * 1024 * 1024) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_kb} kB\n")
    (root / "sys/fs/cgroup/memory").mkdir(parents=True)
    if v1:
        (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(v1 + "\n")
    if v2:
        (root / "sys/fs/cgroup/memory.max").write_text(v2 + "\n")
    return root


@pytest.mark.parametrize(
    ("v1", "v2", "limit"),
    [("", "", None), ("", "max", None), ("9223372036854771712", "", None), ("", str(4 * GIB), 4 * GIB), (str(GIB), "", GIB)],
)
def test_the_limit_is_read_from_either_cgroup_version(tmp_path: Path, v1: str, v2: str, limit: int | None) -> None:
    assert memory_limit(machine(tmp_path / "m", v1=v1, v2=v2)) == limit


def test_a_container_shares_what_its_processes_leave_between_ram_and_device(tmp_path: Path) -> None:
    root = machine(tmp_path / "m", v2=str(5 * GIB))
    processes = FRONT_BYTES + ZYGOTE_BYTES + 2 * POOL_WORKER_BYTES
    bodies = 256 << 20
    room = (4 * GIB - processes - bodies) // 2
    chosen = settings(device_count=2, max_body_bytes_in_flight=bodies, memory_share=0.8)
    assert budgets(chosen, root=root) == {RAM: room, Place(0): room // 2, Place(1): room // 2}


def test_a_tiny_container_still_gets_a_cache(tmp_path: Path) -> None:
    root = machine(tmp_path / "m", v2=str(GIB))
    assert budgets(settings(memory_share=1), root=root) == {RAM: GIB // 8, Place(0): GIB // 8}


def test_without_a_limit_most_of_the_machine_is_left_to_others(tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    assert budgets(settings(device_count=2), root=root) == {RAM: 2 * GIB, Place(0): GIB // 2, Place(1): GIB // 2}


def test_what_the_operator_says_wins(tmp_path: Path) -> None:
    root = machine(tmp_path / "m")
    chosen = settings(ram_budget_bytes=10, device_budget_bytes=20)
    assert budgets(chosen, root=root) == {RAM: 10, Place(0): 20}


def test_a_disk_is_used_as_far_as_the_operator_says(tmp_path: Path) -> None:
    chosen = settings(disk_path=str(tmp_path / "cache"), disk_budget_bytes=GIB)
    assert budgets(chosen, root=machine(tmp_path / "m"))[DISK] == GIB


def test_without_a_word_a_disk_is_used_but_for_a_tenth_and_what_is_kept_there_counts_as_free(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "deep"
    free = os.statvfs(tmp_path)
    told = budgets(settings(disk_path=str(folder)), root=machine(tmp_path / "m"))[DISK]
    assert told == pytest.approx(free.f_bavail * free.f_frsize * 0.9, rel=0.05)


def test_in_kubernetes_a_disk_without_a_budget_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(NoBudget, match="HEARTH_DISK_BUDGET_BYTES below the volume's sizeLimit"):
        budgets(settings(disk_path=str(tmp_path)), root=machine(tmp_path / "m"))


def test_a_gpu_whose_memory_cannot_be_told_asks_for_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_name: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(NoBudget, match="HEARTH_DEVICE_BUDGET_BYTES"):
        budgets(settings(), "cuda", root=machine(tmp_path / "m"))
    told = budgets(settings(device_budget_bytes=7), "cuda", root=machine(tmp_path / "n"))
    assert told == {RAM: 4 * GIB, Place(0): 7}
