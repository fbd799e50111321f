"""The ``model.py`` that every server gets as it is: Hearth from S3, Triton's Python backend and FastAPI by import.

It imports torch alone, so that no server needs anything of this repository to run it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

RESNET18_CHANNELS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two convolutions and a way past them (He et al., CVPR 2016, figure 5 left)."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(incoming, outgoing, 3, stride, 1, bias=False), nn.BatchNorm2d(outgoing))
        self.second = nn.Sequential(nn.Conv2d(outgoing, outgoing, 3, 1, 1, bias=False), nn.BatchNorm2d(outgoing))
        self.past: nn.Module = nn.Identity()
        if stride > 1 or incoming != outgoing:
            self.past = nn.Sequential(nn.Conv2d(incoming, outgoing, 1, stride, bias=False), nn.BatchNorm2d(outgoing))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[n, incoming, h, w] in, [n, outgoing, h / stride, w / stride] out."""
        return torch.relu(self.second(torch.relu(self.first(image))) + self.past(image))


class Echo(nn.Module):
    """Gives back what comes. It has a parameter because a model without any has no file of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        return x


def build(config: dict[str, Any]) -> nn.Module:
    """Make a module that takes ``x`` and returns one tensor.

    config  ``kind``: ``mlp`` (``widths``, from input to output), ``resnet18`` (``classes``) or ``echo``
    """
    if config["kind"] == "mlp":
        return _mlp(config["widths"])
    return _resnet18(config["classes"]) if config["kind"] == "resnet18" else Echo()


def _mlp(widths: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for incoming, outgoing in pairwise(widths):
        layers += [nn.Linear(incoming, outgoing), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _resnet18(classes: int) -> nn.Module:
    first = RESNET18_CHANNELS[0]
    layers: list[nn.Module] = [
        nn.Conv2d(3, first, 7, 2, 3, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    incoming = first
    for outgoing in RESNET18_CHANNELS:
        layers += [Block(incoming, outgoing, 1 if outgoing == first else 2), Block(outgoing, outgoing, 1)]
        incoming = outgoing
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(incoming, classes))
