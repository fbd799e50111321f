"""What tests do with the memory of a pool: write, read, and leave it in pieces."""

from __future__ import annotations

from predictor.tiers.slabs import Arena, SlabPool


def write(arena: Arena, offset_bytes: int, data: bytes) -> None:
    position = 0
    window = arena.window(offset_bytes, len(data))
    for piece in window.windows(0, len(data)):
        piece[:] = data[position : position + len(piece)]
        position += len(piece)
        piece.release()
    window.release()


def contents(arena: Arena) -> bytes:
    pieces = arena.image.windows(0, arena.size_bytes)
    found = b"".join(pieces)
    for piece in pieces:
        piece.release()
    return found


def fragment(pool: SlabPool) -> list[Arena]:
    """Take every other free slab, each as an arena."""
    slabs = [pool.take(pool.slab_bytes) for _ in range((pool.size_bytes - pool.used_bytes) // pool.slab_bytes)]
    for arena in slabs[::2]:
        arena.close()
    return slabs[1::2]


def scribble(pool: SlabPool) -> None:
    """Leave another model's bytes in all memory that is free."""
    arena = pool.take(pool.size_bytes - pool.used_bytes)
    write(arena, 0, b"\xff" * arena.size_bytes)
    arena.close()
