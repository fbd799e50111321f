from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.tiers.scattered import Scattered


@given(st.lists(st.binary(max_size=9), max_size=6), st.data())
def test_windows_are_the_same_bytes_wherever_the_pieces_are_cut(pieces: list[bytes], draw: st.DataObject) -> None:
    whole = b"".join(pieces)
    scattered = Scattered([memoryview(bytearray(piece)) for piece in pieces])
    assert scattered.size_bytes == len(whole)
    begin = draw.draw(st.integers(0, len(whole)))
    end = draw.draw(st.integers(begin, len(whole)))
    assert b"".join(scattered.windows(begin, end)) == whole[begin:end]
    part = scattered.part(begin, end)
    assert part.size_bytes == end - begin
    assert b"".join(part.windows(0, part.size_bytes)) == whole[begin:end]


def test_what_is_written_into_a_window_lies_in_its_piece() -> None:
    first, second = bytearray(3), bytearray(3)
    scattered = Scattered([memoryview(first), memoryview(second)])
    left, right = scattered.windows(2, 5)
    left[:] = b"a"
    right[:] = b"bc"
    assert (bytes(first), bytes(second)) == (b"\0\0a", b"bc\0")


def test_released_memory_can_be_resized() -> None:
    memory = bytearray(4)
    scattered = Scattered([memoryview(memory)])
    with pytest.raises(BufferError):
        memory.clear()
    scattered.release()
    memory.clear()
