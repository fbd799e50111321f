"""Builds a module without drawing the random numbers that the file's weights replace anyway.

Random values stay undrawn: their tensor is left as it was allocated and is *marked*, by its storage. What is computed from
a marked tensor is marked too. As soon as Python looks at a value of a marked tensor, or a marked tensor stays in the
module where no file replaces it, the build is done over with everything drawn, in the order the author wrote it. So a
seeded random table is right, and a model that asks for nothing unusual is built without touching its weights' memory.

Why not the meta device: docs/decisions/0006-building-without-meta.md.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

BIG_BYTES: Final = 1 << 20
"""From this size on a tensor that is left unwritten gets a shared mapping: unlike malloc's, it does not count against
RLIMIT_DATA (engine/memory.py), which would else refuse a model for room that it never uses."""

FILLS: Final = frozenset({
    "normal_", "uniform_", "random_", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_",
    "kaiming_uniform_", "kaiming_normal_", "trunc_normal_", "orthogonal_",
})  # fmt: skip
"""In place and random: the values before do not matter, the values after are undrawn."""

CHAINED: Final = frozenset({
    "add_", "sub_", "mul_", "div_", "clamp_", "clamp_min_", "clamp_max_", "erfinv_", "fill_", "zero_", "constant_",
})  # fmt: skip
"""In place with numbers only: on a marked tensor not worth doing (torch.nn.init.trunc_normal_ is made of these)."""

SCALED: Final = frozenset({
    "clone", "mul", "__mul__", "__rmul__", "div", "__truediv__", "add", "__add__", "sub", "__sub__",
})  # fmt: skip
"""A marked floating tensor and numbers: the result is a marked tensor of the same shape."""

DRAWN: Final[dict[str, Callable[..., torch.Tensor]]] = {
    "rand": torch.empty,
    "randn": torch.empty,
    "rand_like": torch.empty_like,
    "randn_like": torch.empty_like,
}
"""Factories of random tensors, and what makes the same tensor without values."""

RANDOM: Final = frozenset({
    "randint", "randint_like", "randperm", "normal", "bernoulli", "multinomial", "poisson", "binomial", "rrelu",
    "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
})  # fmt: skip
"""Drawn for real (their values have a form that must be kept, as a permutation's), and marked."""

BLIND: Final = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "storage_offset", "is_contiguous", "is_shared",
    "is_floating_point", "is_complex", "is_signed", "get_device", "result_type", "requires_grad_", "__len__", "__hash__",
    "__repr__",
})  # fmt: skip
"""Answer without looking at values. Of properties, all do."""


class _ValueNeeded(BaseException):
    """The model's code looks at a random value. Not an Exception: builders catch those."""


def made(make: Callable[[], torch.nn.Module], *, in_file: Callable[[torch.nn.Module], Iterable[str]]) -> torch.nn.Module:
    """What ``make`` makes, right in every tensor that is not in the file.

    in_file  names of the module's state that the file replaces
    """
    state = torch.get_rng_state()
    undrawn = _Undrawn()
    try:
        with undrawn:
            module = make()
        drew = not torch.equal(torch.get_rng_state(), state)  # by a way that we do not see; the skipped came before it
        if not undrawn.marked or (not drew and undrawn.only_in(module, frozenset(in_file(module)))):
            return module
    except _ValueNeeded:
        pass
    except Exception:
        if not undrawn.marked:
            raise
        # Undrawn values can be its cause: the full build decides.
    torch.set_rng_state(state)
    return make()


