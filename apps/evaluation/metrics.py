"""Metrics of classifiers and regressors with 95 % confidence intervals. Pure: arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix, roc_curve

Array = np.ndarray[Any, np.dtype[Any]]

CONFIDENCE: Final = 0.95
MAX_CURVE_POINTS: Final = 200
MAX_SAMPLE_POINTS: Final = 1_000
MAX_CONFUSION_CLASSES: Final = 30
MAX_LABEL_CHARACTERS: Final = 60
RESIDUAL_BINS: Final = 40
NOT_ENOUGH_DATA: Final = "Not enough data"
UNKNOWN: Final = -1
"""Code of a label that the model has no class for."""

_Z: Final = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
_SEED: Final = 20


@dataclass(frozen=True, slots=True)
class Metric:
    """A value with its interval; ``note`` says why one of them is missing."""

    name: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Groups:
    """Which group each row is in: ``codes`` int [n] into ``names``."""

    names: list[str]
    codes: Array


@dataclass(frozen=True, slots=True)
class Slice:
    """The metrics of one group's rows."""

    value: str
    row_count: int
    metrics: list[Metric]


@dataclass(frozen=True, slots=True)
class Report:
    """Metrics, most telling first, and the JSON-safe, size-bounded data of the charts."""

    metrics: list[Metric]
    curves: dict[str, Any] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    # Metric -> each row's influence on it, float [n]: the metric's standard error is their deviation / √n.
    influences: dict[str, Array] = field(default_factory=dict, compare=False)


def evaluate_classification(
    actual: Array,
    predicted: Array,
    classes: list[str | int],
    scores: Array | None = None,
    *,
    scores_note: str = "",
    groups: Groups | None = None,
) -> Report:
    """Accuracy, ROC AUC and log loss, with the confusion matrix and, for two classes, the ROC curve.

    ``actual`` and ``predicted`` are int codes [n] into ``classes`` (``UNKNOWN`` for a label outside it). ``scores`` is
    [n, c], one column per class; rows that are no probability distributions rank, but have no log loss.
    ``scores_note`` says why there are none. With ``groups`` there are the metrics of each group, too, and for two
    classes how often each group gets the second one. Raises ``ValueError`` for NaN scores and for empty or unequal
    arrays.
    """
    _check_lengths(actual, predicted)
    if scores is not None:
        _check_finite(scores, "scores")
    metrics = _classification_metrics(actual, predicted, scores, scores_note)
    curves: dict[str, Any] = {"confusion": _confusion(actual, predicted, classes)}
    if scores is not None and len(classes) == 2 and metrics[0].value is not None:
        curves["roc"] = _roc(actual == 1, scores[:, 1], _printable(classes[1]))

    def of_group(rows: Array) -> list[Metric]:
        own = None if scores is None else scores[rows]
        found = _classification_metrics(actual[rows], predicted[rows], own, scores_note)
        return [*found, *(group_rates(actual[rows], predicted[rows]) if len(classes) == 2 else [])]

    shown = {name: curve for name, curve in curves.items() if curve}
    return Report(metrics, shown, _slices(groups, of_group), _classification_influences(actual, predicted, scores))


def _classification_metrics(actual: Array, predicted: Array, scores: Array | None, scores_note: str) -> list[Metric]:
    if scores is None:
        missing = scores_note or "The model gives labels only, no scores"
        ranked = [Metric("roc_auc", None, note=missing), Metric("log_loss", None, note=missing)]
    else:
        ranked = [roc_auc(actual, scores), log_loss(actual, scores)]
    return [ranked[0], accuracy(actual, predicted), ranked[1]]


def _classification_influences(actual: Array, predicted: Array, scores: Array | None) -> dict[str, Array]:
    found = {"accuracy": ((actual == predicted) & (actual != UNKNOWN)).astype(np.float64)}
    if scores is not None:
        parts = _auc_parts(actual, scores)
        if parts:
            found["roc_auc"] = len(actual) * np.mean([influence for _, influence in parts], axis=0)
        if is_distribution(scores) and not np.any(actual == UNKNOWN):
            found["log_loss"] = _losses(actual, scores)
    return found


