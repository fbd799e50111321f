"""What a model's InferenceService says: conditions, states, URL, failures; and which changes of it become Events.

Pure: the moment is an argument. Fields and words are KServe's (v1beta1 InferenceServiceStatus).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from predictor.declared import Declared
from predictor.report import LocationReport
from warmup.rollout import Checked
from warmup.view import Invalid, Model, Object, Pool


class Told(NamedTuple):
    """What one running pod says of one location of the model."""

    pod: str
    location: LocationReport


class Occurrence(NamedTuple):
    """What becomes a Kubernetes Event. ``type``: Normal or Warning."""

    type: str
    reason: str
    message: str


def status(  # noqa: PLR0917 - facts from six places, and the moment
    model: Model,
    pool: Pool,
    declared: Declared | None,
    finding: Checked | Invalid,
    told: Sequence[Told],
    previous: Object,
    now_s: float,
) -> dict[str, Any]:
    """The complete ``.status``.

    declared  what stands in the catalogue, written
    finding   of the present wish: what credentials or the model store say
    told      by running pods that go by ``declared``
    previous  as it stands in the cluster; what is not ours in it stays
    now_s     seconds since the epoch
    """
    raise NotImplementedError


def unchanged(previous: Object, new: Object) -> bool:
    """Whether they differ in moments alone: then there is nothing to write."""
    raise NotImplementedError


def patch(previous: Object, new: Object) -> dict[str, Any]:
    """The merge patch that makes ``new`` of ``previous``: what went away is null in it."""
    raise NotImplementedError


def events(model: Model, previous: Object, new: Object) -> list[Occurrence]:
    """What happened between two statuses and is worth an Event."""
    raise NotImplementedError
