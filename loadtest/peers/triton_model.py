"""The ``model.py`` of Triton's Python backend: one forward for the requests it is handed together.

Runs inside Triton's stub, beside ``network.py`` (model.py of this folder), the weights and their config.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(os.environ["PEERS_PACKAGES"])  # the stub ignores PYTHONPATH

import torch
import triton_python_backend_utils as pb_utils
from safetensors.torch import load_file
from torch.utils.dlpack import from_dlpack


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the module and give it its weights."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))
        from network import build  # noqa: PLC0415 (the folder is known only now)

        torch.set_num_threads(1)
        self.module = build(json.loads((folder / "config.json").read_text())).eval()
        self.module.load_state_dict(load_file(folder / "model.safetensors"))

    @torch.inference_mode()
    def execute(self, requests: list[Any]) -> list[Any]:
        """One forward; without dynamic batching, ``requests`` has one element.

        Tensors go through DLPack, without a copy: through numpy's arrays the stub (nvidia-pytriton 0.7) answers wrong
        sizes with numpy 2.
        """
        inputs = [from_dlpack(pb_utils.get_input_tensor_by_name(request, "x").to_dlpack()) for request in requests]
        if len(inputs) == 1:
            return [self._response(self.module(inputs[0]))]
        outputs = self.module(torch.cat(inputs))
        return [self._response(rows) for rows in outputs.split([len(rows) for rows in inputs])]

    @staticmethod
    def _response(rows: torch.Tensor) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", rows)])
