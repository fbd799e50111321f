"""The ``model.py`` that lies beside each PyTorch model of the demo in S3, exactly as it is; the training uses it too.

It is what a model's author writes for Hearth: one function, ``build(config)``, that makes the empty module. The
weights come from model.safetensors, ``config`` from the parameters in hearth.json.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

CLASSES = 10
SIDE = 8
RANGE = 16.0


class Scale(nn.Module):
    """Brings the scanner's 0…16 to 0…1."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        return pixels / RANGE


class Cosine(nn.Module):
    """The nonlinearity of random Fourier features (Rahimi and Recht, NIPS 2007)."""

    def forward(self, angles: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        return torch.cos(angles)


def build(config: dict[str, Any]) -> nn.Module:
    """Make a classifier of images of 8 by 8 pixels: ``pixels`` [n, 64] in, ``logits`` [n, 10] out.

    config  ``kind`` names the family: ``cosines`` (``width``), ``mlp`` (``widths``) or ``conv`` (``channels``, ``hidden``)
    """
    family = {"cosines": _cosines, "mlp": _mlp, "conv": _conv}[config["kind"]]
    layers = [Scale(), *family(config)]
    return nn.Sequential(OrderedDict((f"layer{place}", layer) for place, layer in enumerate(layers)))


def _cosines(config: dict[str, Any]) -> list[nn.Module]:
    return [nn.Linear(SIDE * SIDE, config["width"]), Cosine(), nn.Linear(config["width"], CLASSES)]


def _mlp(config: dict[str, Any]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    incoming = SIDE * SIDE
    for width in config["widths"]:
        layers += [nn.Linear(incoming, width), nn.ReLU()]
        incoming = width
    return [*layers, nn.Linear(incoming, CLASSES)]


def _conv(config: dict[str, Any]) -> list[nn.Module]:
    first, second = config["channels"]
    side = SIDE // 2
    return [
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * side * side, config["hidden"]),
        nn.ReLU(),
        nn.Linear(config["hidden"], CLASSES),
    ]