def _slices(groups: Groups | None, metrics_of: Callable[[Array], list[Metric]]) -> list[Slice]:
    """The metrics of each group that has rows, the largest group first."""
    if groups is None:
        return []
    counts = np.bincount(groups.codes, minlength=len(groups.names))
    order = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    return [
        Slice(groups.names[code], int(counts[code]), metrics_of(np.flatnonzero(groups.codes == code))) for code in order
    ]


def group_rates(actual: Array, predicted: Array) -> list[Metric]:
    """How often rows are given the second class: of all, of those that are in it, and of those that are not.

    Their gaps between groups are the differences of demographic parity, equal opportunity and false positive rate
    (Hardt, Price & Srebro 2016, NeurIPS 29). Intervals are Wilson's.
    """
    everybody = np.ones(len(actual), bool)
    parts = (("selection_rate", everybody), ("true_positive_rate", actual == 1), ("false_positive_rate", actual == 0))
    return [_rate(name, predicted[rows] == 1) for name, rows in parts]


def _rate(name: str, is_chosen: Array) -> Metric:
    if not len(is_chosen):
        return Metric(name, None, note=f"{NOT_ENOUGH_DATA}: no such row")
    chosen = int(is_chosen.sum())
    interval = stats.binomtest(chosen, len(is_chosen)).proportion_ci(CONFIDENCE, method="wilson")
    return Metric(name, chosen / len(is_chosen), float(interval.low), float(interval.high))


def evaluate_regression(actual: Array, predicted: Array, *, groups: Groups | None = None) -> Report:
    """RMSE, MAE and R², with the histogram of the residuals and a sample of predicted against actual values.

    Both are float [n]. Residuals are predicted minus actual. Raises ``ValueError`` for NaN and for empty or unequal
    arrays.
    """
    _check_lengths(actual, predicted)
    actual, predicted = actual.astype(np.float64), predicted.astype(np.float64)
    _check_finite(actual, "actual values")
    _check_finite(predicted, "predictions")
    residuals = predicted - actual
    metrics = _regression_metrics(actual, residuals)
    slices = _slices(groups, lambda rows: _regression_metrics(actual[rows], residuals[rows]))
    curves = {"residuals": _histogram(residuals), "sample": _sample(actual, predicted)}
    return Report(metrics, curves, slices, _regression_influences(actual, residuals))


def _regression_metrics(actual: Array, residuals: Array) -> list[Metric]:
    return [rmse(residuals), mae(residuals), r_squared(actual, residuals)]


def _regression_influences(actual: Array, residuals: Array) -> dict[str, Array]:
    """Of a root by the delta method: that of the mean, divided by twice the root."""
    root = float(np.mean(residuals**2)) ** 0.5
    found = {"mae": np.abs(residuals)}
    if root > 0:
        found["rmse"] = residuals**2 / (2 * root)
    if len(actual) > 1 and float(actual.std()) > 0:
        found["r2"] = _r_squared_influence(actual, residuals)
    return found


def accuracy(actual: Array, predicted: Array) -> Metric:
    """Share of right labels with Wilson's score interval (Wilson 1927, JASA 22:209).

    An unknown actual label is never right, whatever was predicted.
    """
    right = int(np.sum((actual == predicted) & (actual != UNKNOWN)))
    interval = stats.binomtest(right, len(actual)).proportion_ci(CONFIDENCE, method="wilson")
    return Metric("accuracy", right / len(actual), float(interval.low), float(interval.high))


