"""Whom a load test believes over TLS: the system's authorities, and one more that ``--ca-file`` names."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from loadtest.workloads import BadWorkload


def authority(path: str) -> str:
    """A file of certificates in PEM, as text; "" for no file. Raises BadWorkload."""
    if not path:
        return ""
    try:
        pem = Path(path).read_text(encoding="ascii")
        ssl.create_default_context().load_verify_locations(cadata=pem)
    except (OSError, ValueError) as problem:
        raise BadWorkload(f"--ca-file {path} is no file of certificates in PEM: {problem}") from problem
    return pem


def contexts(
    pem: str, *, insecure: bool, make: Callable[..., ssl.SSLContext] = ssl.create_default_context
) -> Callable[..., ssl.SSLContext]:
    """What makes the contexts of connections.

    insecure  believe everybody
    make      ``ssl.create_default_context``, or gevent's
    """

    def context(cafile: str | None = None) -> ssl.SSLContext:
        made = make(cafile=cafile)
        if pem:
            made.load_verify_locations(cadata=pem)
        if insecure:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        return made

    return context
