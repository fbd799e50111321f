"""Undrawn random numbers: never drawn where the file replaces them, always right where it does not."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from predictor.engine.skeleton import BIG_BYTES, made


class Recipe:
    """A builder that counts how often it is run."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self.runs = 0

    def __call__(self) -> nn.Module:
        self.runs += 1
        return self._make()


def build(make: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    recipe = Recipe(make)
    module = made(recipe, in_file=lambda module: module.state_dict().keys())
    return module, recipe.runs


def outside(module: nn.Module) -> dict[str, torch.Tensor]:
    """What no file has: buffers that are not persistent."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


class Rope(nn.Module):
    """A table that is computed, not learned."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        angles = torch.outer(torch.arange(16.0), 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)))
        self.register_buffer("cos", angles.cos(), persistent=False)


def usual() -> list[Callable[[], nn.Module]]:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Embedding(50, 8, padding_idx=0), nn.Linear(8, 50, bias=False))
        module[1].weight = module[0].weight
        return module

    def scaled() -> nn.Module:
        module = nn.Linear(8, 8)
        module.token = nn.Parameter(torch.randn(1, 1, 8) * 0.02)
        module.table = nn.Parameter(torch.zeros(1, 4, 8))
        nn.init.trunc_normal_(module.table, std=0.02)
        module.weight.data.normal_(0.0, 0.02)
        return module

    def conv() -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
        return module

    def orthogonal() -> nn.Module:
        module = nn.Linear(8, 8)
        nn.init.orthogonal_(module.weight)
        nn.init.xavier_uniform_(module.weight)
        return module

    def encoder() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    return [Rope, tied, scaled, conv, orthogonal, encoder, lambda: nn.LSTM(4, 4, 2), lambda: nn.MultiheadAttention(8, 2)]


@pytest.mark.parametrize("make", usual())
def test_usual_models_are_built_once_without_drawing_and_right_in_what_no_file_has(make: Callable[[], nn.Module]) -> None:
    state = torch.get_rng_state()
    module, runs = build(make)
    assert runs == 1
    assert torch.equal(torch.get_rng_state(), state)
    plain = make()
    assert {name: value.shape for name, value in module.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    for name, value in outside(plain).items():
        assert torch.equal(outside(module)[name], value), name


def _seeded_table() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)  # draws first: the table's numbers come after its
    module.register_buffer("frequencies", torch.randn(8), persistent=False)
    return module


def _filled_buffer() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("noise", torch.empty(8), persistent=False)
    nn.init.normal_(module.get_buffer("noise"))
    return module


def _permutation() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("order", torch.randperm(100), persistent=False)
    return module


def _from_weight() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("norm", module.weight.detach().norm(dim=1), persistent=False)
    return module


def _attribute_in_a_list() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    tables = [torch.rand(8)]
    vars(module)["tables"] = tables
    module.register_buffer("first", tables[0].clone(), persistent=False)
    return module


def _looks_at_a_value() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("count", torch.tensor([int((module.weight > 0).sum())]), persistent=False)
    return module


def _catches_everything() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    try:
        largest = module.weight.max().item()
    except Exception:  # noqa: BLE001 (as careless builders do)
        largest = -1.0
    module.register_buffer("largest", torch.tensor([largest]), persistent=False)
    return module


def _numpy() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("copied", torch.from_numpy(module.weight.detach().numpy().copy()), persistent=False)
    return module


def _unlisted_draw() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    module.register_buffer("gumbel", nn.functional.gumbel_softmax(torch.zeros(1, 8)), persistent=False)
    return module


class Holder:
    """An object of the model's own, which is no module."""

    def __init__(self) -> None:
        self.table = torch.randn(8)


def _held_elsewhere() -> nn.Module:
    torch.manual_seed(7)
    module = nn.Linear(8, 8)
    vars(module)["holder"] = Holder()
    return module


@pytest.mark.parametrize(
    "make",
    [
        _seeded_table,
        _filled_buffer,
        _permutation,
        _from_weight,
        _attribute_in_a_list,
        _looks_at_a_value,
        _catches_everything,
        _numpy,
        _unlisted_draw,
        _held_elsewhere,
    ],
)
def test_whatever_depends_on_a_random_number_is_as_the_author_built_it(make: Callable[[], nn.Module]) -> None:
    module, runs = build(make)
    assert runs == 2
    plain = make()
    for name, value in outside(plain).items():
        assert torch.equal(outside(module)[name], value), name
    if "holder" in vars(plain):
        assert torch.equal(vars(module)["holder"].table, vars(plain)["holder"].table)


def test_an_authors_own_generator_draws_in_the_authors_order() -> None:
    def make() -> nn.Module:
        own = torch.Generator().manual_seed(3)
        module = nn.Linear(8, 8)
        nn.init.normal_(module.bias, generator=own)
        module.register_buffer("table", torch.randn(8, generator=own), persistent=False)
        return module

    module, runs = build(make)
    assert runs == 1
    assert torch.equal(outside(module)["table"], outside(make())["table"])


def test_an_error_of_the_builder_is_told_and_one_of_undrawn_values_is_not() -> None:
    def broken() -> nn.Module:
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        build(broken)

    def picky() -> nn.Module:
        module = nn.Linear(8, 8)
        nn.init.constant_(module.bias, 1.0)
        if not bool((module.bias == 1).all()):
            raise ValueError("not initialised")
        return module

    module, runs = build(picky)
    assert runs == 2
    assert module.get_parameter("bias").tolist() == [1.0] * 8


def test_big_parameters_take_no_memory_before_they_are_replaced() -> None:
    module, _ = build(lambda: nn.Embedding(1000, BIG_BYTES // 4000 + 1))
    address = next(module.parameters()).data_ptr()
    with open("/proc/self/smaps") as smaps:  # noqa: PTH123 (a test reads one file)
        for line in smaps:
            bounds = line.split()[0].split("-")
            if len(bounds) == 2 and int(bounds[0], 16) <= address < int(bounds[1], 16):
                assert "s" in line.split()[1], f"a private mapping counts against the cap: {line}"
                resident = next(line for line in smaps if line.startswith("Rss:"))
                assert int(resident.split()[1]) <= 4
                return
    raise AssertionError("not mapped")


def test_modules_can_be_copied_while_they_are_built() -> None:
    module, runs = build(lambda: nn.ModuleList(copy.deepcopy(part) for part in [nn.Linear(4, 4)] * 3))
    assert runs == 1
    assert len({parameter.data_ptr() for parameter in module.parameters()}) == 6


def test_building_does_not_import_torchs_compiler() -> None:
    before = set(sys.modules)
    build(Rope)
    assert not {name for name in set(sys.modules) - before if name.startswith(("torch._dynamo", "torch._inductor", "sympy"))}