def roc_auc(actual: Array, scores: Array) -> Metric:
    """Area under the ROC curve; with more than two classes the unweighted mean of one against the rest.

    The interval is DeLong's (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837), with midranks as in Sun & Xu
    2014 (IEEE SPL 21:1389). The mean over classes takes the same structural components, averaged per row, so the
    classes' dependence is in it. Classes that do not occur in ``actual`` are left out of the mean.
    """
    parts = _auc_parts(actual, scores)
    if not parts:
        return Metric("roc_auc", None, note=f"{NOT_ENOUGH_DATA}: only one class occurs in the target")
    value = float(np.mean([area for area, _ in parts]))
    variance = float(np.sum(np.mean([influence for _, influence in parts], axis=0) ** 2))
    classes = 1 if scores.shape[1] == 2 else scores.shape[1]
    skipped = classes - len(parts)
    note = f"{skipped} of {classes} classes do not occur in the target and are left out" if skipped else ""
    if not variance > 0:
        return Metric("roc_auc", value, note=f"{NOT_ENOUGH_DATA} for an interval: the classes are perfectly separated")
    half = _Z * variance**0.5
    return Metric("roc_auc", value, max(value - half, 0.0), min(value + half, 1.0), note)


def _auc_parts(actual: Array, scores: Array) -> list[tuple[float, Array]]:
    """``delong_components`` of each class that occurs, beside rows of others; of the second class alone if of two."""
    classes = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
    return [
        delong_components(actual == one, scores[:, one]) for one in classes if 0 < np.sum(actual == one) < len(actual)
    ]


def delong_components(is_positive: Array, scores: Array) -> tuple[float, Array]:
    """The area under one ROC curve, and each row's contribution to its error, float [n].

    The sum of the squared contributions is DeLong's variance. Both classes must occur; with a single row of one of
    them that class adds nothing to the variance.
    """
    positive, negative = scores[is_positive].astype(np.float64), scores[~is_positive].astype(np.float64)
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    v10 = (ranks[:m] - stats.rankdata(positive)) / n
    v01 = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    area = float(v10.mean())
    influence = np.empty(len(scores))
    influence[is_positive] = (v10 - area) / (m * max(m - 1, 1)) ** 0.5
    influence[~is_positive] = (v01 - area) / (n * max(n - 1, 1)) ** 0.5
    return area, influence


def log_loss(actual: Array, probabilities: Array) -> Metric:
    """Mean negative log-likelihood in nats with the normal interval of a mean; probabilities are clipped at 2.2e-16."""
    if not is_distribution(probabilities):
        return Metric("log_loss", None, note="The model's scores are not probabilities that sum to 1")
    if np.any(actual == UNKNOWN):
        return Metric("log_loss", None, note="The target has labels that the model has no class for")
    return _mean_metric("log_loss", _losses(actual, probabilities))


def _losses(actual: Array, probabilities: Array) -> Array:
    tiny = np.finfo(np.float64).eps
    losses: Array = -np.log(np.clip(probabilities[np.arange(len(actual)), actual].astype(np.float64), tiny, 1.0))
    return losses


def is_distribution(scores: Array) -> bool:
    """Whether each row of [n, c] is a probability distribution, as exact as single precision is."""
    in_range = bool(np.all((scores >= -1e-6) & (scores <= 1 + 1e-6)))
    return in_range and bool(np.all(np.abs(scores.sum(axis=1, dtype=np.float64) - 1) < 1e-3))


def rmse(residuals: Array) -> Metric:
    """Root mean squared error; the interval is that of the mean squared error, its root taken at both ends."""
    squared = _mean_metric("rmse", residuals**2)
    low, high = (None if end is None else end**0.5 for end in (squared.ci_low, squared.ci_high))
    return Metric("rmse", float(np.mean(residuals**2)) ** 0.5, low, high, squared.note)


def mae(residuals: Array) -> Metric:
    """Mean absolute error with Student's interval of a mean."""
    return _mean_metric("mae", np.abs(residuals))


def r_squared(actual: Array, residuals: Array) -> Metric:
    """Share of the variance that is explained, 1 − Σe²/Σ(y−ȳ)².

    The interval is the delta method's: the variance of the mean influence −e²/v + (1−R²)(y−ȳ)²/v with v = Σ(y−ȳ)²/n
    (van der Vaart 1998, Asymptotic Statistics, ch. 3 and 20).
    """
    deviations = (actual - actual.mean()) ** 2
    spread = float(deviations.mean())
    if len(actual) < 2 or spread == 0:
        return Metric("r2", None, note=f"{NOT_ENOUGH_DATA}: the target does not vary")
    value = 1 - float(np.mean(residuals**2)) / spread
    half = _half_width(_r_squared_influence(actual, residuals))
    return Metric("r2", value, value - half, min(value + half, 1.0))