class _Undrawn(TorchFunctionMode):
    """Sees every torch function that this thread calls from Python. Other threads compute undisturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[int, torch.UntypedStorage] = {}  # kept alive: a freed one's address would mark a stranger

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run ``func``, or leave its values undrawn."""
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        # A generator of the author's own is drawn from in the author's order, whatever else is skipped.
        own = isinstance(kwargs.get("generator"), torch.Generator) or any(isinstance(one, torch.Generator) for one in args)
        if not own and (name in DRAWN or name == "empty") and "out" not in kwargs:
            tensor = _unwritten(DRAWN.get(name, func), args, kwargs)
            return tensor if name == "empty" else self._mark(tensor)
        first = args[0] if args else kwargs.get("tensor")
        # Zeroing a parameter is not random, but writing to all of it is not for nothing either.
        whole = name in CHAINED and isinstance(first, torch.nn.Parameter) and not _with_tensors(args, kwargs)
        if not own and (whole or (name in FILLS and isinstance(first, torch.Tensor))):
            return self._mark(first)
        if not own and (name in RANDOM or name in DRAWN):
            return self._mark(func(*args, **kwargs))
        if name == "__get__" or name in BLIND or not any(map(self.is_marked, _tensors((args, kwargs)))):
            return func(*args, **kwargs)
        return self._on_marked(func, name, args, kwargs)

    def _on_marked(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else None
        if not _with_tensors(args, kwargs) and isinstance(first, torch.Tensor) and self.is_marked(first):
            if name in CHAINED:
                return first
            if name in SCALED and first.is_floating_point() and "out" not in kwargs:
                return self._mark(_unwritten(torch.empty_like, (first,), {}))
        result = func(*args, **kwargs)
        if result is not None and not any(True for _ in _tensors(result)):
            raise _ValueNeeded
        if isinstance(first, torch.Tensor) and (name.endswith("_") or result is None):  # in place, __setitem__ too
            self._mark(first)
        self._mark(kwargs.get("out"))
        return self._mark(result)

    def is_marked(self, tensor: torch.Tensor) -> bool:
        """Whether its values, or those of a tensor that it is a view of, are undrawn."""
        return not tensor.is_sparse and _storage(tensor) in self.marked

    def _mark(self, result: Any) -> Any:
        for tensor in _tensors(result):
            if tensor.is_sparse:
                raise _ValueNeeded
            self.marked[_storage(tensor)] = tensor.untyped_storage()
        return result

    def only_in(self, module: torch.nn.Module, in_file: frozenset[str]) -> bool:
        """Whether every undrawn tensor that is still there is one that the file replaces."""
        marked = [(name, tensor) for name, tensor in held(module) if self.is_marked(tensor)]
        replaced = {_storage(tensor): tensor.dtype for name, tensor in marked if name in in_file}
        if any(replaced.get(_storage(tensor)) != tensor.dtype for _, tensor in marked):
            return False  # ``relink`` could not give it the file's values
        # One use is ours. Another is a tensor somewhere that ``held`` does not reach: in an object of the model's own.
        use_count = torch._C._storage_Use_Count  # noqa: SLF001 (nothing public tells)
        return all(key in replaced or use_count(key) == 1 for key in self.marked)


def held(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that the module's parts hold: parameters, buffers, attributes and what lists and dicts of them hold."""
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        own = {**vars(part), **part._buffers, **part._parameters}  # noqa: SLF001 (torch's own way to tell them apart)
        for name, value in own.items():
            if name not in {"_parameters", "_buffers", "_modules"}:
                yield from ((prefix + name, tensor) for tensor in _tensors(value))


def relink(module: torch.nn.Module, old: dict[str, torch.Tensor]) -> None:
    """Have what looks at a replaced tensor look at the new one: lists of parameters, slices and ``.data`` kept as attributes.

    So it would be if the file's values had been copied into the module's own tensors.
    old  the module's state by name, from before its tensors were replaced
    """
    new = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    changed = [(tensor, new[name]) for name, tensor in old.items() if name in new and new[name] is not tensor]
    pairs = {_storage(before): (before, after) for before, after in changed}

    def seen(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            before, after = pairs.get(_storage(value), (value, value)) if not value.is_sparse else (value, value)
            if after is value or value is before:
                return after
            if value.dtype != after.dtype or before.stride() != after.stride():
                return value
            return after.detach().as_strided(
                value.shape, value.stride(), after.storage_offset() + value.storage_offset() - before.storage_offset()
            )
        if type(value) in {list, tuple, set}:
            return type(value)(seen(one) for one in value)
        return {key: seen(one) for key, one in value.items()} if type(value) is dict else value

    for part in module.modules():
        own = vars(part)
        for name, value in own.items():
            if name not in {"_parameters", "_modules"} and any(_storage(one) in pairs for one in _tensors(value)):
                own[name] = seen(value)


def _storage(tensor: torch.Tensor) -> int:
    """Which memory the tensor is a view of."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 (nothing public tells a storage's identity)


def _wrapped(original: Any) -> Any:
    """An initialiser of torch.nn.init that lets function modes see it, as most of them do by themselves."""

    @functools.wraps(original)
    def initialise(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(tensor):
            return handle_torch_function(initialise, (tensor,), tensor, *args, **kwargs)
        return original(tensor, *args, **kwargs)

    return initialise


# Both look at what they drew (the one in torch 2.15 draws again what is out of bounds), so they need to be skipped as a
# whole. Without a mode, in other threads for example, nothing changes.
for _name in ("trunc_normal_", "orthogonal_"):
    setattr(torch.nn.init, _name, _wrapped(getattr(torch.nn.init, _name)))


def _with_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a method's arguments beside the tensor itself have tensors among them."""
    return any(True for _ in _tensors((args[1:], {name: value for name, value in kwargs.items() if name != "tensor"})))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, set)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _unwritten(make: Callable[..., torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """``make``'s tensor; a big one on the CPU in memory that is not there before it is written."""
    plain = {name: value for name, value in kwargs.items() if name != "generator"}
    shown = make(*args, **{**plain, "device": "meta"}) if not plain.get("pin_memory") and "out" not in plain else None
    device = torch.device(plain.get("device") or (args[0].device if make is torch.empty_like else torch.get_default_device()))
    size_bytes = shown.untyped_storage().nbytes() if shown is not None else 0
    if shown is None or device.type != "cpu" or size_bytes < BIG_BYTES or shown.layout != torch.strided:
        return make(*args, **plain)
    memory = torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=torch.uint8).untyped_storage()
    tensor = torch.empty(0, dtype=shown.dtype).set_(memory, 0, shown.shape, shown.stride())
    assert math.prod(tensor.shape) * tensor.itemsize <= size_bytes, (tensor.shape, size_bytes)
    return tensor.requires_grad_(shown.requires_grad)
