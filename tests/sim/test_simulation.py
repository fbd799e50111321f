"""The simulation, short in every run of the tests and long in ``make soak`` (SOAK_SIM_EVENTS, SOAK_SIM_SEEDS)."""

from __future__ import annotations

import os

import pytest

from tests.sim.world import World

EVENTS = int(os.environ.get("SOAK_SIM_EVENTS", "2000"))
SEEDS = int(os.environ.get("SOAK_SIM_SEEDS", "6"))
FIRST_SEED = int(os.environ.get("SOAK_SIM_FIRST_SEED", "1"))


@pytest.mark.asyncio
@pytest.mark.looptime
@pytest.mark.timeout(60 + EVENTS // 100)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
async def test_books_and_world_agree_whatever_happens(seed: int) -> None:
    world = World(seed)
    await world.run(EVENTS)
    answered = sum(world.answers[start] for start in ("hot", "ram", "disk", "s3"))
    assert answered > EVENTS / 4, f"seed {seed}: hardly anybody was answered: {world.answers}"
