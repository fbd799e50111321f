"""The ``model.py`` of Triton's Python backend: one forward for the requests it is handed together.

Runs inside Triton's stub, beside ``network.py`` (model.py of this folder), the weights and their config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from safetensors.torch import load_file


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the module and give it its weights."""
        import sys  # noqa: PLC0415 (the folder is known only now)

        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))
        from network import build  # noqa: PLC0415 (the same)

        torch.set_num_threads(1)
        self.module = build(json.loads((folder / "config.json").read_text())).eval()
        self.module.load_state_dict(load_file(folder / "model.safetensors"))

    @torch.inference_mode()
    def execute(self, requests: list[Any]) -> list[Any]:
        """One forward; without dynamic batching, ``requests`` has one element."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        if len(inputs) == 1:
            return [self._response(self.module(torch.from_numpy(inputs[0])).numpy())]
        outputs = self.module(torch.from_numpy(np.concatenate(inputs))).numpy()
        ends = np.cumsum([len(rows) for rows in inputs])[:-1]
        return [self._response(rows) for rows in np.split(outputs, ends)]

    @staticmethod
    def _response(rows: np.ndarray[Any, Any]) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", rows)])
