"""Proofs in the Merkle tree of RFC 6962. Pure; the half that checks them is ``verify.py``, which auditors run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from apps.audit.verify import (
    EMPTY_ROOT,
    CompactRange,
    hash_leaf,
    hash_node,
    verify_consistency,
    verify_inclusion,
)

__all__ = [
    "EMPTY_ROOT",
    "CompactRange",
    "Node",
    "consistency_proof",
    "hash_leaf",
    "hash_node",
    "inclusion_proof",
    "nodes_of",
    "root",
    "subtree",
    "verify_consistency",
    "verify_inclusion",
]

Node = Callable[[int, int], bytes]
"""``node(level, index)``: the hash of the perfect subtree over the leaves from ``index << level`` on, ``1 << level``
of them. Level 0 are the leaf hashes."""


def root(leaves: Iterable[bytes]) -> bytes:
    """The Merkle tree hash of leaf hashes, in their order; a million take about a second and no memory."""
    whole = CompactRange()
    for leaf in leaves:
        whole.append(leaf)
    return whole.root()


def nodes_of(leaves: Sequence[bytes]) -> Node:
    """All perfect subtrees of a tree that fits into memory, twice the size of its leaves."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([hash_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return lambda level, index: levels[level][index]


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """The audit path of the leaf at ``index`` in the tree of the first ``size`` leaves (RFC 6962, 2.1.1)."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has none at {index}")
    begin, end, path = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(subtree(middle, end, node))
            end = middle
        else:
            path.append(subtree(begin, middle, node))
            begin = middle
    return path[::-1]


def consistency_proof(old_size: int, new_size: int, node: Node) -> list[bytes]:
    """The proof that the tree of ``new_size`` leaves begins with that of ``old_size`` (RFC 6962, 2.1.2)."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {new_size} leaves does not grow from one of {old_size}")
    if old_size == 0:
        return []
    begin, end, path, is_old_root = 0, new_size, [], True
    while end != old_size:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            path.append(subtree(middle, end, node))
            end = middle
        else:
            path.append(subtree(begin, middle, node))
            begin, is_old_root = middle, False
    if not is_old_root:
        path.append(subtree(begin, end, node))
    return path[::-1]


def subtree(begin: int, end: int, node: Node) -> bytes:
    """The hash over the leaves from ``begin`` to ``end``, where ``begin`` is a place at which RFC 6962 splits."""
    if begin == end:
        return EMPTY_ROOT
    peaks = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        peaks.append(node(level, begin >> level))
        begin += 1 << level
    whole = peaks.pop()
    while peaks:
        whole = hash_node(peaks.pop(), whole)
    return whole


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)
