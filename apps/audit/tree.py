"""The log's Merkle tree in the database: leaf hashes with their events, above them every eighth level.

What is stored only saves time: checkpoints are signed over events that were read, and proofs are checked before they
are handed out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from apps.audit import merkle
from apps.audit.models import AuditEvent, MerkleNode

TILE_LEVELS: Final = 8
TILE: Final = 1 << TILE_LEVELS
_TOP_LEVEL: Final = 56
_CACHED_TILES: Final = 64


def stored_nodes() -> merkle.Node:
    """The tree's nodes, as far as they are stored. Remembers what it read: use one for each piece of work.

    ``IndexError`` where the tree does not reach.
    """

    @lru_cache(_CACHED_TILES)
    def tile(base: int, number: int) -> merkle.Node:
        return merkle.nodes_of(_hashes(base, number * TILE, (number + 1) * TILE))

    def node(level: int, index: int) -> bytes:
        base = level // TILE_LEVELS * TILE_LEVELS
        inner = level - base
        number, place = divmod(index, TILE >> inner)
        return tile(base, number)(inner, place)

    return node


def range_at(size: int, node: merkle.Node) -> merkle.CompactRange:
    """The perfect subtrees of the first ``size`` leaves."""
    peaks, begin = [], 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            peaks.append(node(level, begin >> level))
            begin += 1 << level
    return merkle.CompactRange(size, peaks)


def store_nodes(old_size: int, new_size: int) -> None:
    """Store the subtrees that growing from ``old_size`` to ``new_size`` leaves has completed."""
    for level in range(TILE_LEVELS, _TOP_LEVEL + 1, TILE_LEVELS):
        first, end = old_size >> level, new_size >> level
        if first == end:
            return
        below = _hashes(level - TILE_LEVELS, first * TILE, end * TILE)
        roots = [merkle.root(below[place : place + TILE]) for place in range(0, len(below), TILE)]
        rows = [MerkleNode(level=level, index=first + place, hash=root) for place, root in enumerate(roots)]
        MerkleNode.objects.bulk_create(rows, ignore_conflicts=True)


def _hashes(base: int, begin: int, end: int) -> list[bytes]:
    """The stored hashes of one level from ``begin`` to before ``end``, as far as there are any."""
    if base == 0:
        leaves = AuditEvent.objects.filter(seq__gt=begin, seq__lte=end).order_by("seq")
        return [bytes.fromhex(text) for text in leaves.values_list("leaf_hash", flat=True) if text]
    nodes = MerkleNode.objects.filter(level=base, index__gte=begin, index__lt=end).order_by("index")
    return [bytes(node) for node in nodes.values_list("hash", flat=True)]
