"""What a worker may do besides computing, as the front tells it. Standard library only: the boot needs it.

What stays out: how it is enforced (engine/confine.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

SECRETS: Final = (
    "/run/secrets",
    "/var/run/secrets",
    "~/.aws",
    "~/.kube",
    "~/.ssh",
    "~/.netrc",
    "~/.docker",
    "~/.config/gcloud",
)
SECRET_VARIABLES: Final = (
    "HEARTH_CREDENTIALS_PATH",
    "HEARTH_DECLARED_PATH",
    "HEARTH_DISK_PATH",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "KUBECONFIG",
)
"""What no worker reads, wherever else it may read: places, and variables that name one."""


SCRATCH_BYTES: Final = 128 << 20
"""What a worker may write where nobody says: 64 of them fit the volume that the manifests give them."""


class Boundary(NamedTuple):
    """What a worker is told when it starts.

    mode           ``auto``: as far as the kernel can; ``strict``: a worker does not start where it cannot; ``off``: not at all
    network        whether it may use sockets
    hidden         paths that it must not read, whatever else it may
    readable       folders that it may read besides the interpreter's and the system's
    scratch_bytes  the largest file that it may write, unless it lifts that itself
    """

    mode: str = "auto"
    network: bool = False
    hidden: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    scratch_bytes: int = SCRATCH_BYTES

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Boundary:
        """As HEARTH_CONFINE, HEARTH_WORKER_NETWORK and HEARTH_WORKER_READS say. What they may say is checked by settings.py."""
        named = [path for variable in SECRET_VARIABLES for path in environment.get(variable, "").split(":") if path]
        readable = [path.strip() for path in environment.get("HEARTH_WORKER_READS", "").split(",")]
        return cls(
            environment.get("HEARTH_CONFINE") or "auto",
            environment.get("HEARTH_WORKER_NETWORK") == "allow",
            tuple(os.path.abspath(os.path.expanduser(path)) for path in (*SECRETS, *named)),  # noqa: PTH100, PTH111 (boot)
            tuple(path for path in readable if path),
            _whole(environment.get("HEARTH_SCRATCH_BYTES", "")) or SCRATCH_BYTES,
        )

    def told(self) -> str:
        """As an argument of a command."""
        paths = "\n".join(self.hidden), "\n".join(self.readable)
        return "\t".join((self.mode, str(int(self.network)), *paths, str(self.scratch_bytes)))

    @classmethod
    def heard(cls, told: str) -> Boundary:
        """What ``told`` told."""
        mode, network, *listed, scratch_bytes = told.split("\t")
        hidden, readable = (tuple(path for path in paths.split("\n") if path) for paths in listed)
        return cls(mode, network == "1", hidden, readable, int(scratch_bytes))


def _whole(told: str) -> int:
    """0: it is not a number, which settings.py tells in a moment."""
    try:
        return max(int(told), 0)
    except ValueError:
        return 0
