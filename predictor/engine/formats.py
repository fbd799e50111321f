"""What a built model is to the engine, whatever its format, and which file builds which format."""

from __future__ import annotations

from typing import Protocol

from predictor.engine.device import Files
from predictor.errors import LoadFailed
from predictor.wire import Field, Load, Tensor

Input = tuple[Tensor, memoryview]
Output = tuple[Tensor, memoryview]


class Built(Protocol):
    """A model that can run. ``inputs`` and ``outputs`` are empty where neither manifest nor file tells.

    own_bytes  what it is known exactly to hold beside the shared arena; it may hold more
    """

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    own_bytes: int

    def run(self, inputs: list[Input], wanted: tuple[str, ...]) -> list[Output]:
        """Compute. ``wanted`` names the outputs to return, in that order; empty: all.

        Raises SchemaMismatch for what is not this model's input or output; anything else is the model's own failure.
        """


def prepare(format_: str) -> None:
    """Import what building this format takes, so that the first model is not charged for it.

    ONNX Runtime takes 0.3 s and 15 MB: only workers that serve ONNX pay, and not before their Hello.
    """
    if format_ == "onnx":
        from predictor.engine.onnx import warm_up  # noqa: PLC0415 (as above)

        warm_up()


def build(load: Load, files: Files, *, threads: int) -> Built:
    """Build the model of ``load`` from its files. Raises LoadFailed."""
    if load.format == "pytorch":
        from predictor.engine.pytorch import build_module  # noqa: PLC0415 (beside the one below)

        return build_module(load, files)
    if load.format == "onnx":
        from predictor.engine.onnx import build_session  # noqa: PLC0415 (see prepare)

        return build_session(load, files, threads=threads)
    raise LoadFailed(f"format {load.format} is not one this worker can build")
