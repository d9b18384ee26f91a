"""How far a dataset has moved from another one: the population stability index of each column. Pure."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BINS: Final = 10
MAX_CATEGORIES: Final = 50
_FLOOR: Final = 1e-4
"""The least share that a bin counts with, so that an empty one gives a finite index."""


def psi_of_numbers(reference: Array, current: Array) -> float:
    """PSI over the reference's deciles; NaN is a bin of its own. Both float [n], neither empty.

    Σ (c − r)·ln(c / r) over the bins' shares r and c (Siddiqi 2006, Credit Risk Scorecards, ch. 9). Equal deciles, as
    of a column with few values, make one bin.
    """
    known = reference[~np.isnan(reference)]
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.empty(0)
    return _index(_counts(reference, edges), _counts(current, edges))


def _counts(values: Array, edges: Array) -> Array:
    missing = np.isnan(values)
    bins = np.searchsorted(edges, values[~missing], side="right")
    return np.append(np.bincount(bins, minlength=len(edges) + 1), int(missing.sum()))


def psi_of_categories(reference: dict[str, int], current: dict[str, int]) -> float:
    """PSI over categories by their counts; all but the reference's ``MAX_CATEGORIES`` most frequent share a bin."""
    kept = sorted(reference, key=lambda one: (-reference[one], one))[:MAX_CATEGORIES]
    rows = [[counts.get(one, 0) for one in kept] for counts in (reference, current)]
    rests = [sum(counts.values()) - sum(row) for counts, row in zip((reference, current), rows, strict=True)]
    return _index(*(np.array([*row, rest]) for row, rest in zip(rows, rests, strict=True)))


def _index(reference: Array, current: Array) -> float:
    occurring = (reference + current) > 0
    shares = [np.maximum(counts[occurring] / counts.sum(), _FLOOR) for counts in (reference, current)]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))
