"""What a built model is to the engine, whatever its format, and which file builds which format."""

from __future__ import annotations

from typing import Protocol

from predictor.engine.device import Files
from predictor.errors import LoadFailed
from predictor.wire import Field, Load, Tensor

Input = tuple[Tensor, memoryview]
Output = tuple[Tensor, memoryview]


class Built(Protocol):
    """A model that can run. ``inputs`` and ``outputs`` are empty where neither manifest nor file tells."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    def run(self, inputs: list[Input], wanted: tuple[str, ...]) -> list[Output]:
        """Compute. ``wanted`` names the outputs to return, in that order; empty: all.

        Raises SchemaMismatch for what is not this model's input or output; anything else is the model's own failure.
        """


def build(load: Load, files: Files, *, threads: int) -> Built:
    """Build the model of ``load`` from its files. Raises LoadFailed."""
    if load.format == "pytorch":
        from predictor.engine.pytorch import build_module  # noqa: PLC0415 (beside the one below)

        return build_module(load, files)
    if load.format == "onnx":
        # ONNX Runtime takes 0.3 s to import: only workers that serve ONNX pay, and not before their Hello.
        from predictor.engine.onnx import build_session  # noqa: PLC0415

        return build_session(load, files, threads=threads)
    raise LoadFailed(f"format {load.format} is not one this worker can build")
