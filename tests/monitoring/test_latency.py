"""Percentiles against the samples that the histograms were made of."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest

from apps.monitoring.latency import BUCKETS, ERROR_FACTOR, merge, percentile_ms
from inference.contracts import LATENCY_BUCKETS_US


def histogram_of(samples: np.ndarray) -> list[int]:
    histogram = [0] * BUCKETS
    for sample in samples:
        histogram[bisect_left(LATENCY_BUCKETS_US, sample)] += 1
    return histogram


@pytest.mark.parametrize("size", [1, 2, 7, 100, 5_000])
@pytest.mark.parametrize("median_us", [300, 4_000, 900_000])
@pytest.mark.parametrize("quantile", [0.01, 0.07, 0.5, 0.95, 0.99, 1.0])
def test_a_percentile_is_within_the_stated_factor_of_numpys(size: int, median_us: int, quantile: float) -> None:
    samples = np.random.default_rng(size).lognormal(np.log(median_us), 0.4, size).astype(int)
    true_ms = float(np.quantile(samples, quantile, method="inverted_cdf")) / 1000

    estimate = percentile_ms(histogram_of(samples), quantile)

    assert estimate is not None
    assert true_ms / ERROR_FACTOR <= estimate <= true_ms * ERROR_FACTOR


def test_percentiles_of_merged_histograms_are_those_of_all_samples() -> None:
    samples = np.random.default_rng(1).lognormal(8, 1, 999).astype(int)
    parts = [histogram_of(part) for part in np.array_split(samples, 5)]

    assert merge(parts) == histogram_of(samples)


def test_percentiles_never_decrease_with_the_quantile() -> None:
    histogram = histogram_of(np.random.default_rng(2).lognormal(8, 2, 300).astype(int))
    estimates = [percentile_ms(histogram, quantile / 100) for quantile in range(1, 101)]

    assert estimates == sorted(estimates)  # type: ignore[type-var]


def test_nothing_measured_has_no_percentile() -> None:
    assert percentile_ms([0] * BUCKETS, 0.99) is None
    assert merge([]) == [0] * BUCKETS


def test_outside_the_bounds() -> None:
    assert percentile_ms(histogram_of(np.array([10])), 0.5) == pytest.approx(0.025, abs=0.05)
    assert percentile_ms(histogram_of(np.array([10**9])), 0.5) == LATENCY_BUCKETS_US[-1] / 1000


def test_a_histogram_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        merge([[1, 2, 3]])
