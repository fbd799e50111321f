"""Runs a model that was just built on zeros, to learn what computing takes. The decision what to do with it is the front's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from predictor.engine.device import Device
from predictor.engine.formats import Built, Input, Output
from predictor.engine.memory import NOT_MEASURED, rounded
from predictor.engine.told import words
from predictor.wire import Field, Peak, Tensor

log = logging.getLogger(__name__)

ITEM_BYTES: Final = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("FP16", "BF16", "INT16", "UINT16"), 2),
    **dict.fromkeys(("FP32", "INT32", "UINT32"), 4),
    **dict.fromkeys(("FP64", "INT64", "UINT64"), 8),
}

LONGEST_S: Final = 1.0
"""Somebody waits for this load, and behind a batch that takes longer others would wait for too long, too."""

MAX_INPUT_BYTES: Final = 1 << 30
"""A schema that asks for more zeros than this is not tried."""


def probe(
    built: Built,
    device: Device,
    *,
    max_batch_size: int,
    limit_bytes: int,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Peak, ...]:
    """Measure one row and, where the schema has a batch dimension, a batch. Empty: could not be measured.

    The batch has ``max_batch_size`` rows, or as many as by one row's figures end within LONGEST_S and take no more than
    limit_bytes (0: no limit). Batches of requests are never larger than what was measured.
    Every length that the schema leaves open is 1: a sequence's true lengths are only known from requests.
    """
    if not built.inputs or any(field.datatype not in ITEM_BYTES for field in built.inputs):
        return ()
    try:
        # Twice: the first run pays what a runtime sets up once, the second has no such pages in its way.
        begin_s = clock()
        one = _peak(built, device, 1)
        row_s = clock() - begin_s
        if row_s <= LONGEST_S:
            begin_s = clock()
            again = _peak(built, device, 1)
            row_s = clock() - begin_s
            one = max(one, again, key=lambda peak: peak.bytes) if one is not None and again is not None else None
        if one is None:
            return ()
        rows = _rows(built, max_batch_size, one, row_s, limit_bytes)
        if rows <= 1:
            return (one,)
    except BaseException as error:  # noqa: BLE001 (the root of a model's own code)
        log.info("a model was not measured, because it does not compute on zeros: %s: %s", type(error).__name__, words(error))
        return ()
    try:
        full = _peak(built, device, rows)
    except BaseException as error:  # noqa: BLE001 (as above)
        log.info("a model was measured with one row only: %s: %s", type(error).__name__, words(error))
        return (one,)
    return (one,) if full is None else (one, full)


def _rows(built: Built, max_batch_size: int, one: Peak, row_s: float, limit_bytes: int) -> int:
    """As many rows as may run together, take no more than ``limit_bytes`` and, by one row's time, end within LONGEST_S."""
    if any(field.shape[:1] != (-1,) for field in built.inputs):
        return 1
    rows = min(max_batch_size, int(LONGEST_S / max(row_s, LONGEST_S / (1 << 16))))
    return min(rows, limit_bytes // max(one.bytes, 1)) if limit_bytes else rows


def measured_run(device: Device, run: Callable[[], list[Output]], inputs_bytes: int) -> tuple[list[Output], int]:
    """The outputs of ``run`` and its peak in bytes, which is never below what is known exactly: inputs and outputs."""
    outputs, peak_bytes = device.measured(run)
    if peak_bytes == NOT_MEASURED:
        return outputs, NOT_MEASURED
    return outputs, max(peak_bytes, rounded(inputs_bytes + sum(tensor.size_bytes for tensor, _ in outputs)))


def _peak(built: Built, device: Device, rows: int) -> Peak | None:
    shapes = [_shape(field, rows) for field in built.inputs]
    sizes = [math.prod(shape) * ITEM_BYTES[field.datatype] for field, shape in zip(built.inputs, shapes, strict=True)]
    if sum(sizes) > MAX_INPUT_BYTES:
        return None

    def run() -> list[Output]:
        inputs: list[Input] = [
            (Tensor(field.name, field.datatype, shape, size), memoryview(bytearray(size)))
            for field, shape, size in zip(built.inputs, shapes, sizes, strict=True)
        ]
        return built.run(inputs, ())

    _, peak_bytes = measured_run(device, run, sum(sizes))
    if peak_bytes == NOT_MEASURED:
        return None
    return Peak(sum(math.prod(shape) for shape in shapes), peak_bytes)


def _shape(field: Field, rows: int) -> tuple[int, ...]:
    open_ = tuple(1 if length < 0 else length for length in field.shape)
    return (rows, *open_[1:]) if field.shape[:1] == (-1,) else open_