def _r_squared_influence(actual: Array, residuals: Array) -> Array:
    deviations = (actual - actual.mean()) ** 2
    spread, squared = float(deviations.mean()), residuals**2
    influence: Array = (-squared + float(squared.mean()) / spread * deviations) / spread
    return influence


def _mean_metric(name: str, values: Array) -> Metric:
    """The mean of non-negative values with Student's interval, cut at 0."""
    value = float(values.mean())
    if len(values) < 2:
        return Metric(name, value, note=f"{NOT_ENOUGH_DATA} for an interval: one row")
    half = _half_width(values)
    return Metric(name, value, max(value - half, 0.0), value + half)


def _half_width(values: Array) -> float:
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def _check_lengths(actual: Array, predicted: Array) -> None:
    if len(actual) == 0:
        raise ValueError("There are no rows to evaluate.")
    if len(actual) != len(predicted):
        raise ValueError(f"There are {len(actual)} actual values and {len(predicted)} predictions.")


def _check_finite(values: Array, what: str) -> None:
    bad = int(np.sum(~np.isfinite(values).reshape(len(values), -1).all(axis=1)))
    if bad:
        raise ValueError(f"{bad:,} of {len(values):,} rows have {what} that are NaN or infinite.")


def _confusion(actual: Array, predicted: Array, classes: list[str | int]) -> dict[str, Any] | None:
    """Counts [actual][predicted]; None when there are too many classes to read. Unknown labels share a last class."""
    if len(classes) > MAX_CONFUSION_CLASSES:
        return None
    labels, codes = [_printable(one) for one in classes], list(range(len(classes)))
    if np.any(actual == UNKNOWN) or np.any(predicted == UNKNOWN):
        labels, codes = [*labels, "other"], [*codes, UNKNOWN]
    return {"labels": labels, "counts": confusion_matrix(actual, predicted, labels=codes).tolist()}


def _printable(label: str | int) -> str:
    """A label as a chart and a JSON column of PostgreSQL take it: short, without NUL."""
    return str(label)[:MAX_LABEL_CHARACTERS].replace("\x00", "\ufffd")


def _roc(is_positive: Array, scores: Array, positive_label: str) -> dict[str, Any]:
    false_rate, true_rate, thresholds = roc_curve(is_positive, scores)
    keep = _thin(false_rate + true_rate, MAX_CURVE_POINTS)
    return {
        "positive": positive_label,
        "false_positive_rate": false_rate[keep].tolist(),
        "true_positive_rate": true_rate[keep].tolist(),
        # The first threshold is infinite, which JSON cannot hold: nothing is positive there.
        "threshold": [None, *thresholds[keep][1:].astype(float).tolist()],
    }


def _thin(position: Array, most: int) -> Array:
    """At most ``most`` indices into points along a curve, both ends kept.

    ``position`` grows along it. Even steps of it, not of the index, bound what is lost: no dropped point is farther
    than one step from a kept one.
    """
    if len(position) <= most:
        return np.arange(len(position))
    steps = np.linspace(position[0], position[-1], most - 1)
    return np.unique(np.append(np.searchsorted(position, steps), len(position) - 1))


def _histogram(residuals: Array) -> dict[str, list[Any]]:
    """Equal bins over the central 99.8 %; what lies outside is counted in the outermost bins."""
    low, high = np.quantile(residuals, (0.001, 0.999))
    counts, edges = np.histogram(np.clip(residuals, low, high), bins=RESIDUAL_BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _sample(actual: Array, predicted: Array) -> dict[str, list[float]]:
    """A seeded sample without replacement, in the order of the rows."""
    count = min(len(actual), MAX_SAMPLE_POINTS)
    rows = np.sort(np.random.default_rng(_SEED).choice(len(actual), count, replace=False))
    return {"actual": actual[rows].tolist(), "predicted": predicted[rows].tolist()}
