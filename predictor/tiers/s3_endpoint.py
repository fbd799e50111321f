"""Where a bucket is: what to connect to, which Host to name, how a key becomes a path. From the environment, as boto3 does it.

What stays out: connections (s3_http.py) and credentials (s3_credentials.py).
"""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from predictor.errors import StoreRefused
from predictor.tiers.sigv4 import encoded_path, encoded_query

log = logging.getLogger(__name__)

DEFAULT_REGION: Final = "us-east-1"
_REGION: Final = re.compile(r"[a-z0-9-]{1,32}")
# Only such names make a valid host name under AWS's wildcard certificate; others, dots above all, go into the path.
_HOST_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_GLOBAL_HOST: Final = "s3.amazonaws.com"


class Endpoint(NamedTuple):
    """One bucket's address.

    root    what stands before the key in every path, encoded: "", or "/bucket" behind the base path of a custom endpoint
    custom  not AWS itself: the address stays when the region turns out to be another
    """

    bucket: str
    region: str
    secure: bool
    host: str
    port: int
    root: str
    custom: bool

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """For messages, and for telling one store's objects from another's."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.root}"

    def target(self, key: str, parameters: Mapping[str, str] | None = None) -> str:
        """Path and query of a request; ``key`` is "" for the bucket itself."""
        query = encoded_query(parameters) if parameters else ""
        return f"{self.root}/{encoded_path(key)}" + (f"?{query}" if query else "")

    def in_region(self, region: str) -> Endpoint | None:
        """The same bucket, looked for in another region; None: that is no region's name, do not follow it."""
        if not _REGION.fullmatch(region):
            return None
        return self._replace(region=region) if self.custom else of_aws(self.bucket, region)


class Proxy(NamedTuple):
    """What to connect to instead of an HTTPS endpoint. ``headers``: of the CONNECT, its credentials if it has any."""

    host: str
    port: int
    headers: Mapping[str, str]


