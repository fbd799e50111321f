"""How demand outlives a pod: what each pod tells of its own, and the hot set that a pod coming up begins with.

    pod ── Heat, its own observations ──▶ controller ── HotSet ──▶ ConfigMap ──▶ pods that come up
     └───────── the same, an object of its own in the state prefix ─────────▶ pods that come up without a controller

A pod tells what it noted itself and nothing that it was told, so that what several pods tell adds up. Pure: nothing here
reads or waits. A document says its ``format``; fields that are not known are skipped, and a change that an older reader
must not miss raises the format.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

FORMAT: Final = 1

HOTSET_FILE: Final = "hotset.json"
"""Of the ConfigMap ``hearth-POOL-hotset``, mounted beside the declared models; and the object's name in the state prefix."""

MAX_MODELS: Final = 4_000
"""Of one hot set, and of the demand that one pod tells: the most valuable, or most asked. 4,000 lines with names of 60
characters are 500 KB; an object of Kubernetes may have 1 MiB."""

_Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""Per second, and seconds of a load. One document is added to others: a number beyond all sense would be the only one that
counts, and at the ends of what a number can be (1e308, or an integer of 400 digits) nobody's could be reckoned any more."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
"""Versions, bytes, and seconds ago."""

_Moment = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Warmth(msgspec.Struct, frozen=True, array_like=True):
    """One version of a model.

    fast, slow  requests per second on both time scales (policy/demand.py), at the document's ``at_s``
    load_s      seconds to bring it back from the model store, measured; 0: never measured
    size_bytes  of its weights; 0: not known
    visits      whole seconds before ``at_s`` at which its latest visits began, the oldest first (policy/demand.py)
    """

    name: str
    version: _Count
    fast: _Rate
    slow: _Rate
    load_s: _Rate = 0.0
    size_bytes: _Count = 0
    visits: tuple[_Count, ...] = ()


class Heat(msgspec.Struct, frozen=True):
    """What one pod noted since it began. Nothing of it was told to the pod by others.

    at_s      moment that the rates are of, seconds since the epoch
    final     the pod has ended: it will note nothing more
    absorbed  names of pods that ended, whose demand is in this one, too: their own objects count no more
    """

    pod: str
    at_s: _Moment
    models: tuple[Warmth, ...] = ()
    final: bool = False
    absorbed: tuple[str, ...] = ()
    release: str = ""
    format: int = FORMAT


class HotSet(msgspec.Struct, frozen=True):
    """A pool's models by value, the most valuable first (policy/eviction.py's value; alike ones by rate).

    at_s  moment that the rates are of, seconds since the epoch
    """

    pool: str
    at_s: _Moment
    models: tuple[Warmth, ...] = ()
    format: int = FORMAT


Document = TypeVar("Document", Heat, HotSet)


def encode(document: Heat | HotSet) -> bytes:
    """JSON."""
    return msgspec.json.encode(document)


def decode(raw: bytes, kind: type[Document]) -> Document:
    """Raises ValueError: it is no such document, or of a newer format."""
    try:
        found = msgspec.json.decode(raw, type=kind)
    except RecursionError:  # of fields that are skipped, too
        raise ValueError("it is nested too deeply") from None
    if found.format > FORMAT:
        raise ValueError(f"it has format {found.format}, and this release reads {FORMAT} at most")
    return found
