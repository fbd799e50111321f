"""Who asks S3: the environment's static credentials, nobody, or whatever botocore's chain finds.

What stays out: signing with them (sigv4.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from predictor.errors import StoreRefused, StoreUnavailable
from predictor.tiers.sigv4 import Credentials

if TYPE_CHECKING:
    from botocore.credentials import Credentials as Renewed


class Identity(Protocol):
    """Gives the credentials of the moment. Called by many threads, once per request; may block."""

    def credentials(self) -> Credentials | None:
        """None: ask anonymously."""

    def renewed(self, refused: Credentials) -> bool:
        """S3 says that these are not valid any more: whether there are others by now. May block, raises as ``credentials``."""


class Fixed:
    """Always the same credentials, or always none."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials

    def credentials(self) -> Credentials | None:
        """What it was made with."""
        return self._credentials

    def renewed(self, refused: Credentials) -> bool:
        """Never: a process's environment stays as it is."""
        return refused != self._credentials


class Chain:
    """botocore's chain: profiles, web identity (IRSA), container and instance roles; botocore renews what expires.

    Imported at the first request, in the thread that makes it: 0.15 s that a pod with static credentials never pays.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Renewed | None = None

    def credentials(self) -> Credentials:
        """The credentials of the moment. StoreRefused: there are none; StoreUnavailable: they cannot be had just now."""
        from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, HTTPClientError  # noqa: PLC0415

        try:
            frozen = self._source().get_frozen_credentials()
        except (CredentialRetrievalError, HTTPClientError) as error:
            raise StoreUnavailable(
                f"AWS credentials cannot be had just now ({type(error).__name__}): is the role's endpoint reachable?",
                retry_after_s=5.0,
            ) from None
        except (BotoCoreError, ClientError) as error:  # their texts may quote what was sent
            raise StoreRefused(
                f"AWS credentials were found but are of no use ({type(error).__name__}): "
                "check the profile, role and token file that the AWS_* variables name"
            ) from None
        return Credentials(frozen.access_key or "", frozen.secret_key or "", frozen.token or "")

    def renewed(self, refused: Credentials) -> bool:
        """See Identity. Profiles are read once, roles renewed by their date: neither notices what was replaced early."""
        if self.credentials() != refused:  # another thread was first
            return True
        with self._lock:
            self._found = None
        return self.credentials() != refused

    def _source(self) -> Renewed:
        from botocore.session import get_session  # noqa: PLC0415

        with self._lock:
            found = self._found or get_session().get_credentials()
            if found is None:
                raise StoreRefused(
                    "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the pod a role, "
                    "or set awsAnonymousCredential=true for a public bucket"
                )
            self._found = found
            return found


def from_environment(environment: Mapping[str, str] = os.environ) -> Identity:
    """Anonymous where KServe's or GDAL's variable says so, else static credentials if there are any, else the chain."""
    if environment.get("awsAnonymousCredential", "").lower() == "true":  # as KServe's storage initializer reads it
        return Fixed(None)
    if environment.get("AWS_NO_SIGN_REQUEST", "").lower() in {"true", "yes", "1"}:  # as GDAL and rasterio read it
        return Fixed(None)
    access_key, secret_key, token = (
        environment.get(name, "").strip()  # a Secret made with echo ends in a newline
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    )
    if access_key and secret_key:
        return Fixed(Credentials(access_key, secret_key, token))
    return Chain()
