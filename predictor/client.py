"""The admin port of a running pod, as the command line asks it: plain HTTP, short timeouts, typed answers.

What stays out: how an answer is shown (cli.py), and inference (that is any V2 client's business).
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Final, TypeVar

import msgspec

from predictor.errors import HearthError, Unavailable
from predictor.report import Residency, Why

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8082"
MAX_ANSWER_BYTES: Final = 64 << 20
"""10,000 models with their copies are about 3 MB of residency; an answer beyond this is not Hearth's."""


class NoServer(Unavailable):
    """Nobody answers at the address, or what answers is not a Hearth admin port."""


class Refused(HearthError):
    """The admin port answered that it cannot do this; the message is its own."""


class Timeline(msgspec.Struct, frozen=True):
    """When this pod did what for the first time, in seconds since it was executed."""

    stages: dict[str, float]
    up_s: float = 0.0


class Catalogue(msgspec.Struct, frozen=True):
    """Every model that can be asked for."""

    models: tuple[str, ...]


class Preloading(msgspec.Struct, frozen=True):
    """What became of an order to load."""

    accepted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    refused: dict[str, str] = {}


class Pinned(msgspec.Struct, frozen=True):
    """Which models are pinned now, those of HEARTH_PIN included."""

    pinned: tuple[str, ...] = ()


class Cleared(msgspec.Struct, frozen=True):
    """Which models were in quarantine, and are not any more."""

    cleared: tuple[str, ...] = ()


class Unloaded(msgspec.Struct, frozen=True):
    """Which models were dropped."""

    unloaded: tuple[str, ...] = ()


Told = TypeVar("Told", Why, Residency, Timeline, Catalogue, Preloading, Pinned, Cleared, Unloaded)


class AdminClient:
    """One pod's admin port.

    address    with or without scheme; empty: HEARTH_ADDRESS, else this machine's port 8082
    timeout_s  for each request; nothing the admin port does takes longer than milliseconds
    """

    def __init__(self, address: str = "", *, timeout_s: float = 10.0) -> None:
        told = address or os.environ.get("HEARTH_ADDRESS", "") or DEFAULT_ADDRESS
        self.address = (told if "://" in told else f"http://{told}").rstrip("/")
        self._timeout_s = timeout_s
        # No proxy: the admin port is never beyond one, and http_proxy is often set where 127.0.0.1 is meant.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def residency(self) -> Residency:
        """What is where, how much room there is, and what was asked."""
        return self._told(Residency, self.residency_json())

    def residency_json(self) -> bytes:
        """The same as the pod wrote it."""
        return self._ask("/hearth/v1/residency")

    def timeline(self) -> Timeline:
        """The stages of this pod's cold start."""
        return self._told(Timeline, self._ask("/hearth/v1/timeline"))

    def catalogue(self) -> Catalogue:
        """The names of all models, resident or not."""
        return self._told(Catalogue, self._ask("/hearth/v1/catalogue"))

    def why(self, name: str) -> Why:
        """What happened to a model."""
        return self._told(Why, self._ask(f"/hearth/v1/why/{urllib.parse.quote(name, safe='')}"))

    def metrics(self) -> str:
        """Every metric in Prometheus' text format."""
        return self._ask("/metrics").decode()

    def preload(self, names: list[str]) -> Preloading:
        """Load these in the background."""
        return self._told(Preloading, self._ask("/hearth/v1/preload", names))

    def pin(self, names: list[str]) -> Pinned:
        """Never drop these for other models, once they are loaded."""
        return self._told(Pinned, self._ask("/hearth/v1/pin", names))

    def unpin(self, names: list[str]) -> Pinned:
        """Undo ``pin``."""
        return self._told(Pinned, self._ask("/hearth/v1/unpin", names))

    def clear(self, names: list[str]) -> Cleared:
        """Take these out of quarantine."""
        return self._told(Cleared, self._ask("/hearth/v1/clear", names))

    def unload(self, names: list[str]) -> Unloaded:
        """Drop these from the device and from RAM; what is on disk stays."""
        return self._told(Unloaded, self._ask("/hearth/v1/unload", names))

    def _told(self, kind: type[Told], answer: bytes) -> Told:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise NoServer(
                f"{self.address} answers, but not as a Hearth admin port ({problem}); give --address or HEARTH_ADDRESS"
            ) from problem

    def _ask(self, path: str, names: list[str] | None = None) -> bytes:
        if not self.address.startswith(("http://", "https://")):
            raise NoServer(f"{self.address} is no address of an admin port: it begins with http:// or https://")
        try:
            request = urllib.request.Request(  # noqa: S310 (http or https: looked at above)
                self.address + path,
                data=None if names is None else json.dumps({"models": names}).encode(),
                headers={"Content-Type": "application/json"},
            )
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return bytes(response.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as refusal:
            raise self._refusal(refusal) from refusal
        except (OSError, ValueError, http.client.HTTPException) as problem:
            raise NoServer(
                f"no Hearth admin port at {self.address} ({getattr(problem, 'reason', problem)}); "
                "start one with `hearth serve`, or give --address or HEARTH_ADDRESS"
            ) from problem

    def _refusal(self, refusal: urllib.error.HTTPError) -> HearthError:
        with refusal:
            try:
                told = json.loads(refusal.read(MAX_ANSWER_BYTES))["error"]
            except (OSError, ValueError, KeyError, TypeError):
                return NoServer(
                    f"{self.address} answers {refusal.code} {refusal.reason}, not as a Hearth admin port does; "
                    "give --address or HEARTH_ADDRESS"
                )
        return Refused(f"{told} (HTTP {refusal.code} from {self.address})")
