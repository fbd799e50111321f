"""Format pytorch: a state dict in safetensors and the model's own ``model.py`` with ``build(config) -> torch.nn.Module``.

The module is built without drawing random numbers (skeleton.py) and then given the file's tensors as its parameters: views
of the arena, not copies. Whoever comes here has the operator's consent to run the model's code.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import torch

from predictor.engine import skeleton
from predictor.engine.device import HOST, Files
from predictor.engine.formats import Input, Output
from predictor.engine.tensors import from_torch, to_torch
from predictor.engine.told import sendable
from predictor.errors import LoadFailed, ModelFailed, SchemaMismatch
from predictor.wire import Field, Load

WEIGHTS: Final = "model.safetensors"
CODE: Final = "model.py"
CONFIG: Final = "config.json"
NAMED: Final = 10
"""Names of missing or unexpected tensors that an error lists."""


def build_module(load: Load, files: Files) -> TorchModel:
    """Build, give weights, check that nothing is missing. Raises LoadFailed."""
    for path in (WEIGHTS, CODE):
        if path not in files:
            raise LoadFailed(f"the model has no {path}")
    weights = files.tensors(WEIGHTS)
    make = _builder(_text(files, CODE))
    config = _config(load, files)
    module = _assemble(make, config, weights, files.device)
    return TorchModel(module, load, files, weights)


class TorchModel:
    """A module ready to run."""

    def __init__(self, module: torch.nn.Module, load: Load, files: Files, weights: dict[str, torch.Tensor]) -> None:
        self.inputs: tuple[Field, ...] = load.inputs
        self.outputs: tuple[Field, ...] = load.outputs
        self.own_bytes = files.own_bytes + _beside(module, weights)
        self._module = module
        self._device = files.device
        self._positions = {field.name: position for position, field in enumerate(load.inputs)}
        kinds = inspect.signature(module.forward).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._arguments = frozenset(argument.name for argument in kinds if argument.kind in named)

    def run(self, inputs: list[Input], wanted: tuple[str, ...]) -> list[Output]:
        """Inputs bind by name to forward's arguments, else in the manifest's order, else in the request's."""
        tensors = {tensor.name: to_torch(tensor, data) for tensor, data in inputs}
        if self._device != HOST:
            tensors = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            if self._arguments.issuperset(tensors):
                result = self._module(**tensors)
            else:
                last = len(self._positions)
                ordered = sorted(tensors, key=lambda name: self._positions.get(name, last))
                result = self._module(*(tensors[name] for name in ordered))
            return _select(self._named(result), wanted)

    def _named(self, result: object) -> dict[str, torch.Tensor]:
        if isinstance(result, Mapping):
            named = {sendable(str(name)): value for name, value in result.items()}
        else:
            values = list(result) if isinstance(result, (tuple, list)) else [result]
            names = [field.name for field in self.outputs]
            if len(names) != len(values):
                names = [f"OUTPUT__{position}" for position in range(len(values))]
            named = dict(zip(names, values, strict=True))
        for name, value in named.items():
            if not isinstance(value, torch.Tensor):
                raise ModelFailed(f"output {name!r} is a {type(value).__name__}: forward must return tensors")
        return named


def _select(named: dict[str, torch.Tensor], wanted: tuple[str, ...]) -> list[Output]:
    unknown = [name for name in wanted if name not in named]
    if unknown:
        raise SchemaMismatch(f"the model has no output {unknown[0]!r}; it has {', '.join(named)}")
    return [from_torch(name, named[name]) for name in (wanted or named)]


def _text(files: Files, path: str) -> str:
    try:
        return bytes(files[path].numpy().data).decode()
    except UnicodeDecodeError as error:
        raise LoadFailed(f"{path} is not UTF-8: {error}") from None


def _builder(source: str) -> Any:
    module = types.ModuleType("hearth_model")
    exec(compile(source, CODE, "exec"), module.__dict__)  # noqa: S102 (HEARTH_TRUST=code is the consent)
    make = getattr(module, "build", None)
    if not callable(make):
        raise LoadFailed(f"{CODE} defines no function build(config) -> torch.nn.Module")
    return make


def _config(load: Load, files: Files) -> Any:
    text = load.parameters_json or (_text(files, CONFIG) if CONFIG in files else "{}")
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"{CONFIG} cannot be read: {error}") from None


def _assemble(make: Any, config: Any, weights: dict[str, torch.Tensor], device: torch.device) -> torch.nn.Module:
    # A parameter that the file lacks is refused below, so what the module's state names is what the file replaces.
    module = skeleton.made(lambda: _made(make, config), in_file=lambda module: module.state_dict().keys())
    module.requires_grad_(requires_grad=False)
    _give(module, weights)
    left = [name for name, tensor in skeleton.held(module) if tensor.is_meta]
    if left:
        raise LoadFailed(f"build(config) in {CODE} leaves {_list(left)} on the meta device, and no file has them")
    if device != HOST:
        _move(module, device)
    return module.eval()


def _move(module: torch.nn.Module, device: torch.device) -> None:
    """To the device with what is in no file: buffers, and attributes that are plain tensors, which Module.to leaves."""
    for part in module.modules():
        for held in (part._buffers, vars(part)):  # noqa: SLF001 (torch's own way to tell a buffer from an attribute)
            moved = {name: value.to(device) for name, value in held.items() if isinstance(value, torch.Tensor)}
            held.update(moved)


def _beside(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> int:
    """Bytes of the module's tensors that are not the file's: buffers, and what is in no file."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    own = (tensor.untyped_storage() for _, tensor in skeleton.held(module) if not tensor.is_sparse)
    return sum({storage.data_ptr(): storage.nbytes() for storage in own if storage.data_ptr() not in shared}.values())


def _made(make: Any, config: Any) -> torch.nn.Module:
    module = make(config)
    if not isinstance(module, torch.nn.Module):
        raise LoadFailed(f"build(config) in {CODE} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _give(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Parameters become the file's tensors; buffers become copies, because a forward may write to them."""
    given = dict(weights)
    parameters: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parameters.setdefault(id(parameter), []).append(name)
    for names in parameters.values():  # tied: the file names only one of them
        present = next((name for name in names if name in weights), None)
        if present is not None:
            given.update(dict.fromkeys(names, weights[present]))
    for name, _ in module.named_buffers(remove_duplicate=False):
        if name in given:
            given[name] = given[name].clone()
    expected = module.state_dict().keys()
    missing, unexpected = sorted(expected - given.keys()), sorted(given.keys() - expected)
    if missing or unexpected:
        raise LoadFailed(
            f"{WEIGHTS} does not fit the module that build() made: "
            f"missing {_list(missing)}; not in the module {_list(unexpected)}"
        )
    before = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    try:
        module.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:
        raise LoadFailed(f"{WEIGHTS} does not fit the module that build() made: {error}") from None
    skeleton.relink(module, before)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) + more) if names else "nothing"
