"""Whether a request is what its model takes; so that the client hears it from the front, in words, before a worker is asked."""

from __future__ import annotations

from collections.abc import Sequence

from predictor.errors import SchemaMismatch
from predictor.model import ModelRef, TensorSpec
from predictor.wire import Tensor


def check(ref: ModelRef, fields: Sequence[TensorSpec], tensors: Sequence[Tensor]) -> None:
    """Compare a request's inputs with the model's. An empty schema is unknown and takes everything.

    Raises SchemaMismatch with the names, what was expected and what came.
    """
    if not fields:
        return
    wanted = {field.name: field for field in fields}
    for tensor in tensors:
        field = wanted.pop(tensor.name, None)
        if field is None:
            raise SchemaMismatch(f"model {ref} has no input {tensor.name!r}; it takes {_listed(fields)}")
        if field.datatype and field.datatype != tensor.datatype:
            raise SchemaMismatch(f"input {tensor.name!r} of model {ref} is {field.datatype}, the request has {tensor.datatype}")
        if not fits(field.shape, tensor.shape):
            raise SchemaMismatch(
                f"input {tensor.name!r} of model {ref} has shape {list(field.shape)} (-1: any length), "
                f"the request has {list(tensor.shape)}"
            )
    if wanted:
        raise SchemaMismatch(f"model {ref} also needs {_listed(tuple(wanted.values()))}; the request lacks it")


def fits(pattern: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether ``shape`` is what ``pattern`` says; -1 there takes any length."""
    if len(pattern) != len(shape):
        return False
    for want, have in zip(pattern, shape, strict=True):  # noqa: SIM110 (all() with a generator takes three times as long)
        if want not in (-1, have):
            return False
    return True


def _listed(fields: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{field.name!r} {field.datatype} {list(field.shape)}" for field in fields)
