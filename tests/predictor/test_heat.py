"""Documents of demand: what was written is read, and what cannot be read says so."""

from __future__ import annotations

import pytest

from predictor import heat
from predictor.heat import Heat, HotSet, Warmth


def test_what_a_pod_tells_is_read_as_it_was_written() -> None:
    told = Heat("pod-a", 1_700_000_000.0, (Warmth("resnet", 3, 0.5, 0.25, 1.2, 1000, (3600, 0)),), absorbed=("pod-0",))
    assert heat.decode(heat.encode(told), Heat) == told


def test_a_hot_set_keeps_its_order() -> None:
    hot = HotSet("pool", 1.0, (Warmth("b", 1, 2.0, 1.0), Warmth("a", 1, 1.0, 1.0)))
    assert heat.decode(heat.encode(hot), HotSet) == hot


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"pool": "a"}',
        b'{"pool": "a", "at_s": 1, "models": [["a", 1, -1, 0]]}',
        b'{"pool": "a", "at_s": 1, "models": [["a"]]}',
        b'{"pool": "a", "at_s": 1, "models": [["a", 1, 1e308, 1e308]]}',
        b'{"pool": "a", "at_s": -1e308}',
        b'{"pool": "a", "at_s": 1, "models": [["a", 1, 1, 1, 1, 1%s]]}' % (b"0" * 400),
        b'{"pool": "a", "at_s": 1, "models": [["a", 1, 1, 1, 1, 1, [1%s]]]}' % (b"0" * 400),
        b'{"pool": "a", "at_s": 1, "models": [["a", 1, 1, 1, 1, 1, [-1000000]]]}',
        b'{"pool": "a", "at_s": 1, "new": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_corrupt_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the parser's words)
        heat.decode(raw, HotSet)


def test_a_newer_format_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="format 9, and this release reads 1 at most"):
        heat.decode(b'{"pool": "a", "at_s": 1, "format": 9}', HotSet)


def test_unknown_fields_are_skipped() -> None:
    assert heat.decode(b'{"pool": "a", "at_s": 1, "colour": "red", "models": [["a",1,1,1,0,0,[],"new"]]}', HotSet).models
