"""Everything that can go wrong for a caller, as one tree. Each class knows its status and whether a retry helps.

A message says what happened, how much, and what to do about it; it never holds a secret. Our own mistakes are
not here: they are assertions.
"""

from __future__ import annotations

from typing import ClassVar


class HearthError(Exception):
    """Root of the tree. ``retry_after_s`` is sent as Retry-After when it is not None."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class MalformedRequest(HearthError):
    """The request cannot be read: broken JSON, missing field, a binary part of the wrong length."""

    http_status, grpc_status = 400, "INVALID_ARGUMENT"


class UnknownModel(HearthError):
    """The model store has no such model or version."""

    http_status, grpc_status = 404, "NOT_FOUND"


class UnknownRoute(HearthError):
    """No such URL here."""

    http_status, grpc_status = 404, "UNIMPLEMENTED"


class MethodNotAllowed(HearthError):
    """The URL exists, the method does not."""

    http_status, grpc_status = 405, "UNIMPLEMENTED"


class BodyTooLarge(HearthError):
    """The request's body is larger than this server accepts."""

    http_status, grpc_status = 413, "RESOURCE_EXHAUSTED"


class HeadTooLarge(HearthError):
    """The request's line and headers are larger than this server accepts."""

    http_status, grpc_status = 431, "RESOURCE_EXHAUSTED"


class RequestTimedOut(HearthError):
    """The client took too long to send its request."""

    http_status, grpc_status = 408, "DEADLINE_EXCEEDED"


class UnsupportedEncoding(HearthError):
    """The request's Content-Encoding is not one this server can undo."""

    http_status, grpc_status = 415, "INVALID_ARGUMENT"


class SchemaMismatch(HearthError):
    """The request is well formed, but it is not what this model takes: a name, datatype or shape differs."""

    http_status, grpc_status = 422, "INVALID_ARGUMENT"


class ModelTooLarge(HearthError):
    """No eviction can make this model fit. A retry on this pool cannot help."""

    http_status, grpc_status = 422, "FAILED_PRECONDITION"


class OutOfMemory(HearthError):
    """The device had no memory for this computation, also after others made room."""

    http_status, grpc_status = 422, "FAILED_PRECONDITION"


class InvalidModel(HearthError):
    """What lies in the model store is not a model this server can serve: format, manifest or keys."""

    http_status, grpc_status = 422, "FAILED_PRECONDITION"


class TrustRequired(HearthError):
    """The model brings code of its own and the operator has not consented (HEARTH_TRUST)."""

    http_status, grpc_status = 422, "FAILED_PRECONDITION"


class TooManyRequests(HearthError):
    """A bound on what may wait or run is reached."""

    http_status, grpc_status, retryable = 429, "RESOURCE_EXHAUSTED", True


class ModelFailed(HearthError):
    """The model itself raised while it computed."""


class LoadFailed(HearthError):
    """The model could not be built from its files."""


class PoisonedRequest(HearthError):
    """Requests of exactly these contents ended workers; for a while it is not computed any more."""

    http_status, grpc_status = 422, "INVALID_ARGUMENT"


class WorkerDied(HearthError):
    """The worker process ended while it computed this request, or built its model."""

    http_status, grpc_status, retryable = 502, "UNAVAILABLE", True


class ComputedTooLong(WorkerDied):
    """The worker process was ended because this request computed for longer than it may. A retry takes as long."""

    retryable = False


class WorkerTaken(WorkerDied):
    """The worker process ended while it computed this request, and another model was to blame."""


class WorkerRestarting(WorkerDied):
    """The worker process ended before it began with this request: asking once more is safe."""

    http_status = 503


class StoreRefused(HearthError):
    """The model store answered, and will answer the same again: no permission, no such bucket."""

    http_status, grpc_status = 502, "FAILED_PRECONDITION"


class Unavailable(HearthError):
    """This pod cannot serve now, but will: it drains, or its worker is starting again."""

    http_status, grpc_status, retryable = 503, "UNAVAILABLE", True


class NoWorkerLeft(Unavailable):
    """The model needs a worker of its own, and there may be no more of them."""


class Quarantined(Unavailable):
    """The model ended its worker and pauses before its next load; Retry-After says for how long."""


class StoreUnavailable(HearthError):
    """The model store cannot be reached, or fails for the moment."""

    http_status, grpc_status, retryable = 503, "UNAVAILABLE", True


class ObjectChanged(StoreUnavailable):
    """An object was overwritten between its listing and its fetch; a new listing reads the new contents."""


class DeadlineExceeded(HearthError):
    """The request waited as long as it was allowed to."""

    http_status, grpc_status, retryable = 504, "DEADLINE_EXCEEDED", True
