"""What an exception says, also one that a model made: its text may be missing, endless, or no text that can be sent."""

from __future__ import annotations

from typing import Final

MESSAGE_CHARACTERS: Final = 2000
"""A model's own exception can be as long as it likes; what a client gets of it cannot."""


def words(error: BaseException) -> str:
    """``str(error)``, whatever that does: this is called where a model's exception has just been caught."""
    try:
        return str(error)
    except BaseException as own:  # noqa: BLE001 (a model's own code, as what raised ``error`` was)
        return f"(its text cannot be had: {type(own).__name__})"


def sendable(text: str) -> str:
    """As much of ``text`` as is sent, with what UTF-8 has no bytes for (half a surrogate pair) spelled out."""
    return text[:MESSAGE_CHARACTERS].encode(errors="backslashreplace").decode()
