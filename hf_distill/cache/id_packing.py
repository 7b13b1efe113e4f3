"""Class numbers in as few bits as they need: 16, 18, 24 or 32 each."""

from __future__ import annotations

import numpy

ID_BITS = (16, 18, 24, 32)


def bits_for(classes: int) -> int:
    """Return the smallest width that holds every class number.

    Example:
        >>> bits_for(77), bits_for(151_936), bits_for(262_145)
        (16, 18, 24)
    """
    return next(bits for bits in ID_BITS if classes <= 1 << bits)


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes so many numbers take.

    Example:
        >>> packed_bytes(64, 18)
        144
    """
    return -(-count * bits // 8)


def pack_ids(ids: numpy.ndarray, bits: int) -> numpy.ndarray:
    """Return ``(rows, count)`` numbers as ``(rows, bytes)``, little end first.

    Example:
        >>> ids = numpy.array([[0, 5, 131_073]])
        >>> packed = pack_ids(ids, 18)
        >>> packed.shape, bool((unpack_ids(packed, 18, 3) == ids).all())
        ((1, 7), True)
    """
    if bits == 18:
        digits = (ids[..., None] >> numpy.arange(18)) & 1
        flat = digits.astype(numpy.uint8).reshape(len(ids), 18 * ids.shape[-1])
        return numpy.packbits(flat, axis=-1, bitorder="little")
    whole = numpy.ascontiguousarray(ids.astype("<u4")).view(numpy.uint8).reshape(*ids.shape, 4)
    return numpy.ascontiguousarray(whole[..., : bits // 8]).reshape(len(ids), ids.shape[-1] * (bits // 8))


def unpack_ids(packed: numpy.ndarray, bits: int, count: int) -> numpy.ndarray:
    """Return ``(rows, bytes)`` of :func:`pack_ids` as ``(rows, count)`` 64-bit numbers."""
    if bits == 18:
        digits = numpy.unpackbits(packed, axis=-1, bitorder="little")[:, : count * 18]
        return digits.reshape(len(packed), count, 18).astype(numpy.int64) @ (1 << numpy.arange(18))
    parts = packed.reshape(len(packed), count, bits // 8).astype(numpy.int64)
    return parts @ (1 << (8 * numpy.arange(bits // 8)))
