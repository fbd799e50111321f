"""Every knob of the controller. Environment variables ``HEARTH_CONTROLLER_<NAME>``; ``hearth controller`` flags win.

S3 for models without credentials of their own is configured as in the pool: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX: Final = "HEARTH_CONTROLLER_"
SERVICE_ACCOUNT_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ControllerSettings(BaseSettings):
    """Settings of one controller; units stand in the names. Frozen: read once, at start."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    namespace: str = Field("", description="Whose InferenceServices and pools; its own namespace when empty.")
    host: str = Field("127.0.0.1", description="Address to listen on. Containers set 0.0.0.0.")
    port: int = Field(8082, ge=0, le=65535, description="HTTP: /livez, /readyz, /metrics, /hearth/v1. 0 picks a free one.")
    identity: str = Field("", description="What the Lease calls this controller; POD_NAME or the host name when empty.")
    lease_name: str = Field(
        "hearth-controller", min_length=1, description="Of several controllers, who holds this Lease writes."
    )
    trust: Literal["auto", "data", "code"] = Field(
        "auto", description="Which models a pool admits. `auto`: what the pool's own HEARTH_TRUST says, else `data`."
    )
    storage_config: str = Field(
        "", description="JSON, as the key `credentials` of KServe's ConfigMap inferenceservice-config; its defaults when empty."
    )
    poll_s: float = Field(1.0, ge=0.1, le=60, description="How often each running pod is asked for its state.")
    pod_timeout_s: float = Field(3.0, gt=0, le=60, description="A pod that answers later than this is `silent` for that time.")
    pod_port: int = Field(8082, ge=1, le=65535, description="The pods' admin port.")
    max_pods: int = Field(500, ge=1, description="Running pods that are asked; more are left out, with a warning.")
    check_concurrency: int = Field(16, ge=1, le=256, description="Locations looked at in the model store at once.")
    check_timeout_s: float = Field(
        30.0, gt=0, description="One look at a location may take so long; then it failed in passing."
    )
    check_retry_s: float = Field(
        10.0, gt=0, description="First wait before a location that failed is looked at again; doubles."
    )
    check_retry_max_s: float = Field(300.0, gt=0, description="Longest such wait, and the one for failures that last.")
    settle_s: float = Field(
        10.0, ge=0, description="As the pods' HEARTH_SETTLE_S: when a version without hearth.json is complete."
    )
    secret_refresh_s: float = Field(30.0, ge=1, description="How often Secrets in use are read again: they are never watched.")
    heat_s: float = Field(
        30.0, ge=0.1, le=600, description="How often each running pod is asked which models its clients ask for."
    )
    orders: bool = Field(
        default=True, description="Whether running pods are ordered to pre-load what is asked on others, or is due."
    )
    flush_s: float = Field(0.2, ge=0, le=5, description="Changes within so long of each other are written as one.")
    pending_s: float = Field(2.0, ge=0, le=60, description="A new model's status says Pending if its check takes longer.")
    defer_s: float = Field(1.0, ge=0, le=60, description="KServe's controller gets so long to write a new status first.")
    cold_start_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Idle seconds of a pod that one second of a waiting user is worth: how long the last pod is kept, and "
        "whether pods start because past days needed them, follow from it. 0: neither. A pool's annotation "
        "hearth.dev/cold-start-weight goes before it.",
    )
    longest_keep_s: float = Field(
        3600.0, ge=0, le=7200, description="The last pod is kept for no longer than this after its last request."
    )
    write_rate_per_s: float = Field(20.0, gt=0, description="Statuses and Events written a second, in the long run.")
    write_burst: int = Field(50, ge=1, description="Of those, how many at once.")
    max_models: int = Field(50_000, ge=1, description="Model InferenceServices; those beyond get a status that says so.")
    history_events: int = Field(20_000, ge=100, description="Events kept in memory for `hearth why`, all models together.")
    stop_timeout_s: float = Field(10.0, gt=0, description="After SIGTERM: how long the work at hand may take.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line written.")


def option(name: str) -> str:
    """A setting as it is typed."""
    return "--" + name.replace("_", "-")


def from_arguments(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> ControllerSettings:
    """Flags over the environment. Exits with 2 when they make no sense (argparse); ValueError: no namespace can be told."""
    given = vars(_parser().parse_args(arguments))
    settings = ControllerSettings(**{name: value for name, value in given.items() if value is not None})
    here: dict[str, Any] = {}
    if not settings.namespace:
        here["namespace"] = own_namespace(environment)
    if not settings.identity:
        here["identity"] = environment.get("POD_NAME") or socket.gethostname()
    return settings.model_copy(update=here)


def own_namespace(environment: Mapping[str, str], mounted: Path = SERVICE_ACCOUNT_NAMESPACE) -> str:
    """The pod's own, as the ServiceAccount's files tell it, else POD_NAMESPACE. ValueError: neither is there."""
    try:
        found = mounted.read_text().strip()
    except OSError:
        found = ""
    found = found or environment.get("POD_NAMESPACE", "")
    if not found:
        raise ValueError(f"outside a cluster the namespace has to be said: --namespace or {PREFIX}NAMESPACE")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hearth controller", description="Owns the model InferenceServices of a namespace.")
    for name, field in ControllerSettings.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        default = "" if field.default == "" else f" [{field.default}]"
        parser.add_argument(
            option(name),
            dest=name,
            choices=choices,
            metavar=None if choices else "VALUE",
            help=f"{field.description}{default}".replace("%", "%%"),
        )
    return parser
