"""Every knob of a predictor pod. Environment variables ``HEARTH_<NAME>``; ``hearth serve`` flags win over them.

S3 is configured as boto3 users know it (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...): those are not repeated here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from predictor.boundary import SCRATCH_BYTES


class Settings(BaseSettings):
    """Settings of one predictor pod; units stand in the names. Frozen: read once, at start."""

    model_config = SettingsConfigDict(env_prefix="HEARTH_", frozen=True, extra="ignore")

    models: str = Field(
        "",
        description="Where models come from: s3://bucket or s3://bucket/prefix. Not needed where a controller declares them.",
        pattern=r"^(s3://[^/]+(/.*)?)?$",
    )
    declared_path: str = Field("", description="Folder of the models that a controller declares (mounted ConfigMaps).")
    credentials_path: str = Field("", description="Folder of the credentials that they are read with (mounted Secrets).")
    namespace: str = Field("default", description="The namespace this pool serves; part of every model's identity.")
    state: str = Field(
        "",
        description="Where a pod keeps what has to outlive it, how much each model is asked for: s3://bucket/prefix. Empty: "
        "nowhere. It is read, written and deleted from with the pod's own credentials.",
        pattern=r"^(s3://[^/]+(/.*)?)?$",
    )
    pool: str = Field(
        "default",
        description="Name of the pool this pod is one of; part of its objects' keys in HEARTH_STATE.",
        pattern=r"^[A-Za-z0-9._-]{1,253}$",
    )
    pod: str = Field("", description="This pod's name in Hearth-Pod, in logs and in HEARTH_STATE; the host name when empty.")
    host: str = Field("127.0.0.1", description="Address to listen on. Containers set 0.0.0.0.")
    port: int = Field(8080, ge=0, le=65535, description="Inference port (REST). 0 picks a free one.")
    admin_port: int = Field(8082, ge=0, le=65535, description="Admin port: residency, preload, /metrics. Keep it inside.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="What to compute on.")
    device_count: int = Field(1, ge=1, le=64, description="Devices to use, one worker process each.")
    trust: Literal["data", "code"] = Field(
        "data", description="`data` admits formats that are only data (ONNX); `code` also runs the models' own model.py."
    )
    isolation: Literal["pool", "tenant", "model"] = Field(
        "pool",
        description="Which models share a worker process: all of the `pool`, each `tenant`'s, or none (`model`). In the last "
        "two a worker sees the weights and requests of its own models only.",
    )
    max_workers: int = Field(
        64, ge=1, le=4096, description="Worker processes per device, where models do not all share one; more are not started."
    )
    quarantine_backoff_s: float = Field(
        1.0,
        ge=0,
        le=600,
        description="A model that ended its worker is not loaded for so long, doubled by every further death up to 10 min; 0: "
        "at once.",
    )
    poison_ttl_s: float = Field(
        600.0, ge=0, description="Requests that ended two workers are refused with 422 for so long; 0: never."
    )
    confine: Literal["auto", "strict", "off"] = Field(
        "auto",
        description="Keep model code from files, sockets and processes that are not its own: as far as the kernel can "
        "(`auto`), or a worker does not start (`strict`).",
    )
    worker_network: Literal["deny", "allow"] = Field(
        "deny", description="Whether model code may open sockets, as one does that fetches something while it is built."
    )
    worker_reads: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Folders that model code may read besides Python's and the system's: `/data,/opt/words`."
    )
    scratch_bytes: int = Field(
        SCRATCH_BYTES,
        gt=0,
        description="What model code may write into its worker's folder (`$TMPDIR`, `$HOME`); a worker that has more is ended. "
        "In Kubernetes the volume's sizeLimit is to hold that of all workers.",
    )
    ram_budget_bytes: int | None = Field(
        None,
        gt=0,
        description="Weights kept in RAM. Default: half of the container limit less 1 GiB; without one, 1/4 of free memory.",
    )
    device_budget_bytes: int | None = Field(
        None,
        gt=0,
        description="Weights on each device. Default on a CPU: the other half; without a limit, 1/8 of free memory.",
    )
    cpu_copy: bool = Field(
        default=False,
        description="Give each model on a CPU device bytes of its own, as on a GPU, instead of views of the RAM copy.",
    )
    disk_path: str = Field("", description="Folder that keeps models' files across restarts, of this pod alone; empty: none.")
    disk_budget_bytes: int | None = Field(
        None,
        gt=0,
        description="Files kept on disk. In Kubernetes: less than the volume's limit, and it has to be said. Elsewhere by "
        "default: 90 % of what is free there.",
    )
    pin: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names to load at start, before those of HEARTH_PRELOAD, and never to drop for others."
    )
    min_residency_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="A copy stays for as long as its load took, at most this long, before it is dropped for another.",
    )
    idle_ttl_s: float | None = Field(
        None, gt=0, description="Drop what nobody asked for in so long from devices and RAM, needed or not. Default: never."
    )
    tenant_floors: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="Shares of RAM and devices that other tenants' models cannot take: `red=0.25,blue=0.1`. A model's tenant "
        "is its hearth.json's, else the namespace.",
    )
    wake_up: Literal["hot-set", "off"] = Field(
        "hot-set", description="What a pod loads when it comes up: what was asked most before, or only what is asked for."
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names to load at start, most wanted first: `resnet,bert`. Never delays a request.",
    )
    hold_timeout_s: float = Field(
        60.0, gt=0, description="Longest wait of a request for its model, then 504; Hearth-Deadline-Ms shortens it."
    )
    max_waiting: int = Field(1000, ge=1, description="Requests that may wait for a model at once; more get 503 + Retry-After.")
    max_in_flight: int = Field(1024, ge=1, description="Requests inside the pod at once; more get 429 + Retry-After.")
    max_in_flight_per_model: int = Field(
        512, ge=1, description="Of those, requests for one model; more get 429. A model's hearth.json may say less."
    )
    max_queued_per_model: int = Field(
        512, ge=1, description="Requests of one model that may wait for its device; more get 429. hearth.json may say less."
    )
    max_body_bytes: int = Field(64 << 20, ge=1024, description="Largest request body accepted, decompressed; more gets 413.")
    max_body_bytes_in_flight: int = Field(
        512 << 20,
        ge=1024,
        description="Bytes of request bodies inside the pod, and of answers that clients do not take; more get 429.",
    )
    max_body_bytes_in_flight_per_model: int = Field(
        256 << 20, ge=1024, description="Of those, bytes of requests for one model; more get 429. A single request may pass it."
    )
    starvation_s: float = Field(
        1.0, gt=0, description="A priority that waited so long for a device gets the next turn, whatever is more urgent."
    )
    max_connections: int = Field(4096, ge=1, description="Open client connections per port; more are closed at once.")
    idle_timeout_s: float = Field(75.0, gt=0, description="A client connection idle, or sending, for longer is closed.")
    busy_poll_us: int = Field(
        500,
        ge=0,
        le=10_000,
        description="Microseconds to look for the next request before sleeping, while that pays; 0: never.",
    )
    fetch_part_bytes: int = Field(16 << 20, ge=1 << 16, description="Size of one ranged GET.")
    fetch_concurrency: int = Field(8, ge=1, le=64, description="Ranged GETs in flight per pod.")
    fetch_timeout_s: float = Field(20.0, gt=0, description="A connection to S3 silent for longer is given up and retried.")
    fetch_retries: int = Field(
        4, ge=0, le=20, description="Retries of one part or listing, with jittered back-off, before 503."
    )
    fetch_deadline_s: float = Field(
        600.0, gt=0, description="One model's whole fetch, less what it was held back for others, may take so long; then 503."
    )
    settle_s: float = Field(
        10.0, ge=0, description="Age of the newest object from which a version without hearth.json counts as complete."
    )
    unknown_ttl_s: float = Field(5.0, ge=0, description="How long an unknown name is remembered as unknown.")
    refresh_s: float = Field(10.0, ge=0, description="Age from which a model's listing is read again behind a request.")
    build_timeout_s: float = Field(
        300.0, gt=0, description="A worker that builds one model for longer, or is not up by then, is ended."
    )
    execute_timeout_s: float = Field(60.0, gt=0, description="A worker that computes one request for longer is ended.")
    drain_timeout_s: float = Field(25.0, gt=0, description="After SIGTERM: how long requests in flight may take.")
    sick_timeout_s: float = Field(
        120.0, gt=0, description="A device whose workers do not start for so long makes the pod not live: /livez says 503."
    )
    memory_share: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Of the container's memory limit, what this pod may use; above it the fattest worker is ended, before the "
        "kernel ends the container.",
    )
    max_late_s: float = Field(
        30.0,
        gt=0,
        description="Seconds of a minute that the event loop may have stood still; more, and /livez says 503.",
    )
    stuck_log_s: float = Field(
        5.0, ge=0, description="An event loop that stands still for so long has its stacks written to the log; 0: never."
    )
    stuck_exit_s: float = Field(
        120.0, ge=0, description="An event loop that stands still for so long ends the process, with status 70; 0: never."
    )
    system_root: str = Field("/", description="Folder that holds sys/fs/cgroup, version 2 or 1. For tests.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line written.")

    @field_validator("preload", "pin", "worker_reads", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("tenant_floors", mode="before")
    @classmethod
    def _split_floors(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = (pair.partition("=") for pair in value.split(",") if pair.strip())
        return {tenant.strip(): share.strip() for tenant, _, share in pairs}

    @field_validator("tenant_floors")
    @classmethod
    def _check_floors(cls, floors: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= share <= 1 for share in floors.values()) or sum(floors.values()) > 1:
            raise ValueError("shares are between 0 and 1, and together at most 1")
        return floors

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if not self.models and not self.declared_path:
            raise ValueError("say where models come from: --models s3://BUCKET/PREFIX (HEARTH_MODELS)")
        return self

    @property
    def state_bucket(self) -> str:
        """Where the state prefix lies; "": there is none."""
        return self.state.removeprefix("s3://").partition("/")[0]

    @property
    def state_prefix(self) -> str:
        """This pool's part of the state prefix, ending in a slash."""
        path = self.state.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{path}/{self.pool}/" if path else f"{self.pool}/"

    @property
    def bucket(self) -> str:
        """The model store's bucket."""
        return self.models.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The model store's prefix, "" or ending in a slash."""
        path = self.models.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{path}/" if path else ""
