"""Reading Kubernetes objects as the API server's JSON has them: nothing is taken for granted, not even a metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Object = Mapping[str, Any]
"""A Kubernetes object, or a part of one."""

MODE_ANNOTATION: Final = "serving.kserve.io/deploymentMode"
MODEL_MODE: Final = "ModelMesh"
_SHOWN: Final = 200


def shown(text: str) -> str:
    """For a message: quoted, and not endless."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def part(item: Object, *path: str) -> Object:
    """What stands at a path; {} where nothing does."""
    found: Any = item
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(item: Object, key: str) -> str:
    """What stands there, if it is a string; "" otherwise."""
    found = item.get(key)
    return found if isinstance(found, str) else ""


def name_of(item: Object) -> str:
    """Its own."""
    return text(part(item, "metadata"), "name")


def created(item: Object) -> str:
    """RFC 3339 in UTC, as the API server writes it: sorts by age."""
    return text(part(item, "metadata"), "creationTimestamp")


def is_model(item: Object) -> bool:
    """Whether an InferenceService is in ModelMesh mode: KServe leaves those alone."""
    return text(part(item, "metadata", "annotations"), MODE_ANNOTATION) == MODEL_MODE


def condition(item: Object, kind: str) -> Object:
    """One of its status's conditions; {} where it has none such."""
    conditions = part(item, "status").get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), {})
