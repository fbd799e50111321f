"""What a model takes, compared with what a request brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.api.schema import check, fits
from predictor.errors import SchemaMismatch
from predictor.model import ModelRef, TensorSpec
from predictor.wire import Tensor

REF = ModelRef("default", "m", 2)
FIELDS = (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("mask", "BOOL", (-1,)))


def tensors(*items: tuple[str, str, tuple[int, ...]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, datatype, shape, 0) for name, datatype, shape in items)


X, MASK = ("x", "FP32", (3, 4)), ("mask", "BOOL", (3,))


@pytest.mark.parametrize("items", [(X, MASK), (MASK, X)])
def test_inputs_fit_in_any_order(items: tuple[tuple[str, str, tuple[int, ...]], ...]) -> None:
    check(REF, FIELDS, tensors(*items))


def test_an_unknown_schema_takes_everything() -> None:
    check(REF, (), tensors(("whatever", "BYTES", (7,))))


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ((X,), "model m:2 also needs 'mask' BOOL [-1]; the request lacks it"),
        ((), "also needs 'x' FP32 [-1, 4], 'mask' BOOL [-1]"),
        ((X, MASK, ("y", "FP32", (1,))), "model m:2 has no input 'y'; it takes 'x' FP32 [-1, 4], 'mask' BOOL [-1]"),
        ((("x", "FP64", (3, 4)), MASK), "input 'x' of model m:2 is FP32, the request has FP64"),
        ((("x", "FP32", (3, 5)), MASK), "has shape [-1, 4] (-1: any length), the request has [3, 5]"),
        ((("x", "FP32", (4,)), MASK), "the request has [4]"),
        ((("x", "FP32", (3, 4, 1)), MASK), "the request has [3, 4, 1]"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(items: tuple[tuple[str, str, tuple[int, ...]], ...], says: str) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        check(REF, FIELDS, tensors(*items))

    assert says in refused.value.message


@given(st.lists(st.integers(0, 9), max_size=4), st.data())
def test_a_shape_fits_itself_with_any_of_its_lengths_left_open(shape: list[int], data: st.DataObject) -> None:
    pattern = [data.draw(st.sampled_from([-1, length])) for length in shape]

    assert fits(pattern, shape)
    assert not fits([*pattern, -1], shape)
