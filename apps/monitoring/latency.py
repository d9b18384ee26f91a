"""Percentiles out of latency histograms. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from inference.contracts import LATENCY_BUCKETS_US

BUCKETS: Final = len(LATENCY_BUCKETS_US) + 1
QUANTILES: Final = (0.5, 0.95, 0.99)
ERROR_FACTOR: Final = max(high / low for low, high in pairwise(LATENCY_BUCKETS_US))
"""How far a percentile may be off, as a factor in either direction (1.43: two buckets per octave).

It holds from the first to the last bound. A latency below the first (50 us) is told to within 50 us; one above the last
(52 s) is told as 52 s.
"""


def merge(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Add histograms bucket by bucket; all zeros if there are none. Raises ``ValueError`` for a wrong length."""
    merged = [0] * BUCKETS
    for histogram in histograms:
        merged = [known + new for known, new in zip(merged, histogram, strict=True)]
    return merged


def percentile_ms(histogram: Sequence[int], quantile: float) -> float | None:
    """The smallest latency that at least ``quantile`` (0 to 1) of the requests do not exceed, in ms; None if empty.

    The bucket is exact (nearest-rank definition: numpy's ``inverted_cdf``); within it the place is interpolated on the
    logarithmic scale of the bounds, so the result is within ``ERROR_FACTOR`` of the true value.
    """
    total = sum(histogram)
    if total == 0:
        return None
    rank = max(1, math.ceil(quantile * total - 1e-9))  # 0.07 * 100 is a little more than 7
    before = 0
    for index, count in enumerate(histogram):
        if before + count >= rank:
            return _within(index, (rank - before - 0.5) / count) / 1000
        before += count
    raise AssertionError("unreachable: the ranks of a histogram end at its total")


def _within(index: int, share: float) -> float:
    """Microseconds at ``share`` (0 to 1) of the way through a bucket."""
    if index == len(LATENCY_BUCKETS_US):
        return float(LATENCY_BUCKETS_US[-1])
    high = LATENCY_BUCKETS_US[index]
    if index == 0:
        return high * share
    low = LATENCY_BUCKETS_US[index - 1]
    return float(low * (high / low) ** share)