def proxy_to(endpoint: Endpoint, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """As HTTPS_PROXY and NO_PROXY say, in lower or upper case; None: connect to the endpoint itself.

    HTTP_PROXY is not read: plain HTTP is for servers nearby. StoreRefused: it is nonsense; its credentials are not told.
    """
    url = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
    if not endpoint.secure or not url:
        return None
    from urllib import request  # noqa: PLC0415 (20 ms that few need)

    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if request.proxy_bypass_environment(f"{endpoint.host}:{endpoint.port}", {"no": exceptions}):  # type: ignore[attr-defined]
        return None
    try:
        split = urlsplit(url if "://" in url else f"http://{url}")
        host, port = split.hostname, split.port or 80
    except ValueError:
        host, port = None, 0
    if host is None or split.scheme != "http":
        raise StoreRefused("HTTPS_PROXY must be http://HOST:PORT, with NAME:PASSWORD@ before the host if need be")
    if split.username is None:
        return Proxy(host, port, {})
    secret = f"{unquote(split.username)}:{unquote(split.password or '')}".encode()
    return Proxy(host, port, {"Proxy-Authorization": f"Basic {base64.b64encode(secret).decode()}"})


def of_aws(bucket: str, region: str) -> Endpoint:
    """The bucket at AWS: in the host name where that can be, else in the path."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    host = f"s3.{region}.{suffix}"
    if _HOST_LABEL.fullmatch(bucket):
        return Endpoint(bucket, region, secure=True, host=f"{bucket}.{host}", port=443, root="", custom=False)
    return Endpoint(bucket, region, secure=True, host=host, port=443, root=f"/{encoded_path(bucket)}", custom=False)


def _accelerated(bucket: str, region: str) -> Endpoint:
    """The bucket at AWS's edge; signed for its own region all the same."""
    if not _HOST_LABEL.fullmatch(bucket):
        raise StoreRefused(f"S3_USE_ACCELERATE: {bucket!a} cannot be part of a host name: unset it")
    return Endpoint(bucket, region, secure=True, host=f"{bucket}.s3-accelerate.amazonaws.com", port=443, root="", custom=True)


def from_environment(bucket: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """As AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION and AWS_DEFAULT_REGION say. StoreRefused: they are nonsense.

    At a custom endpoint the bucket stands in the path, unless KServe's S3_USER_VIRTUAL_BUCKET wants it in the host name.
    """
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    if not _REGION.fullmatch(region):
        raise StoreRefused(f"AWS_REGION: {region!r} is no region's name; an example: {DEFAULT_REGION}")
    variable, url = "", ""
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if url := environment.get(variable, ""):
                break
    accelerate = environment.get("S3_USE_ACCELERATE", "").lower() == "true"  # KServe's name
    if not url:
        return _accelerated(bucket, region) if accelerate else of_aws(bucket, region)
    split, port = _split(variable, url)
    host = split.hostname or ""
    if host == _GLOBAL_HOST:  # KServe's default: names no region, and answers 301 for buckets outside us-east-1
        return _accelerated(bucket, region) if accelerate else of_aws(bucket, region)
    if accelerate:
        raise StoreRefused(f"S3_USE_ACCELERATE: only AWS itself accelerates, {variable} names another server: unset one")
    secure = split.scheme == "https"
    root = quote(split.path.rstrip("/"), safe="/%")
    if environment.get("S3_USER_VIRTUAL_BUCKET", "").lower() == "true":  # KServe's name and spelling
        if not _HOST_LABEL.fullmatch(bucket):
            raise StoreRefused(f"S3_USER_VIRTUAL_BUCKET: {bucket!a} cannot be part of a host name: unset it")
        host = f"{bucket}.{host}"
    else:
        root += f"/{encoded_path(bucket)}"
    return Endpoint(bucket, region, secure, host, port=port or (443 if secure else 80), root=root, custom=True)


def _split(variable: str, url: str) -> tuple[SplitResult, int | None]:
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        raise StoreRefused(f"{variable} cannot be read: {error}; an example: http://127.0.0.1:9000") from None
    if split.scheme not in {"http", "https"} or not split.hostname:
        raise StoreRefused(f"{variable} must be http://HOST or https://HOST, with a port if need be")
    if split.username is not None or split.query or split.fragment:
        raise StoreRefused(f"{variable} must hold neither credentials nor a query: those have variables of their own")
    return split, port


def trusted(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """TLS with the certificates in AWS_CA_BUNDLE_PEM, else those that AWS_CA_BUNDLE names, else the system's.

    Else botocore's own: slim images have none.

    None is asked for where KServe's S3_VERIFY_SSL says so: whoever is on the way can then replace models, code included.
    """
    if environment.get("S3_VERIFY_SSL", "").strip().lower() in {"0", "false"}:
        log.warning("S3_VERIFY_SSL=0: anybody on the way can pass for the model store; name its authority in AWS_CA_BUNDLE")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    certificates = environment.get("AWS_CA_BUNDLE_PEM")
    if certificates:
        try:
            return ssl.create_default_context(cadata=certificates)
        except (ValueError, ssl.SSLError) as error:
            raise StoreRefused(f"the CA bundle that the model's credentials name holds no certificates: {error}") from None
    bundle = environment.get("AWS_CA_BUNDLE") or None
    if bundle is None and not _system_has_certificates():
        bundle = _botocore_bundle()
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError) as error:
        raise StoreRefused(f"AWS_CA_BUNDLE: no certificates can be read from {bundle}: {error}") from None


def _system_has_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    return paths.cafile is not None or (paths.capath is not None and any(Path(paths.capath).iterdir()))


def _botocore_bundle() -> str | None:
    spec = importlib.util.find_spec("botocore")  # finds without importing
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (bundle := Path(folder) / "cacert.pem").exists():
            return str(bundle)
    return None
